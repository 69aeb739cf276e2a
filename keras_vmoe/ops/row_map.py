"""Which row of which expert each choice of a plan is, and moving rows there and back.

Moving rows is linear, and the transpose of one direction is the other, so both have gradients of
their own that gather as well and never scatter-add.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_vmoe.ops.routing import ExpertChoicePlan, Plan
from keras_vmoe.ops.validation import require_choice


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
        # JAX needs a static number of rows; the rest of them belong to no group. Where no choice
        # is kept at all, one such row remains, for the dropped choices to point to.
        dynamic = keras.backend.backend() == "tensorflow"
        num_rows = ops.maximum(ops.sum(sizes), 1) if dynamic else groups * tokens * k
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


def _parts(where: RowMap) -> tuple[list[str], list[Any]]:
    """The names and tensors of a row map that are there.

    A function with a gradient of its own takes them as arguments: on JAX, rematerialisation calls
    it again later, when tensors that it merely closed over are gone.
    """
    names = [name for name in RowMap._fields if getattr(where, name) is not None]
    return names, [getattr(where, name) for name in names]


def _from_parts(names: list[str], parts: tuple[Any, ...]) -> RowMap:
    return RowMap(**{**dict.fromkeys(RowMap._fields), **dict(zip(names, parts, strict=True))})


def rows_from_tokens(tokens: Any, where: RowMap) -> Any:
    """`[n, d]` tokens to `[m, d]` rows; rows that nobody fills are zero."""
    names, parts = _parts(where)

    @ops.custom_gradient
    def take(values: Any, *parts: Any) -> tuple[Any, Any]:
        where = _from_parts(names, parts)
        rows = _take_rows(values, where.source, where.filled)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = _upstream(args, upstream)
            tokens = _sum_of_choices(upstream, where, None, ops.shape(values)[0])
            return (tokens, *(None for _ in parts))

        return rows, gradient

    return take(tokens, *parts)


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

    names, parts = _parts(where)

    @ops.custom_gradient
    def put(values: Any, scale: Any, *parts: Any) -> tuple[Any, Any]:
        where = _from_parts(names, parts)
        kept = scale if where.kept is None else scale * ops.cast(where.kept, scale.dtype)
        by_row = ops.take(ops.reshape(kept, [-1]), where.weight_index)
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
            per_choice = ops.reshape(per_choice, ops.shape(scale))
            return (taken * ops.expand_dims(by_row, -1), per_choice, *(None for _ in parts))

        return outputs, gradient

    return put(rows, weight, *parts)
