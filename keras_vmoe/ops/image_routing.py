"""Routing of whole images: all tokens of an image go to the same experts.

Axis letters: b images, e experts, k choices per image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_vmoe.ops.routing import TokenChoicePlan, assign_slots
from keras_vmoe.ops.top_k import top_k
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_finite,
    require_rank,
    require_selected,
)

GATES = ("softmax", "straight_through")


class ImagePlan(NamedTuple):
    """Each image chooses k experts for all of its tokens. Nothing is dropped.

    Attributes:
        expert: `[b, k]` int32, the experts of an image, best first.
        weight: `[b, k]`, what the outputs of the experts are multiplied by.
        gates: `[b, e]`, the softmax of the logits.
        logits: `[b, e]`.
    """

    expert: Any
    weight: Any
    gates: Any
    logits: Any


def image_routing(
    logits: Any, num_selected: int = 1, renormalise: bool = False, gate: str = "softmax"
) -> ImagePlan:
    """Sends each image to the k experts with the largest gates.

    Args:
        logits: `[b, e]`.
        num_selected: experts per image (k).
        renormalise: divide the k weights by their sum. At k=1 the weight is then 1, and the loss
            of the task says nothing to the router.
        gate: `"softmax"`: the weights are the gates. `"straight_through"`: they have the value of
            renormalised ones and the gradient of the gates, so a router that is unsure does not
            shrink what its experts say, and still learns from the task.

    Returns:
        An `ImagePlan`. Ties go to the lower expert.

    Raises:
        ValueError: logits of another rank, (in eager mode) logits that are not finite,
            `num_selected` above the number of experts, an unknown gate, or both kinds of weights.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> logits = np.log(np.array([[0.2, 0.8], [0.5, 0.5]], "float32"))
    >>> plan = ops.image_routing(logits)
    >>> np.array(plan.expert).tolist(), round(float(plan.weight[0, 0]), 3)
    ([[1], [0]], 0.8)

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section 2.
    """
    logits = ops.convert_to_tensor(logits)
    require_rank("logits", logits, 2, "[images, experts]")
    require_finite("logits", logits)
    require_selected(num_selected, logits.shape[-1])
    require_gate(gate, renormalise)
    gates = ops.softmax(logits, axis=-1)
    weight, expert = top_k(gates, num_selected)
    if renormalise or gate == "straight_through":
        shares = weight / ops.sum(weight, axis=-1, keepdims=True)
        # Adding zero: the value of the shares, the gradient of the gates.
        weight = shares if renormalise else weight + ops.stop_gradient(shares - weight)
    return ImagePlan(ops.cast(expert, "int32"), weight, gates, logits)


def require_gate(gate: str, renormalise: bool) -> None:
    """Raises a `ValueError` unless `gate` is one, and goes with `renormalise`."""
    require_choice("gate", gate, GATES)
    require(
        not (renormalise and gate == "straight_through"),
        "gate='straight_through' has the values of renormalised gates already. "
        "Received: both; leave one of them out",
    )


def as_token_choice(plan: ImagePlan) -> TokenChoicePlan:
    """The same routing with images for tokens, in one group in which all choices have a slot.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> plan = ops.as_token_choice(ops.image_routing(np.eye(2, dtype="float32")))
    >>> tuple(plan.expert.shape), np.array(plan.slot).reshape(-1).tolist()
    ((1, 2, 1), [0, 0])
    """
    expert, weight, gates = (ops.expand_dims(x, 0) for x in plan[:3])
    return assign_slots(expert, weight, gates, ops.maximum(ops.shape(plan.expert)[0], 1))
