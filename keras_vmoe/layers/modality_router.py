"""The router of one tower for several modalities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_vmoe import ops
from keras_vmoe.layers.top_k_router import LossTerms, TopKRouter
from keras_vmoe.ops.validation import require, require_rank, require_same_axes


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ModalityRouter(TopKRouter):
    """Noisy top-k token choice for tokens of several modalities, with entropy losses for each.

    The choice itself knows nothing of modalities: all tokens compete for the same experts. The
    losses do: those of V-MoE balance the modality with most tokens alone.

    Args:
        num_experts: experts (e).
        modalities: their names; a token's modality is its place here.
        num_selected: choices per token (k).
        local_entropy_loss_weights: for each modality by name, the weight of its mean token
            entropy; modalities that are left out have none.
        global_entropy_loss_weights: the same of minus the entropy of its mean gates.
        soft_minimum_experts: for each modality by name how many experts it is to use: its global
            entropy loss is `max(0, log(minimum) - entropy)`. Those left out have no threshold.
        balanced_importance: give each modality the same part in the importance loss.
        capacity_factor, eval_capacity_factor, capacity_rounding, capacity_multiple_of,
            expert_capacity, batch_priority, priority_score, noise_std, renormalise_gates,
            importance_loss_weight, load_loss_weight, gshard_loss_weight, z_loss_weight,
            kernel_initializer, seed: as in `TopKRouter`.

    Call arguments:
        inputs: `[g, s, d]`.
        modality: `[g, s]` ints, the modality of each token. The entropies are of all groups
            together; under tf.distribute each replica has its own, and the losses are averaged.
        mask, noise, capacity, group_capacity, training, num_selected, capacity_factor,
            batch_priority: as in `TopKRouter`.

    Returns:
        `keras_vmoe.ops.TokenChoicePlan`.

    Raises:
        ValueError: a modality that is not known, a minimum of more experts than there are.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> router = layers.ModalityRouter(
    ...     num_experts=4,
    ...     global_entropy_loss_weights={"text": 0.01},
    ...     soft_minimum_experts={"text": 2},
    ... )
    >>> plan = router(np.ones((1, 3, 8), "float32"), modality=np.array([[0, 0, 1]]))
    >>> tuple(plan.expert.shape), len(router.losses)
    ((1, 3, 1), 2)

    Reference: Mustafa et al. 2022, arXiv 2206.02770, section 2.2.1 and eq. 2.
    """

    def __init__(
        self,
        num_experts: int = 8,
        modalities: Sequence[str] = ("image", "text"),
        num_selected: int = 1,
        local_entropy_loss_weights: Mapping[str, float] | None = None,
        global_entropy_loss_weights: Mapping[str, float] | None = None,
        soft_minimum_experts: Mapping[str, float] | None = None,
        balanced_importance: bool = False,
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
            num_selected,
            capacity_factor,
            eval_capacity_factor,
            capacity_rounding,
            capacity_multiple_of,
            expert_capacity,
            batch_priority,
            priority_score,
            noise_std,
            renormalise_gates,
            importance_loss_weight,
            load_loss_weight,
            gshard_loss_weight,
            z_loss_weight,
            kernel_initializer,
            seed,
            **kwargs,
        )
        self.modalities = tuple(modalities)
        self.local_entropy_loss_weights = dict(local_entropy_loss_weights or {})
        self.global_entropy_loss_weights = dict(global_entropy_loss_weights or {})
        self.soft_minimum_experts = dict(soft_minimum_experts or {})
        self.balanced_importance = balanced_importance
        self._check()

    @property
    def asked_experts(self) -> dict[str, float]:
        """The soft minima of the modalities that have a global entropy loss."""
        weights = self.global_entropy_loss_weights
        return {name: n for name, n in self.soft_minimum_experts.items() if name in weights}

    def _check(self) -> None:
        names = self.modalities
        require(
            len(names) > 0 and len(set(names)) == len(names),
            f"modalities must be distinct names. Received: modalities={names}",
        )
        for argument in (
            "local_entropy_loss_weights",
            "global_entropy_loss_weights",
            "soft_minimum_experts",
        ):
            for name, value in getattr(self, argument).items():
                require(
                    name in names,
                    f"{argument} is by modality: {', '.join(names)}. Received: {name!r}",
                )
                require(value >= 0, f"{argument} must not be negative. Received: {name}={value}")
        for name, minimum in self.soft_minimum_experts.items():
            require(
                1 <= minimum <= self.num_experts,
                f"soft_minimum_experts must be between 1 and num_experts={self.num_experts}. "
                f"Received: {name}={minimum}",
            )

    def call(
        self,
        inputs: Any,
        modality: Any = None,
        mask: Any = None,
        noise: Any = None,
        capacity: Any = None,
        group_capacity: Any = None,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> ops.TokenChoicePlan:
        require(
            modality is not None,
            f"modality must tell the tokens of {', '.join(self.modalities)} apart. "
            f"Received: modality=None for layer {self.name!r}",
        )
        self._require_inputs(inputs)
        require_rank("modality", modality, 2, "[groups, tokens]")
        require_same_axes("modality", modality, inputs)
        masks = {
            name: ops.of_modality(modality, index, mask)
            for index, name in enumerate(self.modalities)
        }
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
            lambda gates: self._losses_of_modalities(gates, masks, mask),
        )

    def _losses_of_modalities(self, gates: Any, masks: dict[str, Any], mask: Any) -> LossTerms:
        terms: LossTerms = {}
        if self.balanced_importance:
            terms["importance"] = (
                self.importance_loss_weight,
                lambda: ops.group_mean(
                    ops.balanced_importance_loss(gates, list(masks.values())), mask
                ),
            )
        for name, weight in self.local_entropy_loss_weights.items():
            terms[f"local_entropy_{name}"] = (
                weight,
                lambda own=masks[name]: ops.local_entropy_loss(gates, own),
            )
        for name, weight in self.global_entropy_loss_weights.items():
            minimum = self.soft_minimum_experts.get(name)
            threshold = None if minimum is None else math.log(minimum)
            terms[f"global_entropy_{name}"] = (
                weight,
                lambda own=masks[name], threshold=threshold: ops.global_entropy_loss(
                    gates, own, threshold
                ),
            )
        return terms

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "modalities": self.modalities,
            "local_entropy_loss_weights": self.local_entropy_loss_weights,
            "global_entropy_loss_weights": self.global_entropy_loss_weights,
            "soft_minimum_experts": self.soft_minimum_experts,
            "balanced_importance": self.balanced_importance,
        }
