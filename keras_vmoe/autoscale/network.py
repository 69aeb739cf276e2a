"""As-ViT up to its pooled features, as a function of images and weights.

What is carried through the network is up to an `Arithmetic`: values with their derivatives along a
curve (`jets`), or values whose gradients make a Gram matrix (`gram`). The function is that of
`models.AsViT`, before the last LayerNorm.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_vmoe import ops
from keras_vmoe.autoscale.weights import Weights, block_names, check_weights
from keras_vmoe.models.genotype import STRIDES, Genotype
from keras_vmoe.ops.validation import require

Tensors = dict[str, tf.Tensor]


def as_tensors(weights: Weights) -> Tensors:
    """The weights as tensors, but for biases of zeros, which need no addition."""
    return {
        name: tf.constant(value)
        for name, value in weights.items()
        if not name.endswith("/bias") or value.any()
    }


class Arithmetic(Protocol):
    """The operations in which an As-ViT is more than moving values about.

    All take and give tensors whose first axis holds the images, and may hold more.
    """

    def linear(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """The product with `NAME/kernel`, and the sum with `NAME/bias` where there is one."""

    def norm(self, x: tf.Tensor, name: str, weights: Tensors) -> tf.Tensor:
        """LayerNorm over the last axis, or nothing."""

    def gelu(self, x: tf.Tensor) -> tf.Tensor:
        """The exact GELU."""

    def attend(self, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """Softmax attention of `[b, m, t, f]`: m windows and heads, t tokens, f features."""


def check(genotype: Genotype, image_size: int) -> None:
    """Refuses what the measures cannot take.

    Raises:
        ValueError: an image size that is no positive multiple of 32, or a stage whose grid its
            windows do not divide.
    """
    require(
        image_size >= 32 and image_size % 32 == 0,
        "image_size must be a positive multiple of 32, the stride of the last stage. Received: "
        f"image_size={image_size}; take 32, 64 or 224",
    )
    grids = genotype.grids((image_size, image_size))
    for stage, (genes, (side, _)) in enumerate(zip(genotype.stages, grids, strict=True)):
        require(
            side % genes.splits == 0,
            f"the splits of stage {stage + 1} must divide its grid of {side} x {side} tokens. "
            f"Received: {genes.splits} in genotype='{genotype}' with image_size={image_size}; take "
            "other splits, or an image_size that gives a grid they divide",
        )


def check_images(name: str, images: np.ndarray, genotype: Genotype, weights: Weights) -> None:
    """Refuses images that the measures cannot take, and weights of another network or type.

    Args:
        name: of the images in messages.
        images: `[b, s, s, 3]`, of the weights' floating type.
        genotype: the network.
        weights: of it.

    Raises:
        ValueError: another shape or type, see also `check` and `check_weights`.
    """
    shape = tuple(images.shape)
    require(
        len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3,
        f"{name} must be square images of three channels, [images, side, side, 3]. Received: "
        f"{name} of shape {shape}; crop or pad them, and repeat the channel of grey ones",
    )
    check(genotype, shape[1])
    check_weights(genotype, weights)
    types = sorted({str(value.dtype) for value in weights.values()})
    require(
        types == [images.dtype] and images.dtype in ("float32", "float64"),
        f"{name} and weights must have one type, float32 or float64. Received: {name} of "
        f"{images.dtype}, weights of {', '.join(types)}; take {name}.astype('float32'), normalised "
        "as for training",
    )


def pooled_features(
    images: tf.Tensor, genotype: Genotype, weights: Tensors, arithmetic: Arithmetic
) -> tf.Tensor:
    """The mean token before the last LayerNorm.

    Args:
        images: `[b, height, width, 3]`.
        genotype: the network.
        weights: of `as_tensors`.
        arithmetic: how to calculate.

    Returns:
        `[b, d]`, d the width of the last stage.
    """
    x = images
    for stage, (genes, blocks) in enumerate(
        zip(genotype.stages, block_names(genotype), strict=True)
    ):
        x = ops.overlapping_patches(x, genes.kernel_size, STRIDES[stage])
        # Tokens are normalised after the embedding, but patches of tokens before they are merged.
        if stage:
            x = arithmetic.norm(x, f"merging_{stage}/norm", weights)
            x = arithmetic.linear(x, f"merging_{stage}/projection", weights)
        else:
            x = arithmetic.linear(x, "embedding", weights)
            x = arithmetic.norm(x, "embedding_norm", weights)
        for name in blocks:
            x = _block(x, genotype, stage, name, weights, arithmetic)
    return tf.reduce_mean(x, axis=(1, 2))


def _block(
    x: tf.Tensor, genotype: Genotype, stage: int, name: str, weights: Tensors, by: Arithmetic
) -> tf.Tensor:
    y = by.norm(x, f"{name}/attention_norm", weights)
    qkv = by.linear(y, f"{name}/attention/qkv", weights)
    y = _attention(qkv, genotype.num_heads[stage], genotype.stages[stage].splits, by)
    x += by.linear(y, f"{name}/attention/attention_output", weights)
    y = by.norm(x, f"{name}/mlp_norm", weights)
    y = by.gelu(by.linear(y, f"{name}/mlp/hidden", weights))
    return x + by.linear(y, f"{name}/mlp/output", weights)


def _attention(qkv: tf.Tensor, heads: int, splits: int, by: Arithmetic) -> tf.Tensor:
    """Attention within windows: `[b, rows, columns, 3 * inner]` to `[b, rows, columns, inner]`."""
    side, inner = qkv.shape[1], qkv.shape[-1] // 3
    window = side // splits
    features, tokens = inner // heads, window * window
    # Six axes are enough, of which TensorFlow transposes quickly: images and rows of windows are
    # one axis, and so are queries, keys and values with the heads.
    split = tf.reshape(qkv, (-1, window, splits, window, 3 * heads, features))
    split = tf.transpose(split, (0, 2, 4, 1, 3, 5))
    split = tf.reshape(split, (-1, splits**2, 3 * heads, tokens, features))
    query, key, value = (
        tf.reshape(x, (-1, splits**2 * heads, tokens, features)) for x in tf.split(split, 3, 2)
    )
    joined = by.attend(query * features**-0.5, key, value)
    joined = tf.reshape(joined, (-1, splits, heads, window, window, features))
    joined = tf.transpose(joined, (0, 3, 1, 4, 2, 5))
    return tf.reshape(joined, (-1, side, side, inner))
