"""LiteRT (.tflite) files of built-in operations alone."""

from __future__ import annotations

import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_vmoe.serving import packages, saved_model
from keras_vmoe.serving.graph import Graph
from keras_vmoe.serving.metadata import FILE_NAME, Metadata, OpenFile, Run, check_size

#: What the weights of a file are held in, beside those that the model computes in.
PRECISIONS = ("float32", "float16", "int8")
_SIGNATURE = "serving_default"
_MISSING_OP = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")


def write(graph: Graph, path: Path) -> None:
    """Writes a file with the signature `serving_default`, and the metadata in a zip behind it.

    Raises:
        ValueError: an operation that LiteRT does not have built in.
    """
    with tempfile.TemporaryDirectory() as folder:
        # By way of a SavedModel the variables become constants, and the signature keeps its names.
        saved_model.write(graph, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[_SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        _set_precision(converter, graph.metadata.precision)
        content = _convert(converter)
    custom = custom_operations(content)
    if custom:
        raise ValueError(_not_built_in(custom))
    path.write_bytes(content)
    # LiteRT reads the model from the front and a zip is found from the end, as in TFLite Metadata.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FILE_NAME, graph.metadata.to_json())
        if graph.metadata.class_names:
            archive.writestr("labels.txt", "\n".join(graph.metadata.class_names) + "\n")


def _set_precision(converter: Any, precision: str) -> None:
    if precision == "float32":
        return
    # Of weights alone ("dynamic range"): activations stay floats, so no images are needed here.
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]


def _convert(converter: Any) -> bytes:
    try:
        return converter.convert()
    except Exception as error:  # its class is private
        missing = sorted(set(_MISSING_OP.findall(str(error))))
        if not missing:
            raise
        raise ValueError(_not_built_in(missing)) from error


def _not_built_in(names: list[str]) -> str:
    return (
        f"model must consist of operations that LiteRT has built in. It has none for: "
        f"{', '.join(names)}; export the model as onnx or saved_model, or take those out of it"
    )


def custom_operations(content: bytes) -> list[str]:
    """The operations of a LiteRT model that are not built in, Flex ones among them."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    custom = [code.CustomCode() for code in codes if code.CustomCode() is not None]
    return sorted(name.decode() for name in custom)


def open_file(path: Path) -> OpenFile:
    """Opens a LiteRT file.

    Raises:
        ValueError: a damaged zip, or metadata that is too large.
    """
    text = _read_metadata(path) if zipfile.is_zipfile(path) else None
    return OpenFile(text, lambda metadata: _function(path, metadata))


def _read_metadata(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if FILE_NAME not in archive.namelist():
                return None
            # No more than the archive says of it is unpacked.
            check_size(archive.getinfo(FILE_NAME).file_size)
            return archive.read(FILE_NAME).decode("utf-8")
    except (zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise ValueError(f"the zip behind the model is damaged: {error}") from error


def _function(path: Path, metadata: Metadata) -> Run:
    module = packages.load("ai_edge_litert.interpreter")
    interpreter = module.Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner(_SIGNATURE)
    return lambda inputs: runner(**{metadata.input_name: inputs})
