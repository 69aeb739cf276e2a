"""Members of an efficient ensemble within a routing group, and plans of members as one plan.

Axis letters: g groups, m members, s tokens per group, e experts, k choices per token.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_vmoe.ops.routing import TokenChoicePlan
from keras_vmoe.ops.validation import require_positive_int


def split_members(values: Any, num_members: int, tokens_per_member: Any) -> Any:
    """Makes the tokens of each member a group of its own.

    Args:
        values: `[g, s, ...]`, tokens in the order (image, member, token): runs of
            `tokens_per_member`, the members taking turns.
        num_members: members (m).
        tokens_per_member: tokens of an image in one member; may be a tensor.

    Returns:
        `[g * m, s / m, ...]`, the members of a group next to each other.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> tokens = np.array([[0, 1, 10, 11, 2, 3, 12, 13]])  # two images, two members of two tokens
    >>> np.array(ops.split_members(tokens, 2, 2)).tolist()
    [[0, 1, 2, 3], [10, 11, 12, 13]]
    """
    require_positive_int("num_members", num_members)
    shape = tuple(ops.shape(values))
    groups, images = shape[0], shape[1] // (num_members * tokens_per_member)
    parts = ops.reshape(values, [groups, images, num_members, tokens_per_member, *shape[2:]])
    parts = ops.swapaxes(parts, 1, 2)
    return ops.reshape(parts, [groups * num_members, images * tokens_per_member, *shape[2:]])


def _join_members(values: Any, num_members: int, tokens_per_member: Any) -> Any:
    """The inverse of `split_members`."""
    shape = tuple(ops.shape(values))
    groups, images = shape[0] // num_members, shape[1] // tokens_per_member
    parts = ops.reshape(values, [groups, num_members, images, tokens_per_member, *shape[2:]])
    parts = ops.swapaxes(parts, 1, 2)
    return ops.reshape(parts, [groups, num_members * shape[1], *shape[2:]])


def merge_members(
    plan: TokenChoicePlan, num_members: int, tokens_per_member: Any
) -> TokenChoicePlan:
    """The plans that members made over their own experts as one plan over all experts.

    No two members share an expert, so a choice keeps its place in the queue.

    Args:
        plan: of `[g * m]` groups and `e / m` experts, tokens as `split_members` gives them.
        num_members: members (m).
        tokens_per_member: as for `split_members`.

    Returns:
        A plan of `[g]` groups and e experts: member i has the experts from `i * e / m` on, and its
        gates are zero for all others.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.6, 0.4]], [[0.3, 0.7]]], "float32")  # two members, a token each
    >>> plan = ops.merge_members(ops.top_k_routing(gates, 1, capacity=1), 2, 1)
    >>> np.array(plan.expert)[0, :, 0].tolist()
    [0, 3]

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 4.1.
    """
    experts = plan.gates.shape[-1]
    member = ops.arange(ops.shape(plan.gates)[0], dtype="int32") % num_members
    own = ops.one_hot(member, num_members, dtype=plan.gates.dtype)  # [g * m, m]
    gates = ops.expand_dims(plan.gates, 2) * ops.reshape(own, [-1, 1, num_members, 1])
    shape = tuple(ops.shape(plan.gates))
    merged = plan._replace(
        expert=plan.expert + ops.reshape(member * experts, [-1, 1, 1]),
        gates=ops.reshape(gates, [shape[0], shape[1], num_members * experts]),
    )
    return TokenChoicePlan(*(_join_members(x, num_members, tokens_per_member) for x in merged))
