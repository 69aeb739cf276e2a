"""Export of a model to a file that runs without Keras and without this package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras

from keras_vmoe import models
from keras_vmoe.ops.validation import require, require_choice, require_positive_int
from keras_vmoe.serving import litert_file, saved_model
from keras_vmoe.serving.graph import check_model, traced
from keras_vmoe.serving.loading import MODULES, SUFFIXES, load, open_exported
from keras_vmoe.serving.metadata import Metadata
from keras_vmoe.serving.targets import move
from keras_vmoe.serving.verification import compare_with_keras, compute_dtypes

FORMATS = tuple(MODULES)
_DTYPES = {
    "saved_model": ("float32", "float64", "bfloat16", "float16"),
    "onnx": ("float32", "float64"),
    "litert": ("float32",),
}
# What protocol buffers and flat buffers hold.
_MAX_BYTES = 2 * 10**9


def export(
    model: keras.Model,
    path: str | Path,
    format: str = "saved_model",
    batch_size: int | None = 1,
    verify: bool = True,
    overwrite: bool = False,
    precision: str = "float32",
) -> Metadata:
    """Exports a model for inference, and runs what was written beside Keras.

    The graph holds no routing metrics, no losses and no noise. It routes as the model does out of
    training, in groups of `images_per_group`: with `batch_size=1`, the default, the answer to an
    image depends on that image alone; export within `images_alone(model)` for the same in larger
    batches. What tokens are moved by is chosen anew where the format wants shapes that do not
    depend on the data (ONNX, LiteRT): `"einsum"` or `"gather"` in place of `"grouped"`.

    A `MobileVMoE` that routes whole images tells their experts beside the logits, as the output
    `"experts"`. With `batch_size=1` the file reads the weights of the chosen experts alone. For
    LiteRT they are behind conditions, or, where they are few, gathered (`metadata.dispatch`).

    A `Classifier` takes pixels from 0 to 255 in each format. As a SavedModel it takes images of
    any size; ONNX and LiteRT files take the size that the model inside was made for.

    Args:
        model: a functional Keras model of one input and one output, with or without MoE layers.
        path: a folder for `"saved_model"`, an `.onnx` or a `.tflite` file for the others.
        format: `"saved_model"`, `"onnx"` (opset 18, onnxruntime) or `"litert"` (built-in
            operations alone).
        batch_size: images of a batch; `None`: any number.
        verify: run the file in its own runtime on random inputs; it may differ from Keras by no
            more than rounding (1e-5 of the largest output in float32).
        overwrite: replace what `export` wrote there before, and nothing else.
        precision: of the weights in a LiteRT file. `"float16"` halves the file and `"int8"`
            quarters it: 8 bits for each weight of a large matrix, one scale a column, activations
            remain floats ("dynamic range"). `verify` then allows 0.5% and 10% of the largest
            output.

    Returns:
        The `Metadata` that the file holds: its input and output, class names, value range.

    Raises:
        ValueError: an unknown format or precision, another precision than float32 for a format
            that is not `"litert"`, a path of another format, a model that has several inputs or
            outputs, open axes, operations or a dtype that the format does not take.
        FileExistsError: there is something at `path`; with `overwrite`, something that `export` did
            not write.
        ImportError: ONNX and LiteRT need `pip install 'keras-vmoe[export]'`.
        RuntimeError: the file does not give what Keras gives.

    Example:

    >>> import tempfile
    >>> from keras_vmoe import models, serving
    >>> model = models.VMoE(
    ...     image_size=16,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=2,
    ...     num_experts=4,
    ... )
    >>> metadata = serving.export(model, tempfile.mkdtemp() + "/model.onnx", format="onnx")
    >>> metadata.input_shape, metadata.value_range, metadata.dispatch["encoder_block_1_moe"]
    ((1, 16, 16, 3), (-1.0, 1.0), 'gather')
    """
    check_arguments(model, format, batch_size)
    _check_precision(precision, format)
    target = _check_target(path, format, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that it can be renamed; a file that fails the comparison is never there.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        draft = Path(folder) / target.name
        with traced(model, format, batch_size, format != "saved_model", precision) as graph:
            MODULES[format].write(graph, draft)
        if verify:
            compare_with_keras(model, load(draft))
        move(draft, target)
    return graph.metadata


def check_arguments(model: keras.Model, file_format: str, batch_size: int | None) -> None:
    """Refuses what cannot be exported.

    Raises:
        ValueError: as for `export`.
    """
    require_choice("format", file_format, FORMATS)
    if batch_size is not None:
        require_positive_int("batch_size", batch_size)
    backend = keras.backend.backend()
    require(
        backend == "tensorflow",
        f"KERAS_BACKEND must be 'tensorflow' for export; a .keras file of another backend loads "
        f"there as it is. Received: KERAS_BACKEND={backend!r}",
    )
    require(
        not isinstance(model, models.ImageTextModel),
        "model must have one input and one output; one of image-text pairs has two encoders, which "
        f"serving.export_pairs writes. Received: a {type(model).__name__}",
    )
    check_model(model)
    refused = sorted(compute_dtypes(model) - set(_DTYPES[file_format]))
    require(
        not refused,
        f"model must compute in {' or '.join(_DTYPES[file_format])} for format={file_format!r}. "
        f"Received: layers in {', '.join(refused)}; build it with dtype='float32' and set_weights, "
        "or export it as a saved_model",
    )
    size = 4 * model.count_params()
    require(
        file_format == "saved_model" or size < _MAX_BYTES,
        f"model must have less than 2 GB of weights for format={file_format!r}. "
        f"Received: {size / 1e9:.1f} GB; export it as a saved_model",
    )


def _check_precision(precision: str, file_format: str) -> None:
    require_choice("precision", precision, litert_file.PRECISIONS)
    require(
        precision == "float32" or file_format == "litert",
        f"precision={precision!r} is of format='litert'. Received: format={file_format!r}; leave "
        "precision out, or build the model with another dtype policy for a saved_model",
    )


def _check_target(path: str | Path, file_format: str, overwrite: bool) -> Path:
    target = Path(path).expanduser()
    wanted = {value: suffix for suffix, value in SUFFIXES.items()}.get(file_format)
    if wanted is not None:
        good = target.suffix == wanted
        require(good, f"path must end in {wanted} for format={file_format!r}. Received: {path}")
    else:
        good = target.suffix not in (*SUFFIXES, ".keras")
        require(good, f"path must be a folder for format={file_format!r}. Received: {path}")
    if not target.exists():
        return target
    if not overwrite:
        raise FileExistsError(f"{target} exists; name another target, or overwrite it")
    _check_replaceable(target, file_format)
    return target


def _check_replaceable(target: Path, file_format: str) -> None:
    """Refuses to replace what `export` did not write: other files are not ours to delete."""
    words = f"{target} exists and is no exported model in format={file_format!r}"
    try:
        metadata, _ = open_exported(target)
    except ValueError as error:
        raise FileExistsError(
            f"{words}, so it is not overwritten; name another target ({error})"
        ) from error
    if metadata.format != file_format:
        raise FileExistsError(f"{words}, so it is not overwritten; name another target")
    foreign = saved_model.foreign_files(target) if target.is_dir() else []
    if foreign:
        raise FileExistsError(
            f"{target} holds {foreign[0]!r}, which is not of the exported model, so it is not "
            "overwritten; move that elsewhere, or name another target"
        )
