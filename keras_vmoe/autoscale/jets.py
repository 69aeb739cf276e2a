"""Values with their derivatives along a curve, carried forward through a network together.

A jet is the value of a function of one variable with its first, or first and second derivatives,
one after the other on the first axis: `[orders * b, ...]`. Linear maps take all of them as more
images; only GELU and attention need rules of their own. One pass gives exact derivatives, whatever
the number of outputs, without the memory of a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_vmoe.autoscale.network import Tensors

# Attention scores of so many windows and heads at a time as make this many numbers: they stay in
# the cache, and below the size at which glibc takes every tensor anew from the system.
SCORES_AT_ONCE = 3 * 2**19


def in_pieces(function: Callable[..., Sequence[tf.Tensor]], *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Applies a function of matrices `[m, t, f]` to a few of them at a time.

    Args:
        function: of as many tensors; it gives tensors `[m, t, f]`.
        *tensors: each `[b, m, t, f]`.

    Returns:
        What it gives, put together to `[b, m, t, f]`.
    """
    shape = tensors[0].shape
    count, scores = shape[0] * shape[1], shape[2] * shape[2]
    size = max(1, min(count, SCORES_AT_ONCE // scores))
    sizes = [size] * (count // size) + [count % size] * (count % size > 0)
    pieces = [tf.split(tf.reshape(x, (count, *shape[2:])), sizes) for x in tensors]
    found = [function(*some) for some in zip(*pieces, strict=True)]
    return [tf.reshape(tf.concat(parts, 0), shape) for parts in zip(*found, strict=True)]


class JetArithmetic:
    """The network without LayerNorms, on jets.

    Args:
        order: of the highest derivative, 1 or 2.
    """

    def __init__(self, order: int):
        self.order = order

    def split(self, jet: tf.Tensor) -> list[tf.Tensor]:
        """The value and its derivatives, each `[b, ...]`."""
        return tf.split(jet, self.order + 1)

    def linear(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """The product with a kernel; a bias is added to the value alone."""
        y = tf.tensordot(x, weights[f"{name}/kernel"], 1)
        bias = weights.get(f"{name}/bias")
        if bias is None:
            return y
        value, *derivatives = self.split(y)
        return tf.concat([value + bias, *derivatives], 0)

    def norm(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """Nothing: curves are measured without LayerNorms."""
        return x

    def gelu(self, x: tf.Tensor) -> tf.Tensor:
        """x times the normal distribution's share below x."""
        value, *derivatives = self.split(x)
        below = 0.5 + 0.5 * tf.math.erf(value * math.sqrt(0.5))
        density = tf.exp(-0.5 * value * value) / math.sqrt(2 * math.pi)
        slope = below + value * density
        result = [value * below, slope * derivatives[0]]
        if self.order == 2:
            bend = density * (2 - value * value)
            result.append(bend * derivatives[0] ** 2 + slope * derivatives[1])
        return tf.concat(result, 0)

    def attend(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """Softmax attention by the rules of products and of quotients."""
        attend = _attend_first if self.order == 1 else _attend_second
        jets = [order for tensor in (query, key, value) for order in self.split(tensor)]
        return tf.concat(in_pieces(attend, *jets), 0)


def _attend_first(
    q0: tf.Tensor, q1: tf.Tensor, k0: tf.Tensor, k1: tf.Tensor, v0: tf.Tensor, v1: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    attention = tf.nn.softmax(tf.matmul(q0, k0, transpose_b=True))
    # Both terms of the product rule by one matrix product.
    change = tf.matmul(tf.concat([q1, q0], -1), tf.concat([k0, k1], -1), transpose_b=True)
    weighted = attention * change
    # The attention's derivative is `weighted` less its sum over keys times the attention: the sum
    # comes with the product, by a column of ones.
    both = tf.matmul(attention, tf.concat([v0, v1], -1))
    moved = tf.matmul(weighted, tf.concat([v0, tf.ones_like(v0[..., :1])], -1))
    result, carried = tf.split(both, 2, -1)
    moved, mean = tf.split(moved, [v0.shape[-1], 1], -1)
    return result, moved - mean * result + carried


def _attend_second(*jets: tf.Tensor) -> tuple[tf.Tensor, ...]:
    q0, q1, q2, k0, k1, k2, v0, v1, v2 = jets

    def scores(left: list[tf.Tensor], right: list[tf.Tensor]) -> tf.Tensor:
        return tf.matmul(tf.concat(left, -1), tf.concat(right, -1), transpose_b=True)

    def mean(x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(attention * x, -1, keepdims=True)

    attention = tf.nn.softmax(scores([q0], [k0]))
    first = scores([q1, q0], [k0, k1])
    second = scores([q2, 2 * q1, q0], [k0, k1, k2])
    # Derivatives of the logarithm of attention, which the softmax's normaliser centres.
    first -= mean(first)
    second -= mean(second) + mean(first * first)
    attention_1 = attention * first
    attention_2 = attention * (second + first * first)
    return (
        tf.matmul(attention, v0),
        tf.matmul(attention_1, v0) + tf.matmul(attention, v1),
        tf.matmul(attention_2, v0) + 2 * tf.matmul(attention_1, v1) + tf.matmul(attention, v2),
    )
