"""TensorFlow SavedModels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_vmoe.serving.graph import Graph
from keras_vmoe.serving.metadata import FILE_NAME, Metadata

# Where TensorFlow lets others put files that it copies along.
_EXTRA = "assets.extra"


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


def read_metadata(path: Path) -> str | None:
    """The text of the metadata, if the folder has some."""
    file = path / _EXTRA / FILE_NAME
    return file.read_text(encoding="utf-8") if file.is_file() else None


def open_function(path: Path, metadata: Metadata) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a SavedModel as a function of arrays."""
    loaded = tf.saved_model.load(str(path))

    def run(inputs: np.ndarray) -> np.ndarray:
        outputs = loaded.serve(tf.convert_to_tensor(inputs))[metadata.output_name]
        # NumPy has no bfloat16 of its own.
        return (tf.cast(outputs, tf.float32) if outputs.dtype.size < 4 else outputs).numpy()

    run.loaded = loaded  # its variables must outlive this call
    return run
