"""Keras' own layers for `layer_profile`: weights as Keras counts them, MACs by their arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_vmoe.analysis.layer_rows import (
    LayerCall,
    count_params,
    known_shape,
    layer_profile,
    unknown_shape,
)
from keras_vmoe.analysis.rows import LayerProfile


def _no_macs(layer: Any, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, tuple(call.shape or ()), count_params(layer))


@layer_profile.register(layers.LayerNormalization)
def _(layer: layers.LayerNormalization, call: LayerCall) -> LayerProfile:
    pointwise = 5 * math.prod(call.shape) if known_shape(call) else 0
    return dataclasses.replace(_no_macs(layer, call), pointwise=pointwise)


for _cls in (
    layers.RMSNormalization,
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.Normalization,
    layers.PReLU,
):
    layer_profile.register(_cls)(_no_macs)


@layer_profile.register(layers.Embedding)
def _(layer: layers.Embedding, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, (*(call.shape or ()), layer.output_dim), count_params(layer))


def _rule(*classes: type) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Registers classes whose MACs are `function(layer, input shape, output shape)`."""

    def row(function: Callable[..., int]) -> Callable[[Any, LayerCall], LayerProfile]:
        def profile(layer: Any, call: LayerCall) -> LayerProfile:
            if not known_shape(call):
                return unknown_shape(layer)
            shapes = [(None, *shape) for shape in call.shapes]
            outputs = layer.compute_output_shape(*shapes[: _inputs(layer)])[1:]
            macs = function(layer, call.shapes, outputs)
            return LayerProfile(layer.name, tuple(outputs), count_params(layer), macs=macs)

        return profile

    def register(function: Callable[..., int]) -> Callable[..., int]:
        for cls in classes:
            layer_profile.register(cls)(row(function))
        return function

    return register


def _inputs(layer: Any) -> int:
    return 2 if isinstance(layer, (layers.MultiHeadAttention, layers.GroupQueryAttention)) else 1


def _size(weight: keras.Variable) -> int:
    return math.prod(weight.shape)


@_rule(layers.Dense)
def _dense(layer: layers.Dense, inputs: list[Any], outputs: Any) -> int:
    return math.prod(outputs) * inputs[0][-1]


@_rule(layers.EinsumDense)
def _einsum_dense(layer: layers.EinsumDense, inputs: list[Any], outputs: Any) -> int:
    """The product of all axes that the equation names; those of an ellipsis are the input's."""
    terms = layer.equation.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, ((1, *inputs[0]), tuple(layer.kernel.shape)), strict=True):
        head, _, tail = term.partition("...")
        end = len(shape) - len(tail)
        sizes.update(zip(head + tail, shape[: len(head)] + shape[end:], strict=True))
        if "..." in term:
            sizes["..."] = math.prod(shape[len(head) : end])
    return math.prod(sizes.values())


def _spatial(layer: Any, shape: Any) -> int:
    return math.prod(shape[1:] if layer.data_format == "channels_first" else shape[:-1])


@_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _convolution(layer: Any, inputs: list[Any], outputs: Any) -> int:
    return _spatial(layer, outputs) * _size(layer.kernel)


@_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed(layer: Any, inputs: list[Any], outputs: Any) -> int:
    return _spatial(layer, inputs[0]) * _size(layer.kernel)


@_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable(layer: Any, inputs: list[Any], outputs: Any) -> int:
    kernels = _size(layer.depthwise_kernel) + _size(layer.pointwise_kernel)
    return _spatial(layer, outputs) * kernels


@_rule(layers.MultiHeadAttention, layers.GroupQueryAttention)
def _attention(layer: Any, inputs: list[Any], outputs: Any) -> int:
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    key = inputs[2] if len(inputs) > 2 else value
    queries, keys = math.prod(query[:-1]), math.prod(value[:-1])
    grouped = isinstance(layer, layers.GroupQueryAttention)
    heads = layer.num_query_heads if grouped else layer.num_heads
    kv_heads = layer.num_key_value_heads if grouped else heads
    key_dim = layer.head_dim if grouped else layer.key_dim
    value_dim = layer.head_dim if grouped else layer.value_dim
    projections = queries * heads * (query[-1] * key_dim + value_dim * outputs[-1])
    projections += keys * kv_heads * (key[-1] * key_dim + value[-1] * value_dim)
    return projections + queries * keys * heads * (key_dim + value_dim)
