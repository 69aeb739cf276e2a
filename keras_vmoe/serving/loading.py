"""Exported models, run in their own runtimes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require
from keras_vmoe.serving import litert_file, onnx_file, saved_model
from keras_vmoe.serving.metadata import Metadata

SUFFIXES = {".onnx": "onnx", ".tflite": "litert"}
MODULES: dict[str, ModuleType] = {
    "saved_model": saved_model,
    "onnx": onnx_file,
    "litert": litert_file,
}


class ExportedModel:
    """An exported model as a function of NumPy arrays.

    Args:
        path: the file or folder.
        metadata: its facts.

    Call arguments:
        inputs: as `metadata.input_shape` and `metadata.input_dtype` say.

    Returns:
        The output, an array.

    Raises:
        ValueError: inputs of another shape.
        ImportError: the runtime is not installed.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self.path = path
        self.metadata = metadata
        self._run = MODULES[metadata.format].open_function(path, metadata)

    def __call__(self, inputs: Any) -> np.ndarray:
        inputs = np.asarray(inputs, self.metadata.input_dtype)
        wanted = self.metadata.input_shape
        fits = inputs.ndim == len(wanted) and all(
            want in (None, got) for want, got in zip(wanted, inputs.shape, strict=True)
        )
        require(
            fits,
            f"inputs must have shape {wanted}, as {self.path.name} was exported. "
            f"Received: inputs of shape {inputs.shape}",
        )
        return self._run(inputs)


def exported_format(path: str | Path) -> str | None:
    """The format of an exported model by its name and what it holds; `None`: it is none.

    Example:

    >>> from keras_vmoe.serving.loading import exported_format
    >>> exported_format("model.tflite"), exported_format("model.keras")
    ('litert', None)
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return "saved_model"
    return SUFFIXES.get(path.suffix)


def load(path: str | Path) -> ExportedModel:
    """Loads what `export` wrote, to run it in its own runtime.

    Args:
        path: a SavedModel's folder, an `.onnx` or a `.tflite` file.

    Returns:
        An `ExportedModel`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is none of these, or was not written by `export`.
        ImportError: the runtime is not installed.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from keras_vmoe import models, serving
    >>> sizes = dict(image_size=16, patch_size=8, width=8, mlp_dim=8, num_heads=2)
    >>> classifier = models.Classifier(
    ...     models.ViT(**sizes, num_layers=1, num_classes=2), ["cat", "dog"]
    ... )
    >>> path = tempfile.mkdtemp() + "/served"
    >>> _ = serving.export(classifier, path, batch_size=None)
    >>> exported = serving.load(path)
    >>> exported.metadata.class_names, exported(np.zeros((3, 20, 24, 3))).shape
    (('cat', 'dog'), (3, 2))
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    found = exported_format(path)
    require(
        found is not None,
        f"path must be a SavedModel's folder, an .onnx or a .tflite file. Received: {path}",
    )
    text = MODULES[found].read_metadata(path)
    require(
        text is not None,
        f"path must be what keras_vmoe.serving.export wrote; it holds no metadata of it. "
        f"Received: {path}",
    )
    return ExportedModel(path, Metadata.from_json(text))
