"""`keras-vmoe export`: a trained model as a SavedModel, an ONNX or a LiteRT file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    import keras

    from keras_vmoe import serving

_SYNOPSIS = "export MODEL TARGET [--format=saved_model|onnx|litert] [options]"
_TEXT = """
Writes a trained model for inference elsewhere, without Keras and this package, and runs what was
written beside Keras on random images before it is kept. MODEL is a .keras file or the workdir of a
run. A model with class names takes pixels from 0 to 255; as a SavedModel it takes images of any
size, as ONNX or LiteRT those of the size that it was trained on. Needs, but for a SavedModel:
pip install 'keras-vmoe[export]'.

Of a model of image-text pairs TARGET is a folder. A SavedModel has the signatures encode_image, of
such images, and encode_text, of strings: what loads it has to import tensorflow_text. As ONNX or
LiteRT (--format) the folder holds a file of each encoder, and the tokenizer.model that makes the
tokens of the second.

  keras-vmoe export workdir/quickstart-seed0 served/digits
  keras-vmoe export workdir/quickstart-seed0 digits.onnx --batch_size=dynamic --images_alone
  keras-vmoe export model.keras model.tflite
  keras-vmoe export model.keras small.tflite --precision=int8
  keras-vmoe export workdir/limoe/quickstart-seed0 served/limoe --batch_size=dynamic
"""
_FORMATS = ("saved_model", "onnx", "litert")
PRECISIONS = ("float32", "float16", "int8")
_BY_SUFFIX = {".onnx": "onnx", ".tflite": "litert"}


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_float(
        "capacity_factor", None, "Slots per choice (C). Default: the model's.", flag_values=values
    )
    flags.DEFINE_enum(
        "format", None, _FORMATS, "The format. Default: by TARGET's ending.", flag_values=values
    )
    flags.DEFINE_string(
        "batch_size", "1", "Images of a batch, or dynamic. Default: 1.", flag_values=values
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        PRECISIONS,
        "Of the weights in a LiteRT file. Default: float32.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "images_alone", False, "Route each image alone in larger batches too.", flag_values=values
    )
    flags.DEFINE_boolean(
        "verify", True, "Run the file beside Keras on random images.", flag_values=values
    )
    flags.DEFINE_boolean(
        "overwrite", False, "Replace what was exported to TARGET before.", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe export`.

    Args:
        argv: the words after `export`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that cannot be exported to the format.
        OSError: a model that is not there, or a target that is.
        ImportError: the format's packages are not installed.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe export ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "export")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if len(words) != 2:
        raise UsageError(
            f"export: give MODEL and TARGET. Received: {len(words)} words; see "
            "keras-vmoe export --help"
        )
    source, target = words
    command_line.require_folder("", target)
    batch_size = _batch_size(values.batch_size)
    suffix = Path(target).suffix
    if suffix and suffix not in _BY_SUFFIX and not values.format:
        raise UsageError(
            f"export: TARGET must end in {' or '.join(_BY_SUFFIX)}, or in nothing, which is the "
            f"folder of a SavedModel; with another ending give --format. Received: {target}"
        )
    file_format = values.format or _BY_SUFFIX.get(suffix, "saved_model")
    if values.precision != "float32" and file_format != "litert":
        raise UsageError(
            f"export: --precision={values.precision} is of --format=litert. "
            f"Received: --format={file_format}"
        )
    if Path(target).expanduser().exists() and not values.overwrite:
        raise FileExistsError(f"{target} exists; name another target, or give --overwrite")
    if not Path(source).expanduser().exists():
        raise FileNotFoundError(
            f"{source}: there is no such file or folder; give a run's workdir or a .keras file"
        )
    from keras_vmoe import models, serving

    model = _load(source, values.capacity_factor)
    alone = serving.images_alone(model) if values.images_alone else contextlib.nullcontext()
    how = (target, file_format, batch_size, values.verify, values.overwrite)
    pairs = isinstance(model, models.ImageTextModel)
    if pairs and values.precision != "float32":
        raise ValueError(
            f"--precision={values.precision} is of models of images alone; those of image-text "
            "pairs are written in float32"
        )
    with quiet_converters(values.debug), alone:
        facts = (
            serving.export_pairs(model, *how)
            if pairs
            else serving.export(model, *how, precision=values.precision)
        )
    _report(target, facts, values.verify)
    return 0


def _batch_size(word: str) -> int | None:
    if word == "dynamic":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(
            f"export: --batch_size must be a whole number of at least 1, or dynamic. "
            f"Received: --batch_size={word}"
        )
    return int(word)


def _load(source: str, capacity_factor: float | None) -> keras.Model:
    from keras_vmoe import models
    from keras_vmoe.trainers import keras_file, trained

    path = Path(source).expanduser()
    if path.is_file():
        model = keras_file.load(path)
    else:
        found = trained.load(path, pairs=None)
        pairs = found.tokenizer is not None
        model = (
            models.ImageTextModel(found.model, found.tokenizer.model)
            if pairs
            else found.classifier()
        )
    if capacity_factor is None:
        return model
    if isinstance(model, models.ImageTextModel):
        raise ValueError(
            f"--capacity_factor={capacity_factor:g} is of models of images alone; of image-text "
            "pairs it is trained with: bind from_variant.eval_capacity_factor of a preset, "
            "otherwise LIMoE.eval_capacity_factor or TwoTower.eval_capacity_factor"
        )
    return models.with_routing(model, capacity_factor=capacity_factor)


@contextlib.contextmanager
def quiet_converters(debug: bool) -> Iterator[None]:
    """Keeps what converters written in C++ say to their developers off the terminal."""
    if debug:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as unread:
        os.dup2(unread.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _report(target: str, facts: serving.Metadata | serving.PairMetadata, verified: bool) -> None:
    from keras_vmoe import serving

    path = Path(target).expanduser()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    pairs = isinstance(facts, serving.PairMetadata)
    for one in (facts.image, facts.text) if pairs else (facts,):
        _report_graph(one)
    check = "gives what Keras gives" if verified else "not run beside Keras"
    weights = "" if pairs or facts.precision == "float32" else f" in {facts.precision}"
    print(f"wrote    {target}: {facts.format}{weights}, {size / 1e6:,.1f} MB, {check}")
    if pairs and facts.imports:
        print(f"loading  needs import {', '.join(facts.imports)}")


def _report_graph(facts: serving.Metadata) -> None:
    def axes(shape: Sequence[int | None]) -> str:
        return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"

    values = f", {facts.value_range[0]:g} to {facts.value_range[1]:g}" if facts.value_range else ""
    classes = f", {len(facts.class_names)} classes" if facts.class_names else ""
    print(f"input    {facts.input_name} {axes(facts.input_shape)} {facts.input_dtype}{values}")
    print(f"output   {facts.output_name} {axes(facts.output_shape)}{classes}")
    if facts.experts_name:
        print(f"output   {facts.experts_name}: of each image, best first")
    if methods := sorted(set(facts.dispatch.values())):
        print(f"dispatch {', '.join(methods)} in {len(facts.dispatch)} MoE layers")
