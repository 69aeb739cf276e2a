"""Noisy top-k token choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.layers.router import Router
from keras_vmoe.ops.validation import require, require_choice, require_selected

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
        require_selected(num_selected, self.num_experts)

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
        return self._route(
            inputs,
            mask,
            noise,
            capacity,
            group_capacity,
            training,
            num_selected,
            capacity_factor,
            batch_priority,
        )

    def _route(
        self,
        inputs: Any,
        mask: Any,
        noise: Any,
        capacity: Any,
        group_capacity: Any,
        training: bool,
        num_selected: int | None,
        capacity_factor: float | None,
        batch_priority: bool | None,
        further_losses: Callable[[Any], LossTerms] | None = None,
    ) -> ops.TokenChoicePlan:
        """A call, with the losses that a router of another kind adds; see `_plan`."""
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
            further_losses,
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
