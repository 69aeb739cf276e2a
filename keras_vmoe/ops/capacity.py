"""Expert capacity: how many slots each expert has in a group."""

from __future__ import annotations

import math
from typing import Any

from keras import ops as kops

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


def traced_capacity(
    num_tokens: Any,
    num_experts: int,
    capacity_factor: float,
    num_selected: int = 1,
    rounding: str = "ceil",
    multiple_of: int | None = 4,
) -> Any:
    """`compute_capacity` with `at_least_one`, of token counts that only the running graph knows.

    In float64, as Python counts, so that both are the same for every number of tokens; on
    TensorFlow, since JAX knows all shapes and has no float64 by default.

    Args:
        num_tokens: an int tensor of any shape.
        num_experts, capacity_factor, num_selected, rounding, multiple_of: as of
            `compute_capacity`, which checks them.

    Returns:
        int32, of the same shape.

    Example:

    >>> import tensorflow as tf
    >>> from keras_vmoe.ops import capacity
    >>> capacity.traced_capacity(tf.constant([400, 1]), 32, 1.05, num_selected=2).numpy().tolist()
    [28, 4]
    """
    compute_capacity(1, num_experts, capacity_factor, num_selected, rounding, multiple_of, True)
    raw = kops.cast(num_tokens, "float64") * num_selected * capacity_factor / num_experts
    whole = kops.ceil(raw) if rounding == "ceil" else kops.round(raw)
    slots = kops.maximum(kops.cast(whole, "int32"), 1)
    return slots + (-slots) % (multiple_of or 1)
