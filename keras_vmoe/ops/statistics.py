"""Numbers that say how a routing went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_vmoe.ops.entropy import mean_gates, of_modality, token_entropy
from keras_vmoe.ops.losses import safe_divide
from keras_vmoe.ops.routing import ExpertChoicePlan, Plan, SoftPlan, TokenChoicePlan


def expert_shares(plan: Plan) -> Any:
    """`[e]`, the share of all kept assignments that each expert has.

    Under soft routing, the share of the combine weights.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=3)
    >>> [round(float(share), 3) for share in ops.expert_shares(plan)]
    [0.333, 0.667]
    """
    if isinstance(plan, SoftPlan):
        counts = ops.sum(ops.cast(plan.combine, "float32"), axis=(0, 1, 3))
    elif isinstance(plan, ExpertChoicePlan):
        counts = ops.sum(ops.cast(plan.kept, "float32"), axis=(0, 2))
    else:
        kept = ops.reshape(ops.cast(plan.kept, "float32"), [-1])
        counts = ops.segment_sum(kept, ops.reshape(plan.expert, [-1]), plan.gates.shape[-1])
    return safe_divide(counts, ops.broadcast_to(ops.sum(counts), ops.shape(counts)))


def dropped_share(plan: TokenChoicePlan | ExpertChoicePlan, mask: Any = None) -> Any:
    """Share of the choices that got no slot; under expert choice, of tokens that nobody took.

    Masked tokens do not count.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4], [0.9, 0.1]]], "float32")
    >>> float(ops.dropped_share(ops.top_k_routing(gates, num_selected=1, capacity=1)))
    0.5
    """
    groups, tokens = ops.shape(plan.gates)[0], ops.shape(plan.gates)[1]
    if isinstance(plan, ExpertChoicePlan):
        offset = ops.reshape(ops.arange(groups, dtype="int32") * tokens, [-1, 1, 1])
        hits = ops.segment_sum(
            ops.reshape(ops.cast(plan.kept, "float32"), [-1]),
            ops.reshape(plan.token + offset, [-1]),
            groups * tokens,
        )
        kept = ops.reshape(ops.cast(hits > 0, "float32"), [groups, tokens, 1])
    else:
        kept = ops.cast(plan.kept, "float32")
    if mask is None:
        return ops.mean(1.0 - kept)
    weight = ops.expand_dims(ops.cast(mask, "float32"), -1)
    total = ops.sum(weight) * kept.shape[-1]
    return safe_divide(ops.sum((1.0 - kept) * weight), total)


def routing_statistics(
    plan: TokenChoicePlan | ExpertChoicePlan, mask: Any = None
) -> dict[str, Any]:
    """Scalars of a routing: the metrics of `MoEMLP`.

    Args:
        plan: any plan.
        mask: optional `[g, s]` bool; false tokens count in nothing.

    Returns:
        `expert_load_min`, `expert_load_max` (smallest and largest of `expert_shares`),
        `confidence` (mean of a token's largest gate), `entropy` (mean entropy of a token's gates,
        nats) and, except under soft routing, `dropped` (see `dropped_share`).

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.5, 0.5], [0.5, 0.5]]], "float32")
    >>> statistics = ops.routing_statistics(ops.top_k_routing(gates, 1, capacity=2))
    >>> round(float(statistics["entropy"]), 4), float(statistics["expert_load_max"])
    (0.6931, 1.0)
    """
    shares = expert_shares(plan)
    gates = _gates(plan)
    statistics = {
        "expert_load_min": ops.min(shares),
        "expert_load_max": ops.max(shares),
        "confidence": _masked_mean(ops.max(gates, axis=-1), mask),
        "entropy": _masked_mean(token_entropy(gates), mask),
    }
    if not isinstance(plan, SoftPlan):
        statistics["dropped"] = dropped_share(plan, mask)
    return statistics


_OF_MODALITY = ("success_rate", "effective_experts", "local_entropy", "tokens")


def modality_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names of what `modality_statistics` gives.

    Example:

    >>> from keras_vmoe.ops.statistics import modality_metrics
    >>> modality_metrics(["text"])[:2]
    ('text_success_rate', 'text_effective_experts')
    """
    return tuple(f"{name}_{statistic}" for name in names for statistic in _OF_MODALITY)


def modality_statistics(
    plan: TokenChoicePlan, modality: Any, names: Sequence[str], mask: Any = None
) -> dict[str, Any]:
    """Scalars of the routing of each modality.

    Args:
        plan: of token choice.
        modality: `[g, s]` ints, places in `names`.
        names: of the modalities.
        mask: optional `[g, s]` bool; false tokens count in nothing.

    Returns:
        For each name `NAME_success_rate` (share of its choices that got a slot),
        `NAME_effective_experts` (the exponential of the entropy of its mean gates: how many
        experts its tokens use), `NAME_local_entropy` (mean entropy of a token's gates, nats) and
        `NAME_tokens` (their number).

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]], "float32")
    >>> plan = ops.top_k_routing(gates, num_selected=1, capacity=1)
    >>> found = ops.modality_statistics(plan, np.array([[0, 0, 1]]), ["image", "text"])
    >>> float(found["image_success_rate"]), float(found["text_success_rate"])
    (0.5, 1.0)

    Reference: Mustafa et al. 2022, arXiv 2206.02770, section 4 (success rates).
    """
    gates = ops.cast(plan.gates, "float32")
    entropy, found = token_entropy(gates), {}
    for index, name in enumerate(names):
        own = of_modality(modality, index, mask)
        found[f"{name}_success_rate"] = 1.0 - dropped_share(plan, own)
        found[f"{name}_effective_experts"] = ops.exp(token_entropy(mean_gates(gates, own)))
        found[f"{name}_local_entropy"] = _masked_mean(entropy, own)
        found[f"{name}_tokens"] = ops.sum(ops.cast(own, "float32"))
    return found


def _gates(plan: Plan) -> Any:
    """What each token spreads over: experts, or all slots under soft routing; float32."""
    if not isinstance(plan, SoftPlan):
        return ops.cast(plan.gates, "float32")
    groups, tokens = ops.shape(plan.combine)[:2]
    slots = plan.combine.shape[2] * plan.combine.shape[3]
    return ops.cast(ops.reshape(plan.combine, [groups, tokens, slots]), "float32")


def _masked_mean(values: Any, mask: Any) -> Any:
    if mask is None:
        return ops.mean(values)
    weight = ops.cast(mask, values.dtype)
    return safe_divide(ops.sum(values * weight), ops.sum(weight))
