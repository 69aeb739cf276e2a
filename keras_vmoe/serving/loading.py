"""Exported models, run in their own runtimes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require
from keras_vmoe.serving import litert_file, onnx_file, saved_model
from keras_vmoe.serving.metadata import PAIRS_FILE_NAME, Metadata, OpenFile, Run

SUFFIXES = {".onnx": "onnx", ".tflite": "litert"}
MODULES: dict[str, ModuleType] = {
    "saved_model": saved_model,
    "onnx": onnx_file,
    "litert": litert_file,
}


class ExportedModel:
    """An exported model as a function of NumPy arrays; `load` makes it.

    Args:
        path: the file or folder.
        metadata: its facts.
        function: runs it, from the input to outputs by name.

    Call arguments:
        inputs: as `metadata.input_shape` and `metadata.input_dtype` say.

    Returns:
        The output, an array.

    Raises:
        ValueError: inputs of another shape.
    """

    def __init__(self, path: Path, metadata: Metadata, function: Run) -> None:
        self.path = path
        self.metadata = metadata
        self._run = function

    def __call__(self, inputs: Any) -> np.ndarray:
        return self.outputs(inputs)[self.metadata.output_name]

    def outputs(self, inputs: Any) -> dict[str, np.ndarray]:
        """All outputs by name; of a model that routes whole images their `"experts"` are one.

        Args:
            inputs: as for a call.

        Raises:
            ValueError: inputs of another shape.
        """
        dtype = self.metadata.input_dtype
        # Strings of any length.
        inputs = np.asarray(inputs, object if dtype == "string" else dtype)
        wanted = self.metadata.input_shape
        fits = inputs.ndim == len(wanted) and all(
            want in (None, got) for want, got in zip(wanted, inputs.shape, strict=True)
        )
        require(
            fits,
            f"inputs must have shape {wanted}, as {self.path.name} was exported. "
            f"Received: inputs of shape {inputs.shape}",
        )
        return dict(self._run(inputs))


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


def pairs_file(path: Path) -> Path:
    """Where an exported model of image-text pairs has its metadata."""
    if (path / "saved_model.pb").is_file():
        return path / saved_model.EXTRA / PAIRS_FILE_NAME
    return path / PAIRS_FILE_NAME


def holds_pairs(path: str | Path) -> bool:
    """Whether `export_pairs` wrote what is there.

    Example:

    >>> from keras_vmoe.serving.loading import holds_pairs
    >>> holds_pairs("model.tflite")
    False
    """
    return pairs_file(Path(path)).is_file()


def load(path: str | Path) -> ExportedModel:
    """Loads what `export` wrote, to run it in its own runtime.

    Args:
        path: a SavedModel's folder, an `.onnx` or a `.tflite` file.

    Returns:
        An `ExportedModel`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is none of these, was not written by `export`, or its metadata was altered.
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
    metadata, opened = open_exported(path)
    return ExportedModel(path, metadata, opened.load(metadata))


def open_exported(path: Path) -> tuple[Metadata, OpenFile]:
    """Opens what `export` wrote, and reads what it says of itself.

    Raises:
        ValueError: as for `load`.
        ImportError: onnxruntime is not installed.
    """
    require(
        not holds_pairs(path),
        f"{path} holds an encoder of images and one of texts, which give embeddings: load it with "
        "serving.load_pairs; zero-shot classes are told by keras-vmoe zeroshot, of the workdir or "
        "the .keras file that it was made of",
    )
    found = exported_format(path)
    require(
        found is not None,
        f"path must be a SavedModel's folder, an .onnx or a .tflite file. Received: {path}",
    )
    try:
        opened = MODULES[found].open_file(path)
        metadata = None if opened.metadata is None else Metadata.from_json(opened.metadata)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {found}: {error}; export it again") from error
    require(
        metadata is not None,
        f"path must be what keras_vmoe.serving.export wrote; it holds no metadata of it. "
        f"Received: {path}",
    )
    require(
        metadata.format == found,
        f"{path} is in format {found!r}, but its metadata says format={metadata.format!r}; "
        "export it again",
    )
    return metadata, opened
