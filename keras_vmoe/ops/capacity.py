"""Expert capacity: how many slots each expert has in a group."""

from __future__ import annotations

import math

from keras_vmoe.ops.validation import require, require_choice, require_positive_int


def compute_capacity(
    num_tokens: int,
    num_experts: int,
    capacity_factor: float,
    num_selected: int = 1,
    rounding: str = "ceil",
    multiple_of: int | None = 4,
    at_least_one: bool = False,
) -> int:
    """Slots per expert in a group of `num_tokens` tokens: `s * k * C / e`, rounded.

    Args:
        num_tokens: tokens per group (s).
        num_experts: experts (e).
        capacity_factor: the ratio C of slots to assignments.
        num_selected: choices per token (k); leave 1 for expert choice.
        rounding: `"ceil"`, or `"round"` (half to even, as Python rounds).
        multiple_of: round the result up to a multiple of this; `None` or 1 leaves it.
        at_least_one: give 1 where the rounded value is below it, instead of an error.

    Returns:
        The capacity, an `int` of at least 1. It may exceed `num_tokens`.

    Raises:
        ValueError: where the rounded value, before `multiple_of`, is below 1.

    Example:

    >>> from keras_vmoe import ops
    >>> ops.compute_capacity(400, num_experts=32, capacity_factor=1.05, num_selected=2)
    28

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2.2, with the reference code's
    rounding.
    """
    require_positive_int("num_tokens", num_tokens)
    require_positive_int("num_experts", num_experts)
    require_positive_int("num_selected", num_selected)
    require_choice("rounding", rounding, ("ceil", "round"))
    if multiple_of is not None:
        require_positive_int("multiple_of", multiple_of)
    # The order of the operations is the reference's: another one rounds some cases apart.
    raw = num_tokens * num_selected * capacity_factor / num_experts
    require(
        math.isfinite(raw),
        f"capacity_factor must be finite. Received: capacity_factor={capacity_factor}",
    )
    capacity = math.ceil(raw) if rounding == "ceil" else round(raw)
    if at_least_one:
        capacity = max(capacity, 1)
    require(
        capacity >= 1,
        f"capacity must be at least 1, but {num_tokens} tokens x {num_selected} choices x "
        f"capacity_factor={capacity_factor} / {num_experts} experts gives {capacity}. "
        "Raise capacity_factor or route larger groups.",
    )
    return capacity + (-capacity) % (multiple_of or 1)
