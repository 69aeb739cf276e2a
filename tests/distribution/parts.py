"""Parts of a test program that one process runs one after the other, and what each printed."""

from __future__ import annotations

import fcntl
import os
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

START, FAILED = "part:", "failed:"


def run_parts(functions: Mapping[str, Callable], parts: Sequence[str]) -> None:
    """Runs each part, a function's name and its words; one that fails does not end the others."""
    for part in parts:
        name, *words = shlex.split(part)
        print(START, part, flush=True)
        try:
            functions[name](*words)
        except Exception:
            print(FAILED, repr(traceback.format_exc()[-3000:]), flush=True)


def lines_by_part(output: str) -> dict[str, list[list[str]]]:
    """Part to the lines that it printed, as words."""
    found: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        if line.startswith(START):
            lines = found[line.removeprefix(START).strip()] = []
        elif found and line.strip():
            lines.append(line.split())
    return found


def require_done(lines: list[list[str]]) -> list[list[str]]:
    """The lines of a part that did not fail."""
    for words in lines:
        assert words[0] != FAILED, " ".join(words)
    return lines


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> str:
    """What `make` returns, given a folder: called by the worker that comes first, others wait."""
    base = factory.getbasetemp()
    # Workers of xdist have folders of their own in that of the session.
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    result = base / f"{name}.txt"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            folder = base / name
            folder.mkdir(exist_ok=True)
            result.write_text(make(folder))
    return result.read_text()
