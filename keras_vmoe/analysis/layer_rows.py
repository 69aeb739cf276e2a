"""Layers that are profiled as they stand in a built model: a function per layer class.

`layer_profile` is a `functools.singledispatch`: `layer_profile.register(MyLayer)` teaches it a
class. A layer that it does not know is the sum of the layers inside it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.analysis import parts
from keras_vmoe.analysis.model_rows import closed_form, has_closed_form
from keras_vmoe.analysis.routing_costs import Counting, Group, call_settings, routing_cost
from keras_vmoe.analysis.rows import LayerProfile

Shape = tuple[int | None, ...]


class LayerCall:
    """One call of a layer, as `layer_profile` sees it.

    Attributes:
        shape: of the first input, for one image (without the batch axis); `None` if not known.
        shapes: of all inputs.
        arguments: what else the layer was called with, tensors left out.
        counting: how capacity is counted.
    """

    def __init__(
        self,
        shapes: list[Shape],
        arguments: dict[str, Any],
        counting: Counting,
        seen: set[int],
    ) -> None:
        self.shapes = shapes
        self.shape = shapes[0] if shapes else None
        self.arguments = arguments
        self.counting = counting
        self._seen = seen

    def of(self, layer: keras.layers.Layer, *shapes: Shape, **arguments: Any) -> LayerProfile:
        """The row of a layer that this call calls; its weights count only the first time."""
        again = id(layer) in self._seen
        self._seen.add(id(layer))
        row = layer_profile(layer, LayerCall(list(shapes), arguments, self.counting, self._seen))
        return row.without_params() if again else row


def graph_rows(model: keras.Model, counting: Counting) -> tuple[LayerProfile, ...]:
    """A row per layer of a model that is built: of its graph, or else of the layers it holds."""
    call = LayerCall([], {}, counting, set())
    if _is_graph(model):
        rows = _graph_rows(model, call)
    else:
        whole = layer_profile.dispatch(keras.layers.Layer)(model, call)
        rows = [*whole.parts, LayerProfile(model.name, note=whole.note)]
    return tuple(row for row in rows if row.counts)


def _is_graph(model: Any) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "_nodes_by_depth")


def _graph_rows(model: keras.Model, call: LayerCall) -> list[LayerProfile]:
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    rows, copies = [], 1
    # Private names of Keras; tests/analysis/test_layer_rows.py fails loudly when they change.
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            # From one of these to the other, each image is there once for each member.
            if isinstance(node.operation, layers.RepeatMembers):
                copies *= node.operation.num_members
            elif isinstance(node.operation, layers.SplitMembers):
                copies //= node.operation.num_members
            if not node.is_input:
                rows += [row.times(copies) for row in _node_rows(node, call)]
    return rows


def _node_rows(node: Any, call: LayerCall) -> list[LayerProfile]:
    """The row of a node; those of a model inside a model stand in line with the others."""
    operation = node.operation
    if not isinstance(operation, keras.layers.Layer):
        kind = type(operation).__name__
        uncounted = kind in ("Matmul", "Einsum", "Dot", "Tensordot")
        note = f"the MACs of operation {kind} are not counted"
        return [LayerProfile(operation.name, note=note)] if uncounted else []
    shapes = [tuple(tensor.shape[1:]) for tensor in node.input_tensors]
    row = call.of(operation, *shapes, **_arguments(node))
    if not isinstance(operation, keras.Model):
        return [row]
    return [dataclasses.replace(part, name=f"{row.name}/{part.name}") for part in row.parts]


def _arguments(node: Any) -> dict[str, Any]:
    """What a layer was called with beside tensors, which Keras allows by name only."""
    return {
        name: value
        for name, value in node.arguments.kwargs.items()
        if not any(keras.backend.is_keras_tensor(leaf) for leaf in keras.tree.flatten(value))
    }


@functools.singledispatch
def layer_profile(layer: keras.layers.Layer, call: LayerCall) -> LayerProfile:
    """The row of a layer in one of its calls.

    Args:
        layer: a built layer.
        call: how it is called; `call.of(sublayer, shape)` gives the rows of layers inside it.

    Returns:
        A `LayerProfile`. A class that is not registered is the sum of the layers it holds, each
        called once, at the shape that it was built for; weights of its own have no MACs.

    Example:

    >>> import keras
    >>> from keras_vmoe import analysis
    >>> class Twice(keras.layers.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.dense = keras.layers.Dense(4)
    ...
    ...     def call(self, x):
    ...         return self.dense(self.dense(x))
    >>> @analysis.layer_profile.register(Twice)
    ... def _(layer, call):
    ...     rows = [call.of(layer.dense, call.shape), call.of(layer.dense, (4,))]
    ...     return analysis.LayerProfile.whole(layer.name, (4,), rows)
    >>> x = keras.Input((4,))
    >>> analysis.profile(keras.Model(x, Twice()(x))).macs
    32
    """
    inside = list(layer._flatten_layers(include_self=False, recursive=False))
    rows = [call.of(sublayer, *_built_shapes(sublayer)) for sublayer in inside]
    known = {id(weight) for sublayer in inside for weight in sublayer.weights}
    own = sum(math.prod(w.shape) for w in layer.weights if id(w) not in known)
    if own:
        rows.append(LayerProfile("weights", params=own))
    if not layer.weights:
        return LayerProfile(layer.name)
    note = f"{type(layer).__name__} is not known"
    if any(row.macs for row in rows):
        note += ": each layer inside counts once, at the shape that it was built for"
    else:
        note += ": its MACs are not counted"
    return LayerProfile.whole(layer.name, (), rows, note)


def _built_shapes(layer: keras.layers.Layer) -> list[Shape]:
    """The shapes that a layer was built for, without the batch axis."""
    config = layer.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input_shape": config.get("input_shape")}
    return [tuple(shape[1:]) for shape in shapes.values() if isinstance(shape, (tuple, list))]


def count_params(layer: keras.layers.Layer) -> int:
    """Parameters as Keras counts them, 0 for a layer that is not built."""
    return sum(math.prod(weight.shape) for weight in layer.weights)


def unknown_shape(layer: keras.layers.Layer) -> LayerProfile:
    """The row of a layer whose input has sides that are not known: weights, no MACs."""
    return LayerProfile(layer.name, params=count_params(layer), note=_UNKNOWN_SHAPE)


_UNKNOWN_SHAPE = "its MACs are not counted: the shape of its input is not known"


def known_shape(call: LayerCall) -> bool:
    """Whether all sides of the first input are known, but the batch."""
    return call.shape is not None and None not in call.shape


@layer_profile.register(keras.Model)
def _(model: keras.Model, call: LayerCall) -> LayerProfile:
    if has_closed_form(type(model)):
        rows = closed_form(type(model), model.arguments, call.counting)
    elif _is_graph(model):
        rows = _graph_rows(model, call)
    else:
        return layer_profile.dispatch(keras.layers.Layer)(model, call)
    return LayerProfile.whole(model.name, tuple(model.output_shape[1:]), rows)


@layer_profile.register(layers.PatchEmbedding)
def _(layer: layers.PatchEmbedding, call: LayerCall) -> LayerProfile:
    if not known_shape(call):
        return unknown_shape(layer)
    height, width, channels = call.shape
    return parts.patch_embedding(
        layer.name, (height, width), layer.patch_size, channels, layer.width
    )


@layer_profile.register(layers.ClassToken)
def _(layer: layers.ClassToken, call: LayerCall) -> LayerProfile:
    if not known_shape(call):
        return LayerProfile(layer.name, params=count_params(layer))
    return parts.class_token(layer.name, call.shape[0] + 1, call.shape[1])


@layer_profile.register(layers.PositionEmbedding)
def _(layer: layers.PositionEmbedding, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, call.shape or (), count_params(layer))


@layer_profile.register(layers.TextEmbedding)
def _(layer: layers.TextEmbedding, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, (*(call.shape or ()), layer.width), count_params(layer))


@layer_profile.register(layers.LogitScale)
def _(layer: layers.LogitScale, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, params=count_params(layer))


Row = Callable[[Any, LayerCall, int, int], LayerProfile]


def _of_tokens(cls: type) -> Callable[[Row], Row]:
    """Registers `function(layer, call, tokens, width)`.

    Where the number of tokens is not known it is called with 1 and its MACs are struck out.
    """

    def register(function: Row) -> Row:
        def row(layer: Any, call: LayerCall) -> LayerProfile:
            if call.shape is None or len(call.shape) < 1 or call.shape[-1] is None:
                return unknown_shape(layer)
            *sides, width = call.shape
            known = None not in sides
            counted = function(layer, call, math.prod(sides) if known else 1, width)
            return counted if known else counted.without_macs(_UNKNOWN_SHAPE)

        layer_profile.register(cls)(row)
        return function

    return register


@_of_tokens(layers.MLP)
def _mlp(layer: layers.MLP, call: LayerCall, tokens: int, width: int) -> LayerProfile:
    row = parts.mlp(layer.name, tokens, width, layer.hidden_dim)
    return dataclasses.replace(row, output_shape=call.shape)


@_of_tokens(layers.MoEMLP)
def _moe_mlp(layer: layers.MoEMLP, call: LayerCall, tokens: int, width: int) -> LayerProfile:
    cost = routing_cost(
        type(layer.router),
        call_settings(layer.router, call.arguments),
        Group(layer.images_per_group, tokens, width),
        call.counting,
    )
    e = layer.router.num_experts
    return parts.mixture(layer.name, tokens, width, layer.hidden_dim, e, cost)


@layer_profile.register(layers.ImageRouter)
def _(layer: layers.ImageRouter, call: LayerCall) -> LayerProfile:
    width = layer.kernel.shape[0]
    return parts.dense(layer.name, (), width, layer.num_experts, layer.use_bias)


@_of_tokens(layers.ImageMoEMLP)
def _image_moe_mlp(
    layer: layers.ImageMoEMLP, call: LayerCall, tokens: int, width: int
) -> LayerProfile:
    # The plan that it is called with begins with the experts of an image.
    k = call.shapes[1][0] if len(call.shapes) > 1 else 1
    cost = parts.RoutingCost(0, 0, k * tokens, k)
    return parts.mixture(layer.name, tokens, width, layer.hidden_dim, layer.num_experts, cost)


@_of_tokens(layers.EncoderBlock)
def _encoder_block(
    layer: layers.EncoderBlock, call: LayerCall, tokens: int, width: int
) -> LayerProfile:
    row = call.of(layer.mlp, (tokens, width), *call.shapes[1:], **call.arguments)
    segments = call.arguments.get("segments")
    return parts.encoder_block(
        layer.name, tokens, width, layer.num_heads, layer.qk_norm, row, segments
    )


@_of_tokens(layers.AttentionPooling)
def _attention_pooling(
    layer: layers.AttentionPooling, call: LayerCall, tokens: int, width: int
) -> LayerProfile:
    return parts.attention_pooling(
        layer.name, tokens, width, layer.num_heads, layer.mlp_dim, layer.qk_norm
    )
