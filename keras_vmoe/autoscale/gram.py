"""The Gram matrix of per-image gradients, summed over layers during one backward pass.

The gradient of a kernel for one image is the product of that image's inputs and cotangents, which a
backward pass has at hand at that layer. Each layer's rule therefore adds its own inner products to
the Gram matrix and forgets the gradients: never are those of two layers held at once. To the tape
the sum is the gradient of a matrix of zeros that every layer takes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vmoe.autoscale.jets import in_pieces
from keras_vmoe.autoscale.network import Tensors, as_tensors, pooled_features
from keras_vmoe.autoscale.rules import with_gradient
from keras_vmoe.autoscale.weights import Weights
from keras_vmoe.models import Genotype

_EPSILON = 1e-5


def ntk_gram(images: np.ndarray, genotype: Genotype, weights: Weights) -> np.ndarray:
    """Inner products of the gradients of the summed features of each two images.

    The gradients are those of all kernels and of the scales of LayerNorms, without biases, without
    the last LayerNorm and the head. Inner products are summed in float64.

    Args:
        images: `[b, height, width, 3]`.
        genotype: the network.
        weights: named as `draw_weights` names them; where a LayerNorm's `NAME/gamma` is missing it
            is 1, and `NAME/beta` 0.

    Returns:
        `[b, b]` float64.

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.2.
    """
    zeros = tf.zeros((len(images), len(images)), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        arithmetic = GramArithmetic(zeros)
        features = pooled_features(tf.constant(images), genotype, as_tensors(weights), arithmetic)
        total = tf.reduce_sum(features)
    return tape.gradient(total, zeros).numpy()


class GramArithmetic:
    """The network with its LayerNorms; its backward pass gives the Gram matrix.

    Args:
        gram: `[b, b]` zeros in float64, whose gradient is the Gram matrix.
    """

    def __init__(self, gram: tf.Tensor):
        self.gram = gram

    def linear(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """A product with a kernel that adds the kernel's gradients to the Gram matrix."""
        y = _linear(x, weights[f"{name}/kernel"], self.gram)
        bias = weights.get(f"{name}/bias")
        return y if bias is None else y + bias

    def norm(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """LayerNorm that adds its scale's gradients to the Gram matrix."""
        scale = weights.get(f"{name}/gamma")
        y = _normalise(x, tf.ones(x.shape[-1], x.dtype) if scale is None else scale, self.gram)
        beta = weights.get(f"{name}/beta")
        return y if beta is None else y + beta

    def gelu(self, x: tf.Tensor) -> tf.Tensor:
        """x times the normal distribution's share below x."""
        return _gelu(x)

    def attend(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """Softmax attention that is calculated again in the backward pass, piece by piece."""
        return _attend(query, key, value)


def _inner_products(gradients: tf.Tensor) -> tf.Tensor:
    """`[b, ...]` to `[b, b]` in float64."""
    rows = tf.cast(tf.reshape(gradients, (gradients.shape[0], -1)), tf.float64)
    return tf.matmul(rows, rows, transpose_b=True)


@with_gradient
def _linear(x: tf.Tensor, kernel: tf.Tensor, gram: tf.Tensor) -> Any:
    def backward(dy: tf.Tensor) -> tuple[tf.Tensor, None, tf.Tensor]:
        batch = x.shape[0]
        inputs = tf.reshape(x, (batch, -1, x.shape[-1]))
        cotangents = tf.reshape(dy, (batch, -1, dy.shape[-1]))
        per_image = tf.matmul(inputs, cotangents, transpose_a=True)
        dx = tf.tensordot(dy, kernel, ((-1,), (1,)))
        return dx, None, _inner_products(per_image)

    return tf.tensordot(x, kernel, 1), backward


@with_gradient
def _normalise(x: tf.Tensor, scale: tf.Tensor, gram: tf.Tensor) -> Any:
    mean = tf.reduce_mean(x, -1, keepdims=True)
    centred = x - mean
    variance = tf.reduce_mean(centred * centred, -1, keepdims=True)
    inverse = tf.math.rsqrt(variance + _EPSILON)
    normal = centred * inverse

    def backward(dy: tf.Tensor) -> tuple[tf.Tensor, None, tf.Tensor]:
        product = dy * normal
        axes = list(range(1, len(x.shape) - 1))
        per_image = tf.reduce_sum(product, axes)
        along = tf.reduce_mean(product * scale, -1, keepdims=True)
        pulled = dy * scale
        dx = inverse * (pulled - tf.reduce_mean(pulled, -1, keepdims=True) - normal * along)
        return dx, None, _inner_products(per_image)

    return normal * scale, backward


@with_gradient
def _gelu(x: tf.Tensor) -> Any:
    below = 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))

    def backward(dy: tf.Tensor) -> tf.Tensor:
        density = tf.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return dy * (below + x * density)

    return x * below, backward


@with_gradient
def _attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> Any:
    def piece(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v),)

    def piece_backward(
        q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, dy: tf.Tensor, product: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        attention = tf.nn.softmax(tf.matmul(q, k, transpose_b=True))
        # The mean of the cotangents under the attention is the output's product with its own
        # cotangent: `[t, f]` to sum in place of `[t, t]`.
        mean = tf.reduce_sum(product, -1, keepdims=True)
        scores = attention * (tf.matmul(dy, v, transpose_b=True) - mean)
        return (
            tf.matmul(scores, k),
            tf.matmul(scores, q, transpose_a=True),
            tf.matmul(attention, dy, transpose_a=True),
        )

    result = in_pieces(piece, query, key, value)[0]

    def backward(dy: tf.Tensor) -> list[tf.Tensor]:
        return in_pieces(piece_backward, query, key, value, dy, result * dy)

    return result, backward
