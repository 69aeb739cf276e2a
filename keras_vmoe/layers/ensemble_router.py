"""The router of an efficient ensemble: a top-k router for each member, over its own experts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers.top_k_router import TopKRouter
from keras_vmoe.ops.validation import require, require_positive_int


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EnsembleTopKRouter(TopKRouter):
    """Top-k routing in which each member of an ensemble has a router and experts of its own.

    Member i chooses among the experts from `i * e / m` on, `e / m` of them. To noise (of standard
    deviation `noise_std * m / e`) and losses each member's tokens are a group of their own; slots
    are those of all e experts for the tokens of all members.

    Args:
        num_experts: experts of all members together (e).
        num_members: members (m); must divide e.
        num_selected: choices per token (k), at most `e / m`.
        capacity_factor, eval_capacity_factor, capacity_rounding, capacity_multiple_of,
            expert_capacity, batch_priority, priority_score, noise_std, renormalise_gates,
            importance_loss_weight, load_loss_weight, gshard_loss_weight, z_loss_weight, seed: as
            in `TopKRouter`.
        kernel_initializer: of the `[d, m, e / m]` kernel, drawn as `[d, e]`.

    Call arguments:
        inputs: `[g, s, d]`, tokens in the order (image, member, token).
        tokens_per_member: tokens of an image in one member, which stand in a row; `None`: all of
            a member's tokens do, as in a group of one image.
        noise: optional `[g * m, s / m, e / m]` unit normal noise.
        mask, capacity, group_capacity, training, num_selected, capacity_factor, batch_priority: as
            in `TopKRouter`.

    Returns:
        `keras_vmoe.ops.TokenChoicePlan` over all e experts; a token's gates are zero for the
        experts of other members.

    Raises:
        ValueError: `num_members` that does not divide `num_experts`, more choices than a member
            has experts, values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> router = layers.EnsembleTopKRouter(num_experts=4, num_members=2)
    >>> plan = router(np.ones((1, 6, 8), "float32"))
    >>> (np.array(plan.expert)[0, :, 0] >= 2).tolist()
    [False, False, False, True, True, True]

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 4.1.
    """

    def __init__(
        self,
        num_experts: int = 8,
        num_members: int = 2,
        num_selected: int = 1,
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
        require_positive_int("num_members", num_members)
        require(
            num_experts % num_members == 0,
            "num_members must divide num_experts, so that each member has as many. "
            f"Received: num_members={num_members}, num_experts={num_experts}",
        )
        self.num_members = num_members
        self._require_selected(num_selected)

    @property
    def experts_per_member(self) -> int:
        """Experts that a member chooses among."""
        return self.num_experts // self.num_members

    def _require_selected(self, num_selected: int) -> None:
        require_positive_int("num_selected", num_selected)
        require(
            num_selected <= self.experts_per_member,
            f"num_selected must be at most the experts of a member, num_experts / num_members = "
            f"{self.experts_per_member}. Received: num_selected={num_selected}",
        )

    def _add_kernel(self, width: int) -> Any:
        def of_all_members(shape: tuple[int, ...], dtype: Any = None) -> Any:
            # An initializer would count the members into the fan.
            drawn = self.kernel_initializer((width, self.num_experts), dtype=dtype)
            return kops.reshape(drawn, shape)

        shape = (width, self.num_members, self.experts_per_member)
        return self.add_weight(name="kernel", shape=shape, initializer=of_all_members)

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
        tokens_per_member: Any = None,
    ) -> ops.TokenChoicePlan:
        self._require_inputs(inputs)
        k, m = self._choices_per_token(num_selected), self.num_members
        groups, tokens, width = kops.shape(inputs)
        if capacity is None:
            capacity = self.capacity(inputs.shape[1], training, num_selected, capacity_factor)
        if group_capacity is not None:
            capacity = kops.repeat(group_capacity, m)
        t = tokens // m if tokens_per_member is None else tokens_per_member
        parts = kops.reshape(inputs, [groups, -1, m, t, width])
        logits = kops.einsum("gimtd,dme->gmite", parts, self.kernel)
        plan = self._plan(
            kops.reshape(logits, [groups * m, -1, self.experts_per_member]),
            k,
            capacity,
            self.batch_priority if batch_priority is None else batch_priority,
            None if mask is None else ops.split_members(mask, m, t),
            noise,
            training,
        )
        return ops.merge_members(plan, m, t)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_members": self.num_members}
