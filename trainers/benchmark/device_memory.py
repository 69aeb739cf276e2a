"""Peak memory of a LiteRT file, in a process that has nothing else of this package."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.trainers.benchmark import memory

# Run by `measure` alone; the help does not name it.
COMMAND = "device_memory"
_RUNS = 3


def open_interpreter(path: str | Path, threads: int) -> Any:
    """Returns an interpreter of a file, ready to run.

    Args:
        path: of the file.
        threads: how many it may use.

    Raises:
        ImportError: LiteRT is not installed.
    """
    try:
        module = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise ImportError(
            f"ai-edge-litert is needed here and cannot be imported ({error}): "
            "pip install 'keras-vmoe[export]'"
        ) from error
    interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def measure(path: Path, threads: int) -> int:
    """Returns by how much loading and running a file raises a process's peak memory, in bytes.

    The process imports LiteRT and NumPy, not TensorFlow, and runs one random image a few times.

    Args:
        path: of the file.
        threads: of the interpreter.

    Raises:
        RuntimeError: the process failed; the message holds its last line.
    """
    return memory.ask(COMMAND, {"path": str(path), "threads": threads}, path.name)


def main(words: Sequence[str]) -> int:
    """Runs in the process that `measure` starts, and prints what it found as JSON.

    Args:
        words: one word, the JSON text of what to run.
    """
    asked = json.loads(words[0])
    importlib.import_module("ai_edge_litert.interpreter")
    before = memory.peak_bytes()
    interpreter = open_interpreter(asked["path"], asked["threads"])
    details = interpreter.get_input_details()[0]
    image = np.random.default_rng(0).uniform(-1, 1, details["shape"]).astype("float32")
    for _ in range(_RUNS):
        interpreter.set_tensor(details["index"], image)
        interpreter.invoke()
    memory.tell(memory.peak_bytes() - before)
    return 0
