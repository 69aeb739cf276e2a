"""Expert choice and soft routing, and routers by name."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers.router import Router
from keras_vmoe.layers.top_k_router import TopKRouter
from keras_vmoe.ops.validation import (
    require,
    require_positive_int,
)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ExpertChoiceRouter(Router):
    """Expert choice: every expert takes the tokens it has the largest gates for.

    All experts are full by construction, so there is no auxiliary loss; a token may go to any
    number of experts, none included.

    Args:
        num_experts: experts (e).
        capacity_factor: mean number of experts per token (C); an expert has `s * C / e` slots.
        eval_capacity_factor: C when not training; `None` takes `capacity_factor`.
        capacity_rounding: `"round"` or `"ceil"`.
        capacity_multiple_of: capacity is rounded up to a multiple of this.
        expert_capacity: slots per expert and group, given outright; overrides the factors.
        noise_std: noise in training, before division by e.
        renormalise_gates: divide a token's weights by their sum over the experts that took it.
        kernel_initializer: of the `[d, e]` kernel.
        seed: of the noise.

    Call arguments:
        inputs: `[g, s, d]`.
        mask: optional `[g, s]` bool; false tokens are taken by no expert.
        noise: optional `[g, s, e]` unit normal noise.
        capacity, group_capacity, training, capacity_factor: as in `TopKRouter`.

    Returns:
        `keras_vmoe.ops.ExpertChoicePlan`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> plan = layers.ExpertChoiceRouter(num_experts=4)(np.ones((1, 8, 5), "float32"))
    >>> tuple(plan.token.shape)
    (1, 4, 2)

    Reference: Zhou et al. 2022, arXiv 2202.09368, section 3.2.
    """

    plan_type = ops.ExpertChoicePlan

    def __init__(
        self,
        num_experts: int = 8,
        capacity_factor: float = 1.0,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str = "round",
        capacity_multiple_of: int = 1,
        expert_capacity: int | None = None,
        noise_std: float = 1.0,
        renormalise_gates: bool = False,
        kernel_initializer: Any = "lecun_normal",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_experts,
            capacity_factor,
            eval_capacity_factor,
            capacity_rounding,
            capacity_multiple_of,
            expert_capacity,
            noise_std,
            kernel_initializer,
            seed,
            **kwargs,
        )
        self.renormalise_gates = renormalise_gates

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        noise: Any = None,
        capacity: Any = None,
        group_capacity: Any = None,
        training: bool = False,
        capacity_factor: float | None = None,
    ) -> ops.ExpertChoicePlan:
        self._require_inputs(inputs)
        if capacity is None:
            capacity = self.capacity(inputs.shape[1], training, capacity_factor=capacity_factor)
        logits = ops.lay_out(kops.matmul(inputs, self.kernel), "batch")
        noise = self._noise(logits, noise, training)
        if noise is not None:
            logits = logits + noise * (self.noise_std / self.num_experts)
        gates = kops.softmax(logits, axis=-1)
        return ops.expert_choice_routing(
            gates, capacity, mask, group_capacity, self.renormalise_gates
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "renormalise_gates": self.renormalise_gates}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class SoftRouter(Router):
    """Soft MoE: slots are softmax mixtures of tokens. Nothing is dropped, there is no loss.

    Tokens and slot parameters are l2-normalised; a learned scale multiplies the smaller of them.

    Args:
        num_experts: experts (e).
        num_slots: slots per expert (c); `None` computes `capacity_factor * s / e` when built.
        capacity_factor: used where `num_slots` is `None`.
        capacity_rounding: `"round"` or `"ceil"`.
        capacity_multiple_of: slots are rounded up to a multiple of this.
        noise_std: standard deviation of the noise in training (not divided by e).
        kernel_initializer: of the `[d, e, c]` slot parameters.
        seed: of the noise.

    Call arguments:
        inputs: `[g, s, d]`.
        mask: optional `[g, s]` bool; false tokens give nothing and receive zero.
        noise: optional `[g, s, e, c]` unit normal noise.
        training: adds noise.

    Returns:
        `keras_vmoe.ops.SoftPlan`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> plan = layers.SoftRouter(num_experts=4, num_slots=1)(np.ones((1, 8, 5), "float32"))
    >>> tuple(plan.dispatch.shape)
    (1, 8, 4, 1)

    Reference: Puigcerver et al. 2023, arXiv 2308.00951, section 2 and Algorithm 2.
    """

    plan_type = ops.SoftPlan

    def __init__(
        self,
        num_experts: int = 8,
        num_slots: int | None = None,
        capacity_factor: float = 1.0,
        capacity_rounding: str = "round",
        capacity_multiple_of: int = 1,
        noise_std: float = 0.0,
        kernel_initializer: Any = "lecun_normal",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_experts,
            capacity_factor,
            None,
            capacity_rounding,
            capacity_multiple_of,
            None,
            noise_std,
            kernel_initializer,
            seed,
            **kwargs,
        )
        if num_slots is not None:
            require_positive_int("num_slots", num_slots)
        self.num_slots = num_slots

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        slots = self.num_slots
        if slots is None:
            require(
                input_shape[1] is not None,
                "num_slots must be given where the number of tokens is not known. "
                f"Received: inputs of shape {tuple(input_shape)}",
            )
            slots = self.capacity(input_shape[1], training=True)
        self.slots = slots
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_experts, slots),
            initializer=self.kernel_initializer,
        )
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(
        self, inputs: Any, mask: Any = None, noise: Any = None, training: bool = False
    ) -> ops.SoftPlan:
        self._require_inputs(inputs)
        tokens = inputs * kops.rsqrt(_norm_squared(inputs, -1))
        slots = self.kernel * (self.scale * kops.rsqrt(_norm_squared(self.kernel, 0)))
        flat = kops.reshape(slots, [slots.shape[0], -1])
        logits = kops.matmul(tokens, flat)
        logits = kops.reshape(logits, [kops.shape(logits)[0], -1, self.num_experts, self.slots])
        noise = self._noise(logits, noise, training)
        if noise is not None:
            logits = logits + self.noise_std * noise
        return ops.soft_routing(logits, mask)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "num_slots": self.num_slots}
        del config["eval_capacity_factor"], config["expert_capacity"]
        return config


def _norm_squared(values: Any, axis: int) -> Any:
    """Squared l2 norm, with the reference's 1e-6 that also keeps zero vectors finite."""
    return kops.sum(kops.square(values), axis=axis, keepdims=True) + 1e-6


_BY_NAME = {"top_k": TopKRouter, "expert_choice": ExpertChoiceRouter, "soft": SoftRouter}


def get(identifier: str | dict[str, Any] | Router) -> Router:
    """A router from a name, a config or a router.

    Args:
        identifier: `"top_k"`, `"expert_choice"`, `"soft"` (with their defaults), a serialised
            config, or a router, which is given back as it is.

    Raises:
        ValueError: an unknown name, or something that is not a router.

    Example:

    >>> from keras_vmoe.layers import routers
    >>> routers.get("top_k").num_selected
    2
    """
    if isinstance(identifier, Router):
        return identifier
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    require(
        isinstance(identifier, str) and identifier in _BY_NAME,
        f"router must be one of {', '.join(map(repr, _BY_NAME))}, a config or a Router. "
        f"Received: router={identifier!r}",
    )
    return _BY_NAME[identifier]()
