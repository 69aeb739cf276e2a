"""Peak memory of a model's step, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vmoe.trainers.benchmark import child
from keras_vmoe.trainers.benchmark.settings import ModelSettings, Row

# Run by `measure` alone; the help does not name it.
COMMAND = "peak_memory"
_STEPS = 3
_PEAK = "peak_memory_bytes"


def measure(row: Row, mode: str, settings: ModelSettings) -> int:
    """Returns the peak of the resident memory of a process that takes some steps, in bytes.

    The process imports TensorFlow, builds one model and runs one kind of step, nothing else.

    Args:
        row: the model.
        mode: `"forward"` or `"train"`.
        settings: the table's.

    Raises:
        RuntimeError: the process failed; the message holds its last line.
    """
    asked = {"row": row, "mode": mode, "settings": dataclasses.asdict(settings)}
    return ask(COMMAND, asked, f"{row.name} {mode}")


def ask(command: str, asked: Mapping[str, Any], what: str) -> int:
    """Returns the bytes that a process of its own tells by `tell`.

    Args:
        command: of `keras-vmoe benchmark`, that the help does not name.
        asked: what it is told to measure, as JSON.
        what: the same in words.

    Raises:
        RuntimeError: the process failed; the message holds its last line.
    """
    (told,) = child.messages(command, asked, f"the memory of {what}")
    return int(told[_PEAK])


def tell(peak: int) -> None:
    """Prints what `ask` reads in the process that started this one.

    Args:
        peak: bytes.
    """
    child.tell(**{_PEAK: peak})


def main(words: Sequence[str]) -> int:
    """Runs in the process that `measure` starts: takes the steps and prints the peak as JSON.

    Args:
        words: one word, the JSON text of what to run.
    """
    from keras_vmoe.trainers.benchmark import model

    asked = json.loads(words[0])
    settings = read_settings(asked["settings"])
    step = model.make_step(model.build_model(Row(*asked["row"]), settings), asked["mode"], settings)
    for _ in range(_STEPS):
        step().numpy()
    tell(peak_bytes())
    return 0


def read_settings(values: dict[str, Any]) -> ModelSettings:
    """Returns settings that went through JSON."""
    rows = tuple(Row(*row) for row in values["rows"])
    return ModelSettings(**{**values, "rows": rows})


def peak_bytes() -> int:
    """Returns the largest resident memory that this process has had.

    On Linux from the process's own memory map: `ru_maxrss` begins there with the size of the
    process that started this one.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
