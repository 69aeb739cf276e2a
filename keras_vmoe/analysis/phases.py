"""The coarse phases of progressive re-tokenization, as a training and its cost both read them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras_vmoe.models.genotype import STRIDES
from keras_vmoe.ops.validation import require

_EXAMPLE = "such as ((40, 16, 5), (70, 8, 2))"


class Phase(NamedTuple):
    """A part of a run.

    Attributes:
        until_epoch: where it ends.
        stride: pixels from one token to the next.
        dilation: pixels from one tap of the first kernel to the next.
    """

    until_epoch: float
    stride: int
    dilation: int


def coarse_phases(setting: Any, name: str = "phases") -> tuple[Phase, ...]:
    """Reads the coarse phases; the model's own tokens follow them.

    Args:
        setting: `((until_epoch, stride, dilation), ...)`, epochs rising and strides falling; empty:
            none. Strides are multiples of the model's own, 4, above it.
        name: of the setting in messages.

    Raises:
        ValueError: anything else; the message shows it, and an example.

    Example:
        >>> coarse_phases(((40, 16, 5), (70, 8, 2)))[1].stride
        8

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 4.2.
    """
    entries = tuple(setting) if isinstance(setting, (tuple, list)) else (None,)
    is_whole = all(
        isinstance(entry, (tuple, list))
        and len(entry) == 3
        and _is_number(entry[0], (int, float))
        and all(_is_number(size, int) for size in entry[1:])
        for entry in entries
    )
    require(
        is_whole,
        f"{name}={setting!r} must hold (until_epoch, stride, dilation) of each coarse phase, "
        f"finite numbers above 0, {_EXAMPLE}",
    )
    found = tuple(Phase(float(until), *sizes) for until, *sizes in entries)
    ends = [phase.until_epoch for phase in found]
    require(
        sorted(set(ends)) == ends,
        f"{name}={setting!r} must end each phase later than the one before, {_EXAMPLE}",
    )
    own = STRIDES[0]
    strides = [phase.stride for phase in found]
    require(
        all(stride > own and stride % own == 0 for stride in strides),
        f"{name}={setting!r} must have strides that are multiples of the model's {own} pixels and "
        f"above it, {_EXAMPLE}",
    )
    require(
        sorted(set(strides), reverse=True) == strides,
        f"{name}={setting!r} must make tokens finer from each phase to the next, {_EXAMPLE}",
    )
    return found


def _is_number(value: Any, kind: Any) -> bool:
    ok = isinstance(value, kind) and not isinstance(value, bool)
    return ok and math.isfinite(value) and value > 0
