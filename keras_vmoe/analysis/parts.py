"""Closed forms: the row of each part of a vision transformer from its sizes.

Axis letters: t tokens per image, d width, h hidden width, e experts, k choices per token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from keras_vmoe.analysis.rows import LayerProfile
from keras_vmoe.ops.validation import require, require_choice, require_positive_int


class RoutingCost(NamedTuple):
    """What a router asks of its layer.

    Attributes:
        params: of the router.
        macs: of the router per image; where routing is a mixture, of the mixing as well.
        expert_rows: rows per image that go through an expert.
        experts_per_token: experts that a token uses.
    """

    params: int
    macs: int
    expert_rows: float
    experts_per_token: float


def dense(
    name: str, shape: tuple[int | None, ...], inputs: int, units: int, bias: bool = True
) -> LayerProfile:
    """A linear layer at every position of `shape` (which may be empty)."""
    params = (inputs + bias) * units
    return LayerProfile(name, (*shape, units), params, macs=_size(shape) * inputs * units)


def _size(shape: tuple[int | None, ...]) -> int:
    return math.prod(side or 0 for side in shape)


def layer_norm(name: str, shape: tuple[int | None, ...], center: bool = True) -> LayerProfile:
    """A layer norm over the last axis."""
    params = (1 + center) * shape[-1]
    return LayerProfile(name, tuple(shape), params, pointwise=5 * _size(shape))


def patch_embedding(
    name: str, image: tuple[int, int], patch: tuple[int, int], channels: int, width: int
) -> LayerProfile:
    """Patches, each projected linearly: `t * patch pixels * channels * d` MACs."""
    require(
        all(side >= p for side, p in zip(image, patch, strict=True)),
        f"image_size must hold at least one patch. Received: image_size={image}, "
        f"patch_size={patch}",
    )
    tokens = (image[0] // patch[0]) * (image[1] // patch[1])
    return dense(name, (tokens,), math.prod(patch) * channels, width)


def class_token(name: str, tokens: int, width: int) -> LayerProfile:
    """A learned token in front of the others; `tokens` counts it."""
    return LayerProfile(name, (tokens, width), width)


def position_embedding(name: str, kind: str, tokens: int, width: int) -> LayerProfile:
    """A learned table of `t * d`, or one without parameters."""
    require_choice("position_embedding", kind, ("learned", "sincos2d", "none"))
    require(
        kind != "sincos2d" or (width % 4 == 0 and width >= 8),
        f"width must be a multiple of 4 and at least 8 for sincos2d. Received: width={width}",
    )
    return LayerProfile(name, (tokens, width), tokens * width if kind == "learned" else 0)


def text_embedding(name: str, tokens: int, vocabulary: int, width: int) -> LayerProfile:
    """A table with a row for each token of the vocabulary; looking up multiplies nothing."""
    return LayerProfile(name, (tokens, width), vocabulary * width)


def attention(
    name: str,
    tokens: int,
    width: int,
    num_heads: int,
    qk_norm: bool = False,
    queries: int | None = None,
    segments: Sequence[int] | None = None,
) -> LayerProfile:
    """Multi-head attention with heads that share the width: `4td^2 + 2t^2d` MACs.

    Args:
        name: the row's name.
        tokens: keys and values per image (t).
        width: model width (d).
        num_heads: heads.
        qk_norm: layer norm on queries and keys, a scale each.
        queries: queries per image; `None` is self-attention.
        segments: lengths of the sequences side by side that attend within themselves: `2t^2d` of
            each; `None` is one of all tokens.
    """
    require_positive_int("num_heads", num_heads)
    require(
        width % num_heads == 0,
        f"num_heads must divide the width. Received: num_heads={num_heads}, width={width}",
    )
    queries = tokens if queries is None else queries
    projections = 2 * (queries + tokens) * width**2
    scores = queries * tokens if segments is None else sum(length**2 for length in segments)
    return LayerProfile(
        name,
        (queries, width),
        4 * (width**2 + width) + (2 * (width // num_heads) if qk_norm else 0),
        macs=projections + 2 * scores * width,
        pointwise=6 * queries * width + 4 * scores * num_heads,
    )


def mlp(name: str, tokens: int, width: int, hidden: int) -> LayerProfile:
    """Two linear layers: `2tdh` MACs."""
    params = 2 * width * hidden + hidden + width
    return LayerProfile(
        name,
        (tokens, width),
        params,
        macs=2 * tokens * width * hidden,
        pointwise=10 * tokens * hidden,
    )


def mixture(
    name: str, tokens: int, width: int, hidden: int, num_experts: int, routing: RoutingCost
) -> LayerProfile:
    """A router and e experts, each an MLP, that run on `routing.expert_rows` rows per image.

    Moving tokens to their experts and back is not counted: it multiplies nothing.
    """
    one = mlp("expert", 1, width, hidden)
    idle = max(num_experts - routing.experts_per_token, 0) * one.params
    return LayerProfile.whole(
        name,
        (tokens, width),
        [
            LayerProfile("router", (tokens, num_experts), routing.params, macs=routing.macs),
            LayerProfile(
                "experts",
                (tokens, width),
                num_experts * one.params,
                round(idle),
                round(routing.expert_rows * one.macs),
                pointwise=round(routing.expert_rows * one.pointwise),
            ),
        ],
    )


def encoder_block(
    name: str,
    tokens: int,
    width: int,
    num_heads: int,
    qk_norm: bool,
    mlp_row: LayerProfile,
    segments: Sequence[int] | None = None,
) -> LayerProfile:
    """A pre-norm block: norm, attention, norm, and the given row of an MLP or a mixture."""
    shape = (tokens, width)
    return LayerProfile.whole(
        name,
        shape,
        [
            _inside(layer_norm("attention_norm", shape)),
            attention("attention", tokens, width, num_heads, qk_norm, segments=segments),
            _inside(layer_norm("mlp_norm", shape)),
            mlp_row,
        ],
    )


def windowed_attention(
    name: str, grid: tuple[int, int], width: int, num_heads: int, window: tuple[int, int]
) -> LayerProfile:
    """Attention within windows of a map, whose heads need not share the width out.

    With n windows of w tokens, those that fill up the last ones among them, and the heads' joint
    width i: `4nwdi + 2nw^2i` MACs.

    Args:
        name: the row's name.
        grid: rows and columns of the map.
        width: model width (d).
        num_heads: heads, each `width // num_heads` wide.
        window: rows and columns of a window; at most the map's count.
    """
    sides = tuple(min(side, most) for side, most in zip(window, grid, strict=True))
    count = math.prod(-(-most // side) for side, most in zip(sides, grid, strict=True))
    tokens, inner = math.prod(sides), width // num_heads * num_heads
    scores = count * tokens**2
    return LayerProfile(
        name,
        (*grid, width),
        3 * (width + 1) * inner + (inner + 1) * width,
        macs=4 * count * tokens * width * inner + 2 * scores * inner,
        pointwise=6 * count * tokens * width + 4 * scores * num_heads,
    )


def window_block(
    name: str,
    grid: tuple[int, int],
    width: int,
    attention_row: LayerProfile,
    mlp_row: LayerProfile,
    has_norms: bool = True,
) -> LayerProfile:
    """A block on maps: its windowed attention and its MLP or mixture, each behind a norm."""
    norms = [_inside(layer_norm(f"{kind}_norm", (*grid, width))) for kind in ("attention", "mlp")]
    rows = [norms[0], attention_row, norms[1], mlp_row] if has_norms else [attention_row, mlp_row]
    return LayerProfile.whole(name, (*grid, width), rows)


def patch_merging(
    name: str, grid: tuple[int, int], kernel_size: int, inputs: int, width: int, norm: str
) -> LayerProfile:
    """Patches of a map, each projected without a bias.

    Args:
        name: the row's name.
        grid: rows and columns of what comes out.
        kernel_size: side of a patch.
        inputs: width of what goes in.
        width: of what comes out (d).
        norm: `"pre"`, `"post"` or `"none"`.
    """
    values = kernel_size**2 * inputs
    rows = [dense("projection", grid, values, width, bias=False)]
    if norm != "none":
        rows.append(layer_norm("norm", (*grid, values if norm == "pre" else width)))
    return LayerProfile.whole(name, (*grid, width), rows)


def _inside(norm: LayerProfile) -> LayerProfile:
    """A norm of a block, which counts with the block's attention."""
    return dataclasses.replace(norm, pointwise=0)


def attention_pooling(
    name: str, tokens: int, width: int, num_heads: int, hidden: int, qk_norm: bool
) -> LayerProfile:
    """A learned probe that attends to the tokens, then a norm and an MLP."""
    return LayerProfile.whole(
        name,
        (width,),
        [
            LayerProfile("probe", (1, width), width),
            attention("attention", tokens, width, num_heads, qk_norm, queries=1),
            layer_norm("norm", (1, width)),
            mlp("mlp", 1, width, hidden),
        ],
    )
