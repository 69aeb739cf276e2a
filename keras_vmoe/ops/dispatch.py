"""Dispatch and combine: a Plan carries tokens to expert inputs, and expert outputs back.

Three ways that agree to rounding, gradients included:

- `einsum`: one-hot `[g, s, e, c]` tensors and two einsums.
- `gather`: fixed buffers `[e, g * c, d]`, filled and read by gathers.
- `grouped`: only the kept rows, sorted by expert, in no buffer at all.

`gather` and `grouped` share a `RowMap`.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_vmoe.ops.layout import lay_out
from keras_vmoe.ops.routing import ExpertChoicePlan, Plan, SoftPlan
from keras_vmoe.ops.row_map import RowMap, row_map, rows_from_tokens, tokens_from_rows
from keras_vmoe.ops.validation import (
    concrete,
    require,
    require_choice,
    require_rank,
    require_same_axes,
)

DISPATCHES = ("einsum", "gather", "grouped")


def dispatch_mask(plan: Plan, num_experts: int, capacity: Any, dtype: str = "float32") -> Any:
    """The one-hot dispatch tensor `[g, s, e, c]` of a plan; for `SoftPlan`, its own.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1)
    >>> np.array(ops.dispatch_mask(plan, num_experts=2, capacity=1))[0, :, :, 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _one_hot(plan, num_experts, capacity, None, dtype)


def combine_weights(plan: Plan, num_experts: int, capacity: Any) -> Any:
    """The combine tensor `[g, s, e, c]` of a plan: its weights in place of `dispatch_mask`'s ones.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.75, 0.25], [0.5, 0.5]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1)
    >>> np.array(ops.combine_weights(plan, num_experts=2, capacity=1))[0, :, 0, 0].tolist()
    [0.75, 0.0]
    """
    if isinstance(plan, SoftPlan):
        return plan.combine
    return _one_hot(plan, num_experts, capacity, plan.weight, None)


def _one_hot(plan: Plan, num_experts: int, capacity: Any, weight: Any, dtype: str | None) -> Any:
    if isinstance(plan, SoftPlan):
        return plan.dispatch
    value = ops.cast(plan.kept, dtype or weight.dtype)
    value = value if weight is None else value * weight
    if isinstance(plan, ExpertChoicePlan):
        tokens = ops.arange(ops.shape(plan.gates)[1], dtype="int32")
        tokens = ops.reshape(tokens, [1, -1, 1, 1])
        hit = ops.equal(ops.expand_dims(plan.token, 1), tokens)  # [g, s, e, c]
        return ops.cast(hit, value.dtype) * ops.expand_dims(value, 1)
    slots = ops.reshape(ops.arange(capacity, dtype="int32"), [1, 1, 1, -1])
    slot = ops.cast(ops.equal(ops.expand_dims(plan.slot, -1), slots), value.dtype)
    expert = lay_out(ops.one_hot(plan.expert, num_experts, dtype=value.dtype), "batch")
    return ops.einsum("gske,gskc->gsec", expert * ops.expand_dims(value, -1), slot)


def einsum_dispatch(tokens: Any, mask: Any) -> Any:
    """`[g, s, d]` tokens to `[e, g * c, d]` expert inputs by a `[g, s, e, c]` dispatch tensor."""
    inputs = ops.einsum("gsec,gsd->egcd", lay_out(ops.cast(mask, tokens.dtype), "batch"), tokens)
    # From the devices that have the tokens to those that have the experts.
    inputs = lay_out(lay_out(inputs, None, "batch"), "expert", "batch")
    return ops.reshape(inputs, [mask.shape[2], -1, tokens.shape[-1]])


def einsum_combine(outputs: Any, weights: Any) -> Any:
    """`[e, g * c, d]` expert outputs to `[g, s, d]` tokens by a `[g, s, e, c]` combine tensor."""
    groups, slots = ops.shape(weights)[0], ops.shape(weights)[3]
    outputs = ops.reshape(outputs, [weights.shape[2], groups, slots, outputs.shape[-1]])
    outputs = lay_out(lay_out(outputs, "expert", "batch"), None, "batch")
    tokens = ops.einsum(
        "gsec,egcd->gsd", lay_out(weights, "batch"), ops.cast(outputs, weights.dtype)
    )
    return lay_out(tokens, "batch")


def _require_capacity(plan: Plan, capacity: Any) -> None:
    """Checks, as far as it can be known now, that every kept choice has a slot."""
    if not isinstance(capacity, int) or isinstance(plan, SoftPlan):
        return
    if isinstance(plan, ExpertChoicePlan):
        slots = plan.token.shape[2]
        fits = slots in (None, capacity)
    else:
        slot, kept = concrete(plan.slot), concrete(plan.kept)
        if slot is None or kept is None:
            return
        slots = int(slot.max(initial=-1, where=kept)) + 1
        fits = slots <= capacity
    require(
        fits,
        f"capacity must be that of the plan, which uses {slots} slots. "
        f"Received: capacity={capacity}",
    )


def _routed(plan: Plan, num_experts: int) -> Any:
    """The plan's own tensor `[g, s, e, ...]`, checked to be of `num_experts`."""
    routed = plan.dispatch if isinstance(plan, SoftPlan) else plan.gates
    require(
        routed.shape[2] == num_experts,
        f"num_experts must be {routed.shape[2]}, as in the plan. "
        f"Received: num_experts={num_experts}",
    )
    return routed


def dispatch(
    tokens: Any, plan: Plan, num_experts: int, capacity: Any, method: str = "gather"
) -> Any:
    """Carries tokens to their experts' buffers.

    Args:
        tokens: `[g, s, d]`.
        plan: any `Plan`.
        num_experts: experts (e).
        capacity: slots per expert and group (c).
        method: `"einsum"` or `"gather"`; a `SoftPlan` mixes by einsum in either case.
            (`"grouped"` has no buffers: `row_map` and `rows_from_tokens` are its parts.)

    Returns:
        `[e, g * c, d]`; slots that nobody took are zero.

    Raises:
        ValueError: an unknown method, or shapes that do not fit the plan.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1)
    >>> tokens = np.array([[[1.0], [2.0]]], "float32")
    >>> np.array(ops.dispatch(tokens, plan, num_experts=2, capacity=1)).ravel().tolist()
    [1.0, 2.0]
    """
    require_choice("method", method, ("einsum", "gather"))
    tokens = ops.convert_to_tensor(tokens)
    require_rank("tokens", tokens, 3, "[groups, tokens, width]")
    require_same_axes("tokens", tokens, _routed(plan, num_experts))
    _require_capacity(plan, capacity)
    if method == "einsum" or isinstance(plan, SoftPlan):
        return einsum_dispatch(tokens, dispatch_mask(plan, num_experts, capacity, tokens.dtype))
    flat = ops.reshape(tokens, [-1, tokens.shape[-1]])
    rows = rows_from_tokens(flat, row_map(plan, num_experts, capacity, "gather"))
    return ops.reshape(rows, [num_experts, -1, tokens.shape[-1]])


def combine(
    outputs: Any, plan: Plan, num_experts: int, capacity: Any, method: str = "gather"
) -> Any:
    """Carries expert outputs back to their tokens, weighted by the plan.

    Args:
        outputs: `[e, g * c, d]`, as laid out by `dispatch`.
        plan: the plan that `dispatch` was given.
        num_experts: experts (e).
        capacity: slots per expert and group (c).
        method: as in `dispatch`.

    Returns:
        `[g, s, d]`; a token that no expert took is zero.

    Raises:
        ValueError: an unknown method, or shapes that do not fit the plan.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.75, 0.25], [0.5, 0.5]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1)
    >>> outputs = np.array([[[4.0]], [[9.0]]], "float32")
    >>> np.array(ops.combine(outputs, plan, num_experts=2, capacity=1)).ravel().tolist()
    [3.0, 0.0]
    """
    require_choice("method", method, ("einsum", "gather"))
    outputs = ops.convert_to_tensor(outputs)
    require_rank("outputs", outputs, 3, "[experts, slots, width]")
    known = _routed(plan, num_experts).shape[0], outputs.shape[1], capacity
    _require_capacity(plan, capacity)
    require(
        outputs.shape[0] == num_experts
        and (not all(isinstance(n, int) for n in known) or known[1] == known[0] * capacity),
        f"outputs must have shape [{num_experts}, groups * {capacity}, width]. "
        f"Received: outputs of shape {tuple(outputs.shape)}",
    )
    if method == "einsum" or isinstance(plan, SoftPlan):
        return einsum_combine(outputs, combine_weights(plan, num_experts, capacity))
    groups, tokens = ops.shape(plan.gates)[0], ops.shape(plan.gates)[1]
    where = row_map(plan, num_experts, capacity, "gather")
    rows = ops.reshape(outputs, [-1, outputs.shape[-1]])
    flat = weighted_tokens(rows, plan, where, groups * tokens)
    return ops.reshape(flat, [groups, tokens, outputs.shape[-1]])


def weighted_tokens(rows: Any, plan: Plan, where: RowMap, num_tokens: Any) -> Any:
    """`tokens_from_rows` with the plan's own weights, in the wider dtype of the two."""
    # Under half precision the weights, and the sum over choices, stay in float32.
    dtype = keras.backend.result_type(rows.dtype, plan.weight.dtype)
    rows, weight = ops.cast(rows, dtype), ops.cast(plan.weight, dtype)
    width = 1 if isinstance(plan, ExpertChoicePlan) else plan.weight.shape[2]
    return tokens_from_rows(rows, ops.reshape(weight, [-1, width]), where, num_tokens)


def choose_dispatch(
    plan_type: type,
    group_size: int | None,
    hidden_dim: int,
    backend: str,
    accelerator: bool,
) -> str:
    """Picks the cheapest dispatch by arithmetic.

    One-hot einsums cost about `group_size / hidden_dim` of the experts' own FLOPs, gathers cost
    only the traffic of their rows, and packed rows save the empty slots as well but need shapes
    that depend on the data, which XLA does not compile.

    Args:
        plan_type: the class of the plan.
        group_size: tokens per group (s), `None` where not known.
        hidden_dim: hidden width of an expert (h).
        backend: `"tensorflow"` or `"jax"`.
        accelerator: whether a GPU or TPU is at hand.

    Returns:
        One of `"einsum"`, `"gather"`, `"grouped"`.
    """
    if issubclass(plan_type, SoftPlan):
        return "einsum"
    if backend == "tensorflow" and not accelerator:
        return "grouped"
    if group_size is not None and 8 * group_size <= hidden_dim:
        return "einsum"
    if backend == "jax" and accelerator:
        return "grouped"
    return "gather"


def require_dispatch(name: str) -> None:
    """Raises a `ValueError` unless `name` is a dispatch or `"auto"`."""
    require_choice("dispatch", name, ("auto",) + DISPATCHES)
