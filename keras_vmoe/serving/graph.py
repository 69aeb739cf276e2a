"""The graph of a Keras model that is exported: one input, one output, no metrics."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_vmoe import layers, models, text
from keras_vmoe.ops.validation import require
from keras_vmoe.serving.metadata import Metadata
from keras_vmoe.serving.routing import fixed_dispatch


class Graph(NamedTuple):
    """What the writers of files are given.

    Attributes:
        model: whose weights the function holds.
        function: a traced `tf.function` from the input to `{output_name: output}`, and the experts
            of the images where the model routes whole ones.
        metadata: the facts of the file.
    """

    model: keras.Model
    function: Callable
    metadata: Metadata

    @property
    def spec(self) -> tf.TensorSpec:
        """Of the function's input."""
        facts = self.metadata
        return tf.TensorSpec(facts.input_shape, facts.input_dtype, name=facts.input_name)


@contextlib.contextmanager
def traced(
    model: keras.Model,
    file_format: str,
    batch_size: int | None,
    fixed_shapes: bool,
    precision: str = "float32",
) -> Iterator[Graph]:
    """Traces a model for export; a writer works within the `with` block.

    Args:
        model: a Keras model with one input and one output.
        file_format: for the metadata.
        batch_size: images of a batch; `None`: any number.
        fixed_shapes: the graph must not have shapes that depend on the data, and of its input only
            the number of images may be open.
        precision: that the file's weights will have.

    Raises:
        ValueError: a model that has not one input and one output, or open axes.
    """
    shape = _input_shape(model, batch_size, fixed_shapes)
    # Conditions are built in where a small device runs the file.
    small = file_format == "litert"
    dispatch = fixed_dispatch(model, batch_size, small) if fixed_shapes else _own_dispatch(model)
    routed = models.with_router_outputs(model) if models.routes_images(model) else None
    with dispatch as methods, layers.routing_metrics(False):
        metadata = _metadata(model, file_format, shape, methods, precision)
        spec = tf.TensorSpec(shape, metadata.input_dtype, name=metadata.input_name)

        def serve(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            if routed is None:
                return {metadata.output_name: model(inputs, training=False)}
            outputs = routed(inputs, training=False)
            return {
                metadata.output_name: outputs["logits"],
                metadata.experts_name: outputs["experts"],
            }

        function = tf.function(serve, input_signature=[spec], autograph=False)
        function.get_concrete_function()
        yield Graph(model, function, metadata)


@contextlib.contextmanager
def traced_texts(model: keras.Model, tokenizer: text.Tokenizer) -> Iterator[Graph]:
    """Traces an encoder of texts for a SavedModel, from strings; as `traced`.

    Args:
        model: from tokens `[b, t]` to embeddings.
        tokenizer: makes the tokens. Its ops and its vocabulary are in the graph.
    """
    with _own_dispatch(model) as methods, layers.routing_metrics(False):
        metadata = dataclasses.replace(
            _metadata(model, "saved_model", (None,), methods),
            input_name="texts",
            input_dtype="string",
        )

        def serve(texts: tf.Tensor) -> dict[str, tf.Tensor]:
            tokens = tokenizer(texts)
            words = tf.not_equal(tokens[:, 0], tokenizer.eos_id)
            message = "texts must not be empty"
            with tf.control_dependencies([tf.debugging.assert_equal(words, True, message)]):
                tokens = tf.identity(tokens)
            return {metadata.output_name: model(tokens, training=False)}

        spec = tf.TensorSpec((None,), tf.string, name="texts")
        function = tf.function(serve, input_signature=[spec], autograph=False)
        function.get_concrete_function()
        yield Graph(model, function, metadata)


def check_model(model: keras.Model) -> None:
    """Refuses what cannot be exported.

    Raises:
        ValueError: no Keras model, a model that is not built, or several inputs or outputs.
    """
    require(isinstance(model, keras.Model), f"model must be a Keras model. Received: {model!r}")
    ends = getattr(model, "inputs", None), getattr(model, "outputs", None)
    require(
        all(end is not None and len(end) == 1 for end in ends),
        "model must be a functional model, or a built sequential one, of one input and one output. "
        f"Received: {type(model).__name__} {model.name!r} with "
        f"{len(ends[0] or ())} inputs and {len(ends[1] or ())} outputs",
    )


def _input_shape(
    model: keras.Model, batch_size: int | None, fixed_shapes: bool
) -> tuple[int | None, ...]:
    shape = tuple(model.inputs[0].shape[1:])
    if fixed_shapes and isinstance(model, models.Classifier):
        # Its resizing is left to the caller: the file takes the size that the model inside takes.
        shape = tuple(model.model.inputs[0].shape[1:])
    require(
        not fixed_shapes or None not in shape,
        "model must have known axes but for the batch. "
        f"Received: an input of shape {(batch_size, *shape)}; export it as a saved_model, or build "
        "it on an Input of a known shape",
    )
    return (batch_size, *shape)


@contextlib.contextmanager
def _own_dispatch(model: keras.Model) -> Iterator[dict[str, str]]:
    found = models.moe_layers(model) + models.image_moe_layers(model)
    yield {layer.name: layer.dispatch for layer in found}


def _output_name(model: keras.Model) -> str:
    if getattr(model, "gives_embeddings", False):
        return "embeddings"
    return "logits" if getattr(model, "gives_logits", False) else "outputs"


def _metadata(
    model: keras.Model,
    file_format: str,
    shape: tuple[int | None, ...],
    dispatch: dict[str, str],
    precision: str = "float32",
) -> Metadata:
    output = tuple(model.outputs[0].shape[1:])
    inner = model.model if isinstance(model, models.Classifier) else model
    return Metadata(
        format=file_format,
        input_name=model.inputs[0].name,
        input_shape=shape,
        input_dtype=keras.backend.standardize_dtype(model.inputs[0].dtype),
        output_name=_output_name(model),
        output_shape=(shape[0], *output),
        value_range=getattr(model, "input_range", None),
        class_names=tuple(model.class_names) if isinstance(model, models.Classifier) else (),
        dispatch=dispatch,
        precision=precision,
        experts_name="experts" if models.routes_images(model) else None,
        superclasses=tuple(getattr(inner, "superclasses", None) or ()),
    )
