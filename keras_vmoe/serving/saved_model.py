"""TensorFlow SavedModels."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_vmoe.serving.graph import Graph
from keras_vmoe.serving.metadata import FILE_NAME, Metadata, OpenFile, check_size

# Where TensorFlow lets others put files that it copies along.
_EXTRA = "assets.extra"
# What `write` writes.
_FOLDERS = ("variables", "assets", _EXTRA)
_FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.index",
    "variables/variables.data-*-of-*",
    f"{_EXTRA}/{FILE_NAME}",
)


def write(graph: Graph, path: Path) -> None:
    """Writes a folder with the endpoint `serve`, which is also the signature `serving_default`."""
    # Not by keras.export.ExportArchive: it writes every weight twice.
    served = tf.Module()
    served.serve = graph.function
    concrete = graph.function.get_concrete_function()
    served.used = list(concrete.graph.variables)
    tf.saved_model.save(served, str(path), signatures={"serving_default": concrete})
    (path / _EXTRA).mkdir(exist_ok=True)
    (path / _EXTRA / FILE_NAME).write_text(graph.metadata.to_json(), encoding="utf-8")


def foreign_files(path: Path) -> list[str]:
    """What lies in a SavedModel's folder and was not written by `write`, as paths within it."""
    found = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        known = _FOLDERS if file.is_dir() and not file.is_symlink() else _FILES
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in known):
            found.append(name)
    return found


def open_file(path: Path) -> OpenFile:
    """Opens a SavedModel's folder.

    Raises:
        ValueError: metadata that is too large.
    """
    file, text = path / _EXTRA / FILE_NAME, None
    if file.is_file():
        check_size(file.stat().st_size)
        text = file.read_text(encoding="utf-8")
    return OpenFile(text, lambda metadata: _function(path, metadata))


def _function(path: Path, metadata: Metadata) -> Callable[[np.ndarray], np.ndarray]:
    loaded = tf.saved_model.load(str(path))

    def run(inputs: np.ndarray) -> np.ndarray:
        outputs = loaded.serve(tf.convert_to_tensor(inputs))[metadata.output_name]
        # NumPy has no bfloat16 of its own.
        return (tf.cast(outputs, tf.float32) if outputs.dtype.size < 4 else outputs).numpy()

    run.loaded = loaded  # its variables must outlive this call
    return run
