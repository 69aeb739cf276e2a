"""TensorFlow SavedModels."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vmoe.serving.graph import Graph
from keras_vmoe.serving.metadata import (
    FILE_NAME,
    PAIRS_FILE_NAME,
    Metadata,
    OpenFile,
    Run,
    check_size,
)

#: Where TensorFlow lets others put files that it copies along.
EXTRA = "assets.extra"
# What `write` writes.
_FOLDERS = ("variables", "assets", EXTRA)
_FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.index",
    "variables/variables.data-*-of-*",
    f"{EXTRA}/{FILE_NAME}",
    f"{EXTRA}/{PAIRS_FILE_NAME}",
)


def write(graph: Graph, path: Path) -> None:
    """Writes a folder with the endpoint `serve`, which is also the signature `serving_default`."""
    _save({"serve": graph}, {"serving_default": graph}, path)
    (path / EXTRA / FILE_NAME).write_text(graph.metadata.to_json(), encoding="utf-8")


def write_several(graphs: Mapping[str, Graph], path: Path) -> Path:
    """Writes a folder with several endpoints, which are also signatures under the same names.

    Returns:
        The folder for files that go along.
    """
    _save(graphs, graphs, path)
    return path / EXTRA


def _save(endpoints: Mapping[str, Graph], signatures: Mapping[str, Graph], path: Path) -> None:
    # Not by keras.export.ExportArchive: it writes every weight twice.
    served, used = tf.Module(), {}
    for name, graph in endpoints.items():
        setattr(served, name, graph.function)
        variables = graph.function.get_concrete_function().graph.variables
        used |= {id(variable): variable for variable in variables}
    served.used = list(used.values())
    concrete = {name: x.function.get_concrete_function() for name, x in signatures.items()}
    tf.saved_model.save(served, str(path), signatures=concrete)
    (path / EXTRA).mkdir(exist_ok=True)


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
    file, text = path / EXTRA / FILE_NAME, None
    if file.is_file():
        check_size(file.stat().st_size)
        text = file.read_text(encoding="utf-8")
    return OpenFile(text, lambda metadata: _function(path, metadata))


def _function(path: Path, metadata: Metadata) -> Run:
    return endpoint(tf.saved_model.load(str(path)), "serve")


def endpoint(loaded: Any, name: str) -> Run:
    """One endpoint of a loaded SavedModel, as a function of arrays."""

    def array(tensor: tf.Tensor) -> np.ndarray:
        # NumPy has no bfloat16 of its own.
        return (tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor).numpy()

    def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = getattr(loaded, name)(tf.convert_to_tensor(inputs))
        return {key: array(value) for key, value in outputs.items()}

    run.loaded = loaded  # its variables must outlive this call
    return run
