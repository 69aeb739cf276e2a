"""Measurements in a process of their own: memory that is theirs alone, threads set at the start."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any


def command_line(command: str, asked: Mapping[str, Any]) -> list[str]:
    """Returns the words that start the process."""
    words = [sys.executable, "-m", "keras_vmoe.trainers.cli", "benchmark", command]
    return [*words, json.dumps(asked)]


def messages(command: str, asked: Mapping[str, Any], what: str) -> Iterator[dict[str, Any]]:
    """Starts a process, and yields what it tells as soon as it does.

    The process ends with this iterator, if not before.

    Args:
        command: of `keras-vmoe benchmark`, that the help does not name.
        asked: what it is told to measure, as JSON.
        what: the same in words.

    Raises:
        RuntimeError: the process failed; the message holds its last line.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command_line(command, asked), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield json.loads(line)
            code = process.wait()
        finally:
            process.kill()
        if code != 0:
            errors.seek(0)
            ended = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"the process that measures {what} ended with {code}: {ended}")


def tell(**values: Any) -> None:
    """Prints what `messages` yields in the process that started this one.

    Args:
        **values: of a message.
    """
    print(json.dumps(values), flush=True)


def use_threads(threads: int) -> None:
    """Makes TensorFlow compute on so many threads; before it has computed anything.

    Args:
        threads: within an operation, and operations side by side.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
