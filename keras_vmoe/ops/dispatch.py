"""Dispatch and combine: a Plan carries tokens to expert inputs, and expert outputs back.

Three ways that agree to rounding, gradients included:

- `einsum`: one-hot `[g, s, e, c]` tensors and two einsums.
- `gather`: fixed buffers `[e, g * c, d]`, filled and read by gathers.
- `grouped`: only the kept rows, sorted by expert, in no buffer at all.

`gather` and `grouped` share a `RowMap`. Moving rows is linear, and the transpose of one direction
is the other, so both have gradients of their own that gather as well and never scatter-add.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vmoe.ops.routing import ExpertChoicePlan, Plan, SoftPlan
from keras_vmoe.ops.validation import require, require_choice, require_rank

DISPATCHES = ("einsum", "gather", "grouped")


class RowMap(NamedTuple):
    """Where the rows that go through the experts come from.

    Attributes:
        source: `[m]` int32, the flat token (g * s + s') of each row.
        weight_index: `[m]` int32, the row's place in the plan's flattened weights.
        filled: `[m]` bool, or `None` where every row is.
        rows: `[g * s, k]` int32, the row of each choice, or `None` under expert choice.
        kept: `[g * s, k]` bool, or `None` under expert choice.
        group_sizes: `[e]` int32, rows per expert.
    """

    source: Any
    weight_index: Any
    filled: Any
    rows: Any
    kept: Any
    group_sizes: Any


# ---------------------------------------------------------------------------------- one-hot form


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
    expert = ops.one_hot(plan.expert, num_experts, dtype=value.dtype)
    return ops.einsum("gske,gskc->gsec", expert * ops.expand_dims(value, -1), slot)


def einsum_dispatch(tokens: Any, mask: Any) -> Any:
    """`[g, s, d]` tokens to `[e, g * c, d]` expert inputs by a `[g, s, e, c]` dispatch tensor."""
    inputs = ops.einsum("gsec,gsd->egcd", ops.cast(mask, tokens.dtype), tokens)
    return ops.reshape(inputs, [mask.shape[2], -1, tokens.shape[-1]])


def einsum_combine(outputs: Any, weights: Any) -> Any:
    """`[e, g * c, d]` expert outputs to `[g, s, d]` tokens by a `[g, s, e, c]` combine tensor."""
    groups, slots = ops.shape(weights)[0], ops.shape(weights)[3]
    outputs = ops.reshape(outputs, [weights.shape[2], groups, slots, outputs.shape[-1]])
    return ops.einsum("gsec,egcd->gsd", weights, ops.cast(outputs, weights.dtype))


# -------------------------------------------------------------------------------------- row maps


def _expert_row_map(plan: ExpertChoicePlan) -> RowMap:
    groups, experts, slots = ops.shape(plan.token)
    width = ops.shape(plan.gates)[1]
    offsets = ops.reshape(ops.arange(groups, dtype="int32") * width, [-1, 1, 1])
    index = ops.reshape(ops.arange(groups * experts * slots, dtype="int32"), ops.shape(plan.token))

    def by_expert(x: Any) -> Any:
        return ops.reshape(ops.transpose(x, (1, 0, 2)), [-1])

    sizes = ops.zeros([plan.token.shape[1]], dtype="int32") + groups * slots
    return RowMap(
        by_expert(plan.token + offsets), by_expert(index), by_expert(plan.kept), None, None, sizes
    )


def _inverse(rows: Any, kept: Any, num_rows: Any) -> tuple[Any, Any]:
    """For each row the flat choice that fills it, and whether one does."""
    choices = ops.arange(ops.shape(rows)[0], dtype="int32")
    target = ops.where(kept, rows, num_rows)
    filled = ops.scatter(
        ops.expand_dims(target, -1), choices + 1, _shape_of([num_rows + 1], choices)
    )[:-1]
    return ops.maximum(filled - 1, 0), filled > 0


def _shape_of(shape: list[Any], like: Any) -> Any:
    """A shape that holds tensors, in the form that the backend's scatter takes."""
    if all(isinstance(axis, int) for axis in shape):
        return tuple(shape)
    return ops.stack([ops.cast(axis, like.dtype) for axis in shape])


def row_map(plan: Plan, num_experts: int, capacity: Any, method: str) -> RowMap:
    """Works out which row of which expert each choice of a plan is.

    Args:
        plan: a `TokenChoicePlan` or `ExpertChoicePlan`.
        num_experts: experts (e).
        capacity: slots per expert and group (c), as an `int` or a scalar tensor.
        method: `"gather"` lays rows out as `[e, g, c]`, empty slots included; `"grouped"` packs
            only the kept rows.

    Returns:
        A `RowMap`.
    """
    require_choice("method", method, ("gather", "grouped"))
    if isinstance(plan, ExpertChoicePlan):
        return _expert_row_map(plan)
    groups, tokens, k = ops.shape(plan.expert)[0], ops.shape(plan.expert)[1], plan.expert.shape[2]
    queue = plan.expert + ops.reshape(
        ops.arange(groups, dtype="int32") * num_experts, [-1, 1, 1]
    )  # the flat (g, e) of each choice
    if method == "gather":
        group = ops.reshape(ops.arange(groups, dtype="int32"), [-1, 1, 1])
        rows = (plan.expert * groups + group) * capacity + plan.slot
        num_rows = num_experts * groups * capacity
        sizes = ops.zeros([num_experts], dtype="int32") + groups * capacity
    else:
        kept = ops.cast(plan.kept, "int32")
        counts = ops.segment_sum(
            ops.reshape(kept, [-1]), ops.reshape(queue, [-1]), groups * num_experts
        )
        counts = ops.transpose(ops.reshape(counts, [groups, num_experts]))  # [e, g]
        flat = ops.reshape(counts, [-1])
        starts = ops.transpose(ops.reshape(ops.cumsum(flat) - flat, [num_experts, groups]))
        rows = ops.take(ops.reshape(starts, [-1]), queue) + plan.slot
        sizes = ops.sum(counts, axis=1)
        # JAX needs a static number of rows; the rest of them belong to no group.
        dynamic = keras.backend.backend() == "tensorflow"
        num_rows = ops.sum(sizes) if dynamic else groups * tokens * k
    flat_rows, flat_kept = ops.reshape(rows, [-1]), ops.reshape(plan.kept, [-1])
    choice, filled = _inverse(flat_rows, flat_kept, num_rows)
    packed = method == "grouped" and keras.backend.backend() == "tensorflow"
    return RowMap(
        source=choice // k if k > 1 else choice,
        weight_index=choice,
        filled=None if packed else filled,
        rows=ops.reshape(ops.where(plan.kept, rows, 0), [-1, k]),
        kept=ops.reshape(plan.kept, [-1, k]),
        group_sizes=sizes,
    )


# ---------------------------------------------------------------------------------- moving rows


def _take_rows(values: Any, index: Any, valid: Any) -> Any:
    taken = ops.take(values, index, axis=0)
    if valid is None:
        return taken
    return ops.where(ops.expand_dims(valid, -1), taken, ops.zeros_like(taken))


def _sum_of_choices(rows: Any, where: RowMap, weight: Any, num_tokens: Any) -> Any:
    """Per token the (weighted) sum of its rows: the transpose of taking rows from tokens."""
    if where.rows is None:
        if weight is not None:
            rows = rows * ops.expand_dims(weight, -1)
        return ops.segment_sum(
            _mask_rows(rows, where.filled), where.source, num_segments=num_tokens
        )
    total = None
    for i in range(where.rows.shape[1]):
        part = ops.take(rows, where.rows[:, i], axis=0)
        scale = ops.cast(where.kept[:, i], rows.dtype)
        if weight is not None:
            scale = scale * weight[:, i]
        part = part * ops.expand_dims(scale, -1)
        total = part if total is None else total + part
    return total


def _mask_rows(rows: Any, valid: Any) -> Any:
    if valid is None:
        return rows
    return ops.where(ops.expand_dims(valid, -1), rows, ops.zeros_like(rows))


def _upstream(args: tuple[Any, ...], upstream: Any) -> Any:
    return args[0] if upstream is None else upstream


def rows_from_tokens(tokens: Any, where: RowMap) -> Any:
    """`[n, d]` tokens to `[m, d]` rows; rows that nobody fills are zero."""

    @ops.custom_gradient
    def take(values: Any) -> tuple[Any, Any]:
        rows = _take_rows(values, where.source, where.filled)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            return _sum_of_choices(_upstream(args, upstream), where, None, ops.shape(values)[0])

        return rows, gradient

    return take(tokens)


def tokens_from_rows(rows: Any, weight: Any, where: RowMap, num_tokens: Any) -> Any:
    """`[m, d]` rows to `[n, d]` tokens, weighted; a token without any row is zero.

    Args:
        rows: `[m, d]` expert outputs.
        weight: the plan's weights, flattened to `[n, k]`, or `[m]` under expert choice in the
            plan's own order.
        where: the `RowMap` that made the rows.
        num_tokens: n.

    Returns:
        `[n, d]`.
    """

    @ops.custom_gradient
    def put(values: Any, scale: Any) -> tuple[Any, Any]:
        by_row = ops.take(ops.reshape(scale, [-1]), where.weight_index)
        outputs = _sum_of_choices(
            values, where, by_row if where.rows is None else scale, num_tokens
        )

        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
            upstream = _upstream(args, upstream)
            taken = _take_rows(upstream, where.source, where.filled)
            per_row = ops.sum(taken * values, axis=-1)
            if where.rows is None:
                # weight_index is a permutation here, so its inverse puts the sums in plan order.
                per_choice = ops.take(per_row, ops.argsort(where.weight_index))
            else:
                per_choice = ops.take(per_row, where.rows) * ops.cast(where.kept, per_row.dtype)
            return taken * ops.expand_dims(by_row, -1), ops.reshape(per_choice, ops.shape(scale))

        return outputs, gradient

    return put(rows, weight)


# ----------------------------------------------------------------------------- the public surface


def dispatch(
    tokens: Any, plan: Plan, num_experts: int, capacity: Any, method: str = "gather"
) -> Any:
    """Carries tokens to their experts' buffers.

    Args:
        tokens: `[g, s, d]`.
        plan: any `Plan`.
        num_experts: experts (e).
        capacity: slots per expert and group (c).
        method: `"einsum"` or `"gather"`. (`"grouped"` has no buffers: `row_map` and
            `rows_from_tokens` are its parts.)

    Returns:
        `[e, g * c, d]`; slots that nobody took are zero.

    Raises:
        ValueError: an unknown method, or a `SoftPlan` with another method than `"einsum"`.

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
    require_rank("tokens", tokens, 3, "[groups, tokens, width]")
    tokens = ops.convert_to_tensor(tokens)
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
        method: `"einsum"` or `"gather"`.

    Returns:
        `[g, s, d]`; a token that no expert took is zero.

    Raises:
        ValueError: an unknown method, or a `SoftPlan` with another method than `"einsum"`.

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
    require_rank("outputs", outputs, 3, "[experts, slots, width]")
    outputs = ops.convert_to_tensor(outputs)
    if method == "einsum" or isinstance(plan, SoftPlan):
        return einsum_combine(outputs, combine_weights(plan, num_experts, capacity))
    groups, tokens = ops.shape(plan.gates)[0], ops.shape(plan.gates)[1]
    where = row_map(plan, num_experts, capacity, "gather")
    rows = ops.reshape(outputs, [-1, outputs.shape[-1]])
    flat = weighted_tokens(rows, plan, where, groups * tokens)
    return ops.reshape(flat, [groups, tokens, outputs.shape[-1]])


def weighted_tokens(rows: Any, plan: Plan, where: RowMap, num_tokens: Any) -> Any:
    """`tokens_from_rows` with the plan's own weights, in the rows' dtype."""
    weight = ops.cast(plan.weight, rows.dtype)
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


def check_width(tokens: Any, width: int) -> None:
    """Raises a `ValueError` unless the tokens have the width that a layer was built for."""
    require(
        tokens.shape[-1] == width,
        f"tokens must have width {width}, as built. Received: tokens of shape "
        f"{tuple(tokens.shape)}",
    )
