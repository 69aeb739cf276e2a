"""The largest values, with a gradient that a mesh of devices can compute."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_vmoe.ops.layout import lay_out, on_mesh


def top_k(values: Any, count: int) -> tuple[Any, Any]:
    """`keras.ops.top_k` over the last axis of `[batch, ..., n]`.

    On a mesh the values are read by a one-hot product: the gradient of `top_k` itself is a
    scatter, which DTensor splits wrong.

    Args:
        values: floats.
        count: how many are wanted.

    Returns:
        Values and int32 indices, `[batch, ..., count]`, largest first.
    """
    best, index = ops.top_k(values, count)
    if not on_mesh():
        return best, index
    index = lay_out(index, "batch")
    hot = lay_out(ops.one_hot(index, values.shape[-1], dtype=values.dtype), "batch")
    return ops.sum(ops.expand_dims(values, -2) * hot, axis=-1), index
