"""Overlapping patches of maps, with a backward pass that is as fast as the forward one."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_vmoe import ops
from keras_vmoe.autoscale.rules import with_gradient


def patches(maps: tf.Tensor, kernel_size: int, stride: int) -> tf.Tensor:
    """The patches of `ops.overlapping_patches`, by TensorFlow's own kernel.

    That one has a slow gradient, which multiplies with a sparse matrix of one row for each value
    of each patch; here the gradient sums shifted cells of a stride's side.

    Args:
        maps: `[b, height, width, channels]`, sides a multiple of the stride.
        kernel_size: rows and columns of a patch, at least the stride.
        stride: from one patch to the next.

    Returns:
        `[b, height / stride, width / stride, kernel_size**2 * channels]`.
    """
    padded = ops.pad_for_patches(maps, kernel_size, stride)

    def extract(x: tf.Tensor) -> Any:
        return _extract(x, kernel_size, stride), lambda dy: _gather(dy, x.shape, stride)

    return with_gradient(extract)(padded)


def _extract(x: tf.Tensor, kernel_size: int, stride: int) -> tf.Tensor:
    sizes, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    return tf.image.extract_patches(x, sizes, strides, (1, 1, 1, 1), "VALID")


def _gather(dy: tf.Tensor, shape: tf.TensorShape, stride: int) -> tf.Tensor:
    """Sums cotangents of patches to that of the padded map, which has this shape."""
    batch, rows, columns, depth = dy.shape
    channels = shape[-1]
    kernel_size = round((depth // channels) ** 0.5)
    cells = -(-kernel_size // stride)
    dy = tf.reshape(dy, (batch * rows * columns, kernel_size, kernel_size, channels))
    missing = cells * stride - kernel_size
    if missing:
        dy = tf.pad(dy, ((0, 0), (0, missing), (0, missing), (0, 0)))
    dy = tf.reshape(dy, (batch, rows, columns, cells, stride, cells, stride, channels))
    total = 0.0
    for down in range(cells):
        for across in range(cells):
            cell = tf.reshape(dy[:, :, :, down, :, across], (batch, rows, columns, -1))
            before = (down, across)
            sides = [(n, cells - 1 - n) for n in before]
            total += tf.pad(cell, ((0, 0), *sides, (0, 0)))
    return tf.nn.depth_to_space(total, stride)[:, : shape[1], : shape[2]]
