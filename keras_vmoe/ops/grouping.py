"""Images to routing groups and back. Groups are counted in images, never in tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vmoe.ops.validation import (
    require,
    require_positive_int,
    require_rank,
    require_same_axes,
)


class Groups(NamedTuple):
    """Tokens in routing groups.

    Attributes:
        tokens: `[g, s, d]`; the last group is filled up with zeros where images are missing.
        mask: `[g, s]` bool, false for filling and masked tokens, or `None` where all are real.
        images: `[g]` int32, the real images of each group, or `None` where every group is full.
        images_per_group: images that a full group holds, at most the batch.
        modality: `[g, s]` ints, the modality of each token, or `None` where there is but one.
    """

    tokens: Any
    mask: Any
    images: Any
    images_per_group: Any
    modality: Any = None


def _token_mask(mask: Any, tokens: Any) -> Any:
    """A `[b]` or `[b, t]` mask as `[b, t]` bool."""
    mask = ops.cast(mask, "bool")
    rank = len(mask.shape)
    require(
        rank in (1, 2),
        f"mask must have shape [images] or [images, tokens]. Received: mask of shape "
        f"{tuple(mask.shape)}",
    )
    require_same_axes("mask", mask, tokens, rank)
    if rank == 1:
        mask = ops.expand_dims(mask, 1)
    return ops.logical_and(mask, ops.ones(ops.shape(tokens)[:2], dtype="bool"))


def _fill(values: Any, count: Any) -> Any:
    """`count` zero rows behind `values`."""
    shape = ops.shape(values)
    return ops.concatenate([values, ops.zeros((count,) + tuple(shape[1:]), dtype=values.dtype)], 0)


def group_images(
    tokens: Any, images_per_group: int, mask: Any = None, modality: Any = None
) -> Groups:
    """Cuts a batch into routing groups of whole images.

    A batch of b images makes `ceil(b / images_per_group)` groups; a batch smaller than a group is
    one group of its own size, so a single image costs a single image. An empty batch, such as a
    replica may get at the end of a dataset, is one group of one masked image.

    Args:
        tokens: `[b, t, d]`; b may be dynamic.
        images_per_group: images in a full group.
        mask: optional `[b]` or `[b, t]` bool; false images or tokens are not routed.
        modality: optional `[b, t]` ints, the modality of each token.

    Returns:
        `Groups`.

    Raises:
        ValueError: a wrong rank, or `images_per_group` below 1.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe.ops import grouping
    >>> groups = grouping.group_images(np.zeros((3, 5, 4), "float32"), images_per_group=2)
    >>> tuple(groups.tokens.shape), np.array(groups.images).tolist()
    ((2, 10, 4), [2, 1])
    """
    require_rank("tokens", tokens, 3, "[images, tokens, width]")
    require_positive_int("images_per_group", images_per_group)
    tokens = ops.convert_to_tensor(tokens)
    batch, length, width = ops.shape(tokens)
    if isinstance(batch, int):
        size = max(1, min(batch, images_per_group))
        count = max(1, -(-batch // size))
    else:
        require(
            keras.backend.backend() != "jax",
            "tokens must have a known batch size on the JAX backend. Give the layer that calls "
            f"this one a compute_output_shape. Received: tokens of shape {tuple(tokens.shape)}",
        )
        size = 1 if images_per_group == 1 else ops.maximum(ops.minimum(batch, images_per_group), 1)
        count = ops.maximum((batch + size - 1) // size, 1)
    full = isinstance(batch, int) and count * size == batch
    if modality is not None:
        require_same_axes("modality", modality, tokens)
        modality = modality if full else _fill(modality, count * size - batch)
        modality = ops.reshape(modality, [count, size * length])
    if full and mask is None:
        tokens = ops.reshape(tokens, [count, size * length, width])
        return Groups(tokens, None, None, size, modality)
    if mask is None:
        mask = ops.ones((batch, length), dtype="bool")
    else:
        mask = _token_mask(mask, tokens)
    if not full:
        tokens = _fill(tokens, count * size - batch)
        mask = _fill(mask, count * size - batch)
    real = ops.any(ops.reshape(mask, [count, size, length]), axis=-1)
    return Groups(
        ops.reshape(tokens, [count, size * length, width]),
        ops.reshape(mask, [count, size * length]),
        ops.sum(ops.cast(real, "int32"), axis=-1),
        size,
        modality,
    )


def ungroup_images(grouped: Any, batch: Any, length: Any) -> Any:
    """The inverse of `group_images`: `[g, s, ...]` to `[b, t, ...]`, filling cut off."""
    shape = ops.shape(grouped)
    images = ops.reshape(grouped, [-1, length, *shape[2:]])
    if isinstance(batch, int) and images.shape[0] == batch:
        return images
    return images[:batch]
