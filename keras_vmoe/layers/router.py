"""The base class of the routers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.ops.capacity import traced_capacity
from keras_vmoe.ops.sizes import is_known, larger, smaller
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_positive_int,
    require_rank,
)


def float32_policy(dtype: Any) -> Any:
    """Routers and the ends of contrastive models compute in float32 whatever the policy (in
    float64 where that is asked for)."""
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    return "float64" if policy.compute_dtype == "float64" else "float32"


class Router(keras.layers.Layer):
    """Base class of the routers.

    Args:
        num_experts: experts (e).
        capacity_factor: slots for each assignment (C).
        eval_capacity_factor: C when not training; `None` takes `capacity_factor`.
        capacity_rounding: `"ceil"` or `"round"`.
        capacity_multiple_of: capacity is rounded up to a multiple of this.
        expert_capacity: slots per expert and group, given outright; overrides the factors.
        noise_std: scale of the noise that training adds to the logits.
        kernel_initializer: of the router's kernel.
        seed: of the noise.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    #: The class of the plans that this router makes.
    plan_type: type = ops.TokenChoicePlan
    #: Names of the modalities that this router tells apart; empty where it takes all tokens alike.
    modalities: tuple[str, ...] = ()
    #: By the name of a modality how many experts a loss asks it to use; empty where none does.
    asked_experts: Mapping[str, float] = MappingProxyType({})
    #: Members that share the experts out among them; an image's tokens come once for each.
    num_members: int = 1

    def __init__(
        self,
        num_experts: int = 8,
        capacity_factor: float = 1.05,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str = "ceil",
        capacity_multiple_of: int = 4,
        expert_capacity: int | None = None,
        noise_std: float = 1.0,
        kernel_initializer: Any = "lecun_normal",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "dtype": float32_policy(kwargs.get("dtype"))})
        require_positive_int("num_experts", num_experts)
        for name, factor in (
            ("capacity_factor", capacity_factor),
            ("eval_capacity_factor", eval_capacity_factor),
        ):
            optional = name != "capacity_factor"
            require(
                factor > 0 if factor is not None else optional,
                f"{name} must be above 0. Received: {name}={factor}",
            )
        require_choice("capacity_rounding", capacity_rounding, ("ceil", "round"))
        require_positive_int("capacity_multiple_of", capacity_multiple_of)
        if expert_capacity is not None:
            require_positive_int("expert_capacity", expert_capacity)
        require(noise_std >= 0, f"noise_std must not be negative. Received: noise_std={noise_std}")
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.capacity_rounding = capacity_rounding
        self.capacity_multiple_of = capacity_multiple_of
        self.expert_capacity = expert_capacity
        self.noise_std = noise_std
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            input_shape[-1] is not None,
            f"inputs must have a known width. Received: inputs of shape {tuple(input_shape)}",
        )
        self.kernel = self._add_kernel(input_shape[-1])

    def _add_kernel(self, width: int) -> Any:
        return self.add_weight(
            name="kernel",
            shape=(width, self.num_experts),
            initializer=self.kernel_initializer,
        )

    def _require_inputs(self, inputs: Any) -> None:
        require_rank("inputs", inputs, 3, "[groups, tokens, width]")
        width = self.kernel.shape[0]
        require(
            inputs.shape[-1] == width,
            f"inputs must have width {width}, as built. Received: inputs of shape "
            f"{tuple(inputs.shape)}",
        )

    def _choices_per_token(self, num_selected: int | None) -> int:
        """What multiplies the tokens in the capacity."""
        return 1

    def capacity(
        self,
        num_tokens: Any,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
    ) -> Any:
        """Slots per expert in a group of `num_tokens`: at least 1, at most a member's tokens.

        Args:
            num_tokens: tokens in the group (s), of all members; an int, or an int tensor.
            training: which of the two capacity factors holds.
            num_selected: overrides the router's own.
            capacity_factor: overrides the router's own.
        """
        k = self._choices_per_token(num_selected)
        most = larger(num_tokens // self.num_members, 1)
        if self.expert_capacity is not None and capacity_factor is None:
            return smaller(self.expert_capacity, most)
        factor = capacity_factor
        if factor is None and not training:
            factor = self.eval_capacity_factor
        if factor is None:
            factor = self.capacity_factor
        require(factor > 0, f"capacity_factor must be above 0. Received: capacity_factor={factor}")
        settings = (
            self.num_experts,
            factor,
            k,
            self.capacity_rounding,
            self.capacity_multiple_of,
        )
        if not is_known(num_tokens):
            return smaller(traced_capacity(num_tokens, *settings), most)
        # At least one: a small batch must not fail.
        return smaller(ops.compute_capacity(num_tokens, *settings, at_least_one=True), most)

    def _noise(self, logits: Any, noise: Any, training: bool) -> Any | None:
        """Unit normal noise like `logits`: handed in, drawn in training, or none."""
        if self.noise_std == 0 or (noise is None and not training):
            return None
        if noise is None:
            noise = effects.next_handed_noise()
        if noise is not None:
            noise = kops.cast(noise, logits.dtype)
            require(
                len(noise.shape) == len(logits.shape) and noise.shape[-1] == logits.shape[-1],
                f"noise must be shaped like the logits, {tuple(logits.shape)}. "
                f"Received: {tuple(noise.shape)}",
            )
            return noise
        noise = keras.random.normal(
            kops.shape(logits), dtype=logits.dtype, seed=self.seed_generator
        )
        # Every device of a mesh draws all of it: the numbers are those of one device.
        return ops.lay_out(ops.lay_out(noise), "batch")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "capacity_factor": self.capacity_factor,
            "eval_capacity_factor": self.eval_capacity_factor,
            "capacity_rounding": self.capacity_rounding,
            "capacity_multiple_of": self.capacity_multiple_of,
            "expert_capacity": self.expert_capacity,
            "noise_std": self.noise_std,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
