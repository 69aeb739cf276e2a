"""ONNX files, made by tf2onnx and run by onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.serving import packages
from keras_vmoe.serving.graph import Graph
from keras_vmoe.serving.metadata import KEY, Metadata, OpenFile, Run, check_size

#: The newest that tf2onnx writes; onnxruntime 1.14 and later run it.
OPSET = 18


def write(graph: Graph, path: Path) -> None:
    """Writes a file with the metadata among its properties."""
    onnx, tf2onnx = packages.load("onnx"), packages.load("tf2onnx")
    with _quiet("tf2onnx"):
        model, _ = tf2onnx.convert.from_function(
            graph.function,
            [graph.spec],
            opset=OPSET,
            custom_op_handlers={"Erfc": (_write_erfc, [])},
        )
    onnx.helper.set_model_props(model, {KEY: graph.metadata.to_json()})
    if graph.metadata.batch_size is None:
        for end in (*model.graph.input, *model.graph.output):
            end.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)


def _write_erfc(context: Any, node: Any, name: str, args: list[Any]) -> None:
    """1 - erf(x): ONNX has no erfc, of which TensorFlow makes the exact GELU."""
    dtypes = [context.get_dtype(node.output[0])]
    shapes = [context.get_shape(node.output[0])]
    inputs, outputs = list(node.input), list(node.output)
    context.remove_node(node.name)
    erf = context.make_node("Erf", inputs, dtypes=dtypes, shapes=shapes)
    onnx = packages.load("onnx")
    one = np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtypes[0]))
    one = context.make_const(f"{name}_one", one)
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=outputs, dtypes=dtypes, shapes=shapes
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the words that a converter has for its developers."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_file(path: Path) -> OpenFile:
    """Opens an ONNX file; its session, which takes time to make, is that of the function too.

    Raises:
        ValueError: a file that onnxruntime cannot open.
        ImportError: it is not installed.
    """
    runtime = packages.load("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise ValueError(f"onnxruntime cannot open it: {error}") from error

    names = [output.name for output in session.get_outputs()]

    def load(metadata: Metadata) -> Run:
        return lambda inputs: dict(
            zip(names, session.run(names, {metadata.input_name: inputs}), strict=True)
        )

    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    check_size(len(text or ""))
    return OpenFile(text, load)
