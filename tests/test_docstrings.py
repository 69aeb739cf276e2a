"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    files = [*(ROOT / "keras_vmoe").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]
    names = []
    for path in sorted(files):
        if ">>> " in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = ("keras_vmoe", *parts) if parts[0] == "trainers" else parts
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
