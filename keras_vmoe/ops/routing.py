"""Routing: from gates to a Plan, that says which token takes which slot of which expert.

Axis letters: g groups, s tokens per group, e experts, c slots per expert, k choices per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_vmoe.ops.top_k import top_k
from keras_vmoe.ops.validation import (
    concrete,
    require,
    require_choice,
    require_finite,
    require_positive_int,
    require_rank,
    require_same_axes,
)


class TokenChoicePlan(NamedTuple):
    """Each token chooses k experts.

    Attributes:
        expert: `[g, s, k]` int32, the expert of each choice, best first.
        slot: `[g, s, k]` int32, the place in that expert's queue, whether or not it was reached.
        weight: `[g, s, k]`, the combine weight of the choice.
        kept: `[g, s, k]` bool, whether the choice got a slot (`slot < capacity`, token not masked).
        gates: `[g, s, e]`, what the choice was made from.
    """

    expert: Any
    slot: Any
    weight: Any
    kept: Any
    gates: Any


class ExpertChoicePlan(NamedTuple):
    """Each expert chooses c tokens.

    Attributes:
        token: `[g, e, c]` int32, the token in each slot, best first.
        weight: `[g, e, c]`, the combine weight of the slot.
        kept: `[g, e, c]` bool, false where a slot stays empty.
        gates: `[g, s, e]`, what the choice was made from.
    """

    token: Any
    weight: Any
    kept: Any
    gates: Any


class SoftPlan(NamedTuple):
    """Each slot is a mixture of all tokens, each output a mixture of all slots.

    Attributes:
        dispatch: `[g, s, e, c]`, sums to one over the tokens.
        combine: `[g, s, e, c]`, sums to one over all slots.
    """

    dispatch: Any
    combine: Any


Plan = TokenChoicePlan | ExpertChoicePlan | SoftPlan


def _check_gates(gates: Any) -> None:
    require_rank("gates", gates, 3, "[groups, tokens, experts]")
    require_finite("gates", gates)


def _checked_mask(mask: Any, tokens: Any) -> Any:
    """A `[g, s]` mask as a bool tensor, or `None`."""
    if mask is None:
        return None
    mask = ops.cast(mask, "bool")
    require_rank("mask", mask, 2, "[groups, tokens]")
    require_same_axes("mask", mask, tokens)
    return mask


def _is_number(capacity: Any) -> bool:
    return isinstance(capacity, (int, float, np.number))


def _check_capacity(capacity: Any) -> None:
    """Refuses numbers below 1. A group of a tensor may have none: it holds no token then."""
    if _is_number(capacity):
        require(
            capacity == int(capacity) and capacity >= 1,
            f"capacity must be an integer of at least 1. Received: capacity={capacity}",
        )


def _capacity_per_group(capacity: Any, rank: int) -> Any:
    """An int as it is; a `[g]` tensor with axes added to meet a tensor of `rank` axes."""
    if _is_number(capacity):
        return int(capacity)
    capacity = ops.cast(capacity, "int32")
    return ops.reshape(capacity, [-1] + [1] * (rank - 1))


def priority_order(gates: Any, num_selected: int, mask: Any = None, score: str = "max") -> Any:
    """The order in which tokens are served under Batch Prioritized Routing.

    Args:
        gates: `[g, s, e]`.
        num_selected: choices per token, which `score="sum"` adds up.
        mask: optional `[g, s]` bool; masked tokens come last.
        score: `"max"` (the top gate, Algorithm 2) or `"sum"` (of the k chosen gates).

    Returns:
        `[g, s]` int32 token ids, most important first. The sort is stable.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]]], "float32")
    >>> np.array(ops.priority_order(gates, num_selected=1)).tolist()
    [[1, 2, 0]]

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4 (Batch Prioritized Routing).
    """
    require_choice("score", score, ("max", "sum"))
    gates = ops.convert_to_tensor(gates)
    scores = ops.sum(ops.top_k(gates, 1 if score == "max" else num_selected)[0], axis=-1)
    if mask is not None:
        scores = ops.where(mask, scores, -ops.ones_like(scores))
    return ops.cast(ops.argsort(-scores, axis=-1), "int32")


def _take(values: Any, indices: Any) -> Any:
    """`values[g, indices[g, i]]`: `[g, n]` and `[g, m]` to `[g, m]`."""
    if keras.backend.backend() == "jax":
        # XLA sees that groups stay apart, and lets each device take from its own.
        return ops.take_along_axis(values, indices, axis=1)
    groups, width = ops.shape(values)[0], ops.shape(values)[1]
    offsets = ops.expand_dims(ops.arange(groups, dtype="int32") * width, 1)
    return ops.take(ops.reshape(values, [-1]), indices + offsets)


def _counts(queue: Any, width: int) -> Any:
    """How often each number from 0 to below `width` comes in a group: `[g, n]` to `[g, width]`."""
    if keras.backend.backend() == "jax":
        hits = ops.equal(ops.expand_dims(queue, -1), ops.arange(width, dtype="int32"))
        return ops.sum(ops.cast(hits, "int32"), axis=1)
    groups = ops.shape(queue)[0]
    rows = ops.expand_dims(ops.arange(groups, dtype="int32") * width, 1)
    counts = ops.segment_sum(
        ops.reshape(ops.ones_like(queue), [-1]), ops.reshape(queue + rows, [-1]), groups * width
    )
    return ops.reshape(counts, [groups, width])


def _queue_slots(expert: Any, order: Any, num_experts: int) -> Any:
    """The place of each choice in its expert's queue.

    All first choices stand before any second choice, and within a rank the tokens stand in
    `order`. Found by two stable sorts, so that nothing of size `s * e` is made
    (but by JAX outside of `jit`, for the counts).

    Args:
        expert: `[g, s, k]` int32; `num_experts` itself for choices that stand in no queue.
        order: `[g, s]` int32, a permutation of the tokens, or `None` for token order.

    Returns:
        `[g, s, k]` int32.
    """
    tokens, k = ops.shape(expert)[1], expert.shape[2]
    ranked = [expert[:, :, i] for i in range(k)]
    if order is not None:
        ranked = [_take(choice, order) for choice in ranked]
    queue = ops.concatenate(ranked, axis=1) if k > 1 else ranked[0]  # [g, k * s]
    by_expert = ops.cast(ops.argsort(queue, axis=1), "int32")
    position = ops.cast(ops.argsort(by_expert, axis=1), "int32")
    counts = _counts(queue, num_experts + 1)
    slot = position - _take(ops.cumsum(counts, axis=1) - counts, queue)
    slots = [slot[:, i * tokens : (i + 1) * tokens] for i in range(k)]
    if order is not None:
        inverse = ops.cast(ops.argsort(order, axis=1), "int32")
        slots = [_take(part, inverse) for part in slots]
    return ops.stack(slots, axis=-1)


def assign_slots(
    expert: Any,
    weight: Any,
    gates: Any,
    capacity: Any,
    mask: Any = None,
    order: Any = None,
) -> TokenChoicePlan:
    """Queues given choices before their experts and keeps those within capacity.

    Args:
        expert: `[g, s, k]` int32 expert ids, best choice first.
        weight: `[g, s, k]` combine weights.
        gates: `[g, s, e]`, kept in the plan for analysis; its last axis says how many experts.
        capacity: slots per expert, an `int` or a `[g]` int tensor.
        mask: optional `[g, s]` bool; false tokens stand in no queue.
        order: optional `[g, s]` order of service; `None` serves in token order.

    Returns:
        A `TokenChoicePlan`.

    Raises:
        ValueError: for a capacity below 1 or a wrong rank.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> expert = np.array([[[0], [0], [1]]], "int32")
    >>> plan = ops.assign_slots(expert, np.ones((1, 3, 1)), np.ones((1, 3, 2)), capacity=1)
    >>> np.array(plan.kept)[0, :, 0].tolist()
    [True, False, True]

    Reference: Riquelme et al. 2021, arXiv 2106.05974, Algorithm 1.
    """
    require_rank("expert", expert, 3, "[groups, tokens, choices]")
    _check_capacity(capacity)
    num_experts = gates.shape[-1]
    expert = ops.cast(expert, "int32")
    require_same_axes("weight", weight, expert, 3)
    known = concrete(expert)
    require(
        known is None or known.size == 0 or (known.min() >= 0 and known.max() < num_experts),
        f"expert must hold ids from 0 to {num_experts - 1}, as many as gates has experts. "
        "Received: ids beyond them",
    )
    mask = _checked_mask(mask, expert)
    queued = expert
    if mask is not None:
        queued = ops.where(ops.expand_dims(mask, -1), expert, num_experts)
    slot = _queue_slots(queued, order, num_experts)
    kept = slot < _capacity_per_group(capacity, 3)
    if mask is not None:
        kept = ops.logical_and(kept, ops.expand_dims(mask, -1))
    return TokenChoicePlan(expert, slot, ops.convert_to_tensor(weight), kept, gates)


def top_k_routing(
    gates: Any,
    num_selected: int,
    capacity: Any,
    mask: Any = None,
    batch_priority: bool = False,
    priority_score: str = "max",
    renormalise: bool = False,
) -> TokenChoicePlan:
    """Token choice: each token goes to the k experts with the largest gates.

    Args:
        gates: `[g, s, e]` softmax probabilities.
        num_selected: choices per token (k).
        capacity: slots per expert, an `int` or a `[g]` int tensor.
        mask: optional `[g, s]` bool; false tokens take no slot.
        batch_priority: serve tokens by the size of their gates instead of by position.
        priority_score: `"max"` or `"sum"`, see `priority_order`.
        renormalise: divide the k weights by their sum. The papers leave them as they are.

    Returns:
        A `TokenChoicePlan`. Ties go to the lower expert and the earlier token.

    Raises:
        ValueError: `num_selected` above the number of experts, a capacity below 1, wrong ranks,
            or (in eager mode) non-finite gates.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1, batch_priority=True)
    >>> np.array(plan.expert)[0, :, 0].tolist(), np.array(plan.kept)[0, :, 0].tolist()
    ([0, 1, 1], [True, True, False])

    Reference: Riquelme et al. 2021, arXiv 2106.05974, eq. 2 and Algorithms 1 and 2.
    """
    gates = ops.convert_to_tensor(gates)
    _check_gates(gates)
    mask = _checked_mask(mask, gates)
    require_positive_int("num_selected", num_selected)
    num_experts = gates.shape[-1]
    require(
        num_selected <= num_experts,
        f"num_selected must be at most the number of experts, {num_experts}. "
        f"Received: num_selected={num_selected}",
    )
    require_choice("priority_score", priority_score, ("max", "sum"))
    _check_capacity(capacity)
    weight, expert = top_k(gates, num_selected)
    order = None
    if batch_priority:
        order = priority_order(gates, num_selected, mask, priority_score)
    if renormalise:
        weight = weight / ops.sum(weight, axis=-1, keepdims=True)
    return assign_slots(expert, weight, gates, capacity, mask, order)


def expert_choice_routing(
    gates: Any,
    capacity: int,
    mask: Any = None,
    group_capacity: Any = None,
    renormalise: bool = False,
) -> ExpertChoicePlan:
    """Expert choice: each expert takes the `capacity` tokens with the largest gates.

    Args:
        gates: `[g, s, e]` softmax probabilities over the experts.
        capacity: slots per expert, at most s.
        mask: optional `[g, s]` bool; false tokens are taken by no expert.
        group_capacity: optional `[g]` int tensor, where groups use fewer than `capacity` slots.
        renormalise: divide a token's weights by their sum over the experts that took it, as sparse
            upcycling does in vision.

    Returns:
        An `ExpertChoicePlan`.

    Raises:
        ValueError: a capacity below 1 or above s, wrong ranks, or (eager) non-finite gates.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]]], "float32")
    >>> np.array(ops.expert_choice_routing(gates, capacity=2).token).tolist()
    [[[0, 2], [1, 2]]]

    Reference: Zhou et al. 2022, arXiv 2202.09368, section 3.2; Komatsuzaki et al. 2022, arXiv
    2212.05055, section 3.1 (renormalised weights).
    """
    gates = ops.convert_to_tensor(gates)
    _check_gates(gates)
    mask = _checked_mask(mask, gates)
    _check_capacity(capacity)
    tokens = gates.shape[1]
    require(
        tokens is None or not _is_number(capacity) or capacity <= tokens,
        f"capacity must be at most the tokens of a group, {tokens}. Received: capacity={capacity}",
    )
    scores = ops.transpose(gates, (0, 2, 1))
    if mask is not None:
        scores = ops.where(ops.expand_dims(mask, 1), scores, -ops.ones_like(scores))
    weight, token = top_k(scores, capacity)
    kept = weight >= 0
    if group_capacity is not None:
        in_group = ops.arange(capacity, dtype="int32") < _capacity_per_group(group_capacity, 3)
        kept = ops.logical_and(kept, in_group)
    weight = ops.where(kept, weight, ops.zeros_like(weight))
    token = ops.cast(token, "int32")
    if renormalise:
        slots = capacity if group_capacity is None else _capacity_per_group(group_capacity, 3)
        weight = weight / _take_each(_weight_of_tokens(scores, slots), token)
    return ExpertChoicePlan(token, weight, kept, gates)


def _weight_of_tokens(scores: Any, slots: Any) -> Any:
    """The sum of each token's scores over the experts that take it: `[g, e, s]` to `[g, s]`."""
    # Places in each expert's order, by two stable sorts: nothing is scattered.
    order = ops.argsort(-scores, axis=-1)
    place = ops.cast(ops.argsort(order, axis=-1), "int32")
    taken = ops.logical_and(place < slots, scores >= 0)
    total = ops.sum(ops.where(taken, scores, ops.zeros_like(scores)), axis=1)
    return ops.maximum(total, 1e-30)


def _take_each(values: Any, indices: Any) -> Any:
    """`values[g, indices[g, e, c]]`: `[g, s]` and `[g, e, c]` to `[g, e, c]`."""
    shape = ops.shape(indices)
    flat = _take(values, ops.reshape(indices, [shape[0], -1]))
    return ops.reshape(flat, shape)


def soft_routing(logits: Any, mask: Any = None) -> SoftPlan:
    """Soft MoE: every slot takes a softmax-weighted mean of the tokens, and back.

    Args:
        logits: `[g, s, e, c]`, affinity of each token to each slot.
        mask: optional `[g, s]` bool; false tokens give nothing and receive zero.

    Returns:
        A `SoftPlan`.

    Raises:
        ValueError: wrong ranks, or (in eager mode) non-finite logits.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> plan = ops.soft_routing(np.zeros((1, 4, 2, 1), "float32"))
    >>> float(plan.dispatch[0, 0, 0, 0]), float(plan.combine[0, 0, 0, 0])
    (0.25, 0.5)

    Reference: Puigcerver et al. 2023, arXiv 2308.00951, section 2.1.
    """
    logits = ops.convert_to_tensor(logits)
    require_rank("logits", logits, 4, "[groups, tokens, experts, slots]")
    require_finite("logits", logits)
    if keras.backend.standardize_dtype(logits.dtype) in ("float16", "bfloat16"):
        logits = ops.cast(logits, "float32")
    experts, slots = logits.shape[2], logits.shape[3]
    flat = ops.reshape(logits, [ops.shape(logits)[0], -1, experts * slots])
    combine = ops.softmax(flat, axis=-1)
    mask = _checked_mask(mask, logits)
    if mask is not None:
        real = ops.expand_dims(mask, -1)
        # A large finite number: a group without any token must give zero, not NaN.
        flat = ops.where(real, flat, ops.full_like(flat, -3e38))
        present = ops.cast(real, flat.dtype)
        dispatch = ops.softmax(flat, axis=1) * present
        combine = combine * present
    else:
        dispatch = ops.softmax(flat, axis=1)
    shape = ops.shape(logits)
    return SoftPlan(ops.reshape(dispatch, shape), ops.reshape(combine, shape))
