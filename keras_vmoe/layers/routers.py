"""Routers: layers that turn tokens into a Plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.layers.router import Router
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_positive_int,
)

LossTerms = dict[str, tuple[float, Callable[[], Any]]]


@keras.saving.register_keras_serializable(package="keras_vmoe")
class TopKRouter(Router):
    """Noisy top-k token choice with Batch Prioritized Routing.

    Gates are `softmax(x W + noise)`, the noise normal with standard deviation `noise_std / e` and
    only in training. The k largest are the combine weights, as they are.

    Args:
        num_experts: experts (e).
        num_selected: choices per token (k).
        capacity_factor: slots for each of the `s * k` assignments (C).
        eval_capacity_factor: C when not training; `None` takes `capacity_factor`.
        capacity_rounding: `"ceil"` or `"round"`.
        capacity_multiple_of: capacity is rounded up to a multiple of this.
        expert_capacity: slots per expert and group, given outright; overrides the factors.
        batch_priority: serve the tokens with the largest gates first.
        priority_score: `"max"` (the top gate) or `"sum"` (of the k gates).
        noise_std: noise before division by e.
        renormalise_gates: divide the k gates by their sum.
        importance_loss_weight: of the importance loss; 0 leaves it out.
        load_loss_weight: of the load loss, in training with noise only; 0 leaves it out.
        gshard_loss_weight: of GShard's loss; 0 leaves it out.
        z_loss_weight: of the router z-loss; 0 leaves it out.
        kernel_initializer: of the `[d, e]` kernel.
        seed: of the noise.

    Call arguments:
        inputs: `[g, s, d]`.
        mask: optional `[g, s]` bool; false tokens take no slot and count in no loss.
        noise: optional `[g, s, e]` unit normal noise.
        capacity: slots per expert; `None` computes them from s.
        group_capacity: optional `[g]` ints, the slots that each group may really use.
        training: adds noise, and picks the capacity factor.
        num_selected, capacity_factor, batch_priority: override the layer's own for this call.

    Returns:
        `keras_vmoe.ops.TokenChoicePlan`.

    Raises:
        ValueError: `num_selected` above `num_experts`, unknown names, values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> router = layers.TopKRouter(num_experts=4, num_selected=2)
    >>> plan = router(np.ones((1, 6, 8), "float32"))
    >>> tuple(plan.expert.shape), tuple(plan.gates.shape)
    ((1, 6, 2), (1, 6, 4))

    Reference: Riquelme et al. 2021, arXiv 2106.05974, eq. 2, section 4 and appendix A.
    """

    def __init__(
        self,
        num_experts: int = 8,
        num_selected: int = 2,
        capacity_factor: float = 1.05,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str = "ceil",
        capacity_multiple_of: int = 4,
        expert_capacity: int | None = None,
        batch_priority: bool = True,
        priority_score: str = "max",
        noise_std: float = 1.0,
        renormalise_gates: bool = False,
        importance_loss_weight: float = 0.005,
        load_loss_weight: float = 0.005,
        gshard_loss_weight: float = 0.0,
        z_loss_weight: float = 0.0,
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
        self._require_selected(num_selected)
        require_choice("priority_score", priority_score, ("max", "sum"))
        for name, weight in (
            ("importance_loss_weight", importance_loss_weight),
            ("load_loss_weight", load_loss_weight),
            ("gshard_loss_weight", gshard_loss_weight),
            ("z_loss_weight", z_loss_weight),
        ):
            require(weight >= 0, f"{name} must not be negative. Received: {name}={weight}")
        self.num_selected = num_selected
        self.batch_priority = batch_priority
        self.priority_score = priority_score
        self.renormalise_gates = renormalise_gates
        self.importance_loss_weight = importance_loss_weight
        self.load_loss_weight = load_loss_weight
        self.gshard_loss_weight = gshard_loss_weight
        self.z_loss_weight = z_loss_weight

    def _require_selected(self, num_selected: int) -> None:
        require_positive_int("num_selected", num_selected)
        require(
            num_selected <= self.num_experts,
            f"num_selected must be at most num_experts={self.num_experts}. "
            f"Received: num_selected={num_selected}",
        )

    def _choices_per_token(self, num_selected: int | None) -> int:
        if num_selected is None:
            return self.num_selected
        self._require_selected(num_selected)
        return num_selected

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        noise: Any = None,
        capacity: Any = None,
        group_capacity: Any = None,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> ops.TokenChoicePlan:
        self._require_inputs(inputs)
        k = self._choices_per_token(num_selected)
        if capacity is None:
            capacity = self.capacity(inputs.shape[1], training, num_selected, capacity_factor)
        return self._plan(
            kops.matmul(inputs, self.kernel),
            k,
            capacity if group_capacity is None else group_capacity,
            self.batch_priority if batch_priority is None else batch_priority,
            mask,
            noise,
            training,
        )

    def _plan(
        self,
        logits: Any,
        k: int,
        capacity: Any,
        batch_priority: bool,
        mask: Any,
        noise: Any,
        training: bool,
        further_losses: Callable[[Any], LossTerms] | None = None,
    ) -> ops.TokenChoicePlan:
        """From the logits of groups, `[g, s, experts]`, to their plan; adds the losses.

        `further_losses` gives others from the noise-free gates; those of the same name win.
        """
        logits = ops.lay_out(logits, "batch")
        noise = self._noise(logits, noise, training)
        noise_std = self.noise_std / logits.shape[-1]
        noisy = logits if noise is None else logits + noise * noise_std
        gates = ops.lay_out(kops.softmax(noisy, axis=-1), "batch")
        # The clean probabilities, even where the gates are noisy.
        clean = gates if noise is None else kops.softmax(logits, axis=-1)
        terms = self._loss_terms(logits, noisy, clean, gates, k, mask)
        self._add_losses(terms | further_losses(clean) if further_losses else terms)
        return ops.top_k_routing(
            gates,
            k,
            capacity,
            mask=mask,
            batch_priority=batch_priority,
            priority_score=self.priority_score,
            renormalise=self.renormalise_gates,
        )

    def _loss_terms(
        self, logits: Any, noisy: Any, clean: Any, gates: Any, k: int, mask: Any
    ) -> LossTerms:
        """The weight of each loss, and what computes it: a scalar."""
        std = self.noise_std / logits.shape[-1]
        of_groups = {
            "importance": (self.importance_loss_weight, lambda: ops.importance_loss(clean, mask)),
            "load": (
                0 if noisy is logits else self.load_loss_weight,
                lambda: ops.load_loss(logits, noisy, std, k, mask),
            ),
            "gshard": (self.gshard_loss_weight, lambda: ops.gshard_loss(gates, mask)),
            "z": (self.z_loss_weight, lambda: ops.router_z_loss(logits, mask)),
        }
        return {
            name: (weight, lambda compute=compute: ops.group_mean(compute(), mask))
            for name, (weight, compute) in of_groups.items()
        }

    def _add_losses(self, terms: LossTerms) -> None:
        """Adds the losses whose weight is above 0. A weight of 0 leaves a loss uncomputed."""
        for name, (weight, compute) in terms.items():
            if weight:
                value = compute()
                effects.emit_loss(self, weight * value)
                effects.emit_term(name, value)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_selected": self.num_selected,
            "batch_priority": self.batch_priority,
            "priority_score": self.priority_score,
            "renormalise_gates": self.renormalise_gates,
            "importance_loss_weight": self.importance_loss_weight,
            "load_loss_weight": self.load_loss_weight,
            "gshard_loss_weight": self.gshard_loss_weight,
            "z_loss_weight": self.z_loss_weight,
        }


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
