"""A router of whole images."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.layers.router import float32_policy
from keras_vmoe.ops.image_routing import require_gate
from keras_vmoe.ops.validation import (
    require,
    require_positive_int,
    require_rank,
    require_selected,
)

_METRICS = ("expert_load_min", "expert_load_max", "confidence", "entropy")


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ImageRouter(keras.layers.Layer):
    """Chooses the experts of an image, for all of its tokens and for all layers that share it.

    One vector per image goes through a linear layer and a softmax; the k largest gates choose.
    There is no capacity, no noise and no loss: `ops.superclass_loss` teaches it, from its logits.

    Args:
        num_experts: experts (e).
        num_selected: experts per image (k).
        renormalise_gates: divide an image's weights by their sum.
        gate: `"softmax"` or `"straight_through"`, see `ops.image_routing`.
        use_bias: whether the linear layer has a bias.
        kernel_initializer: of the linear layer; a small one, as a router that is unsure shrinks
            what its experts say alike for all images.

    Call arguments:
        inputs: `[b, d]`, a vector per image, such as its class token.
        mask: optional `[b]` bool; false images count in no metric.
        num_selected: overrides the router's own for this call.

    Returns:
        An `ops.ImagePlan`.

    Raises:
        ValueError: a value out of range, or inputs that are not `[b, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> plan = layers.ImageRouter(num_experts=4)(np.ones((2, 8), "float32"))
    >>> tuple(plan.expert.shape), tuple(plan.logits.shape)
    ((2, 1), (2, 4))

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section 2.
    """

    def __init__(
        self,
        num_experts: int = 10,
        num_selected: int = 1,
        renormalise_gates: bool = False,
        gate: str = "softmax",
        use_bias: bool = False,
        kernel_initializer: Any = "truncated_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "dtype": float32_policy(kwargs.get("dtype"))})
        require_positive_int("num_experts", num_experts)
        require_selected(num_selected, num_experts)
        require_gate(gate, renormalise_gates)
        if kernel_initializer == "truncated_normal":
            kernel_initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.num_experts = num_experts
        self.num_selected = num_selected
        self.renormalise_gates = renormalise_gates
        self.gate = gate
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self._trackers = {n: keras.metrics.Mean(name=f"{self.name}/{n}") for n in _METRICS}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            len(input_shape) == 2 and input_shape[-1] is not None,
            "inputs must have shape [images, width] with a known width. "
            f"Received: {tuple(input_shape)}",
        )
        shape = (input_shape[-1], self.num_experts)
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer
        )
        self.bias = (
            self.add_weight(name="bias", shape=shape[1:], initializer="zeros")
            if self.use_bias
            else None
        )

    def call(self, inputs: Any, mask: Any = None, num_selected: int | None = None) -> ops.ImagePlan:
        require_rank("inputs", inputs, 2, "[images, width]")
        logits = kops.matmul(inputs, self.kernel)
        if self.bias is not None:
            logits = logits + self.bias
        k = self.num_selected if num_selected is None else num_selected
        plan = ops.image_routing(logits, k, self.renormalise_gates, self.gate)
        if effects.recording():
            effects.emit_record(self._record(plan, mask))
        if effects.metrics_enabled():
            self._update_metrics(plan, mask)
        return plan

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None  # a plan is of all images

    def _record(self, plan: ops.ImagePlan, mask: Any) -> effects.RoutingCall:
        """As that of a MoE layer whose groups are of one image with one token."""
        by_image = _one_token_each(plan, mask)
        mask = None if mask is None else kops.expand_dims(mask, 1)
        return effects.RoutingCall(
            self.name, by_image, 1, kops.shape(plan.expert)[0], 1, {}, mask=mask
        )

    def _update_metrics(self, plan: ops.ImagePlan, mask: Any) -> None:
        mask = None if mask is None else kops.expand_dims(mask, 1)
        found = ops.routing_statistics(_one_token_each(plan, mask), mask)
        for name in _METRICS:
            effects.emit_metric(self._trackers[name], found[name])

    def check_routing(
        self,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> dict[str, Any]:
        """The overrides of a call that were given, checked against what the router takes.

        Raises:
            ValueError: one that routing of whole images does not have, or out of range.
        """
        given = {"capacity_factor": capacity_factor, "batch_priority": batch_priority}
        for name, value in given.items():
            require(
                value is None,
                f"{name} cannot be changed on an ImageRouter, which drops nothing. "
                f"Received: {name}={value!r} for layer {self.name!r}",
            )
        if num_selected is None:
            return {}
        require_selected(num_selected, self.num_experts)
        return {"num_selected": num_selected}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "num_selected": self.num_selected,
            "renormalise_gates": self.renormalise_gates,
            "gate": self.gate,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _one_token_each(plan: ops.ImagePlan, mask: Any) -> ops.TokenChoicePlan:
    """The plan as `[b, 1, k]`: each image is a group of one token, whose choices have slots."""
    expert, weight, gates = (kops.expand_dims(x, 1) for x in plan[:3])
    kept = kops.ones_like(expert, dtype="bool")
    if mask is not None:
        kept = kops.logical_and(kept, kops.reshape(mask, [-1, 1, 1]))
    return ops.TokenChoicePlan(expert, kops.zeros_like(expert), weight, kept, gates)
