"""The sparse MLP: a router, experts, and the way between them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects, routers
from keras_vmoe.layers.experts import ExpertMLP
from keras_vmoe.ops.dispatch import (
    einsum_combine,
    einsum_dispatch,
    require_dispatch,
)
from keras_vmoe.ops.grouping import Groups, group_images, ungroup_images
from keras_vmoe.ops.statistics import modality_metrics
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_positive_int,
    require_rank,
)

_FLOATS = ("bfloat16", "float16", "float32", "float64")
# Of all tokens, and of those of each modality that the router tells apart.
_METRICS = ("expert_load_min", "expert_load_max", "dropped", "confidence", "entropy")


def _default_name() -> str:
    """Keras would make `mo_emlp` of the class's name."""
    count = keras.backend.get_uid("moe_mlp")
    return "moe_mlp" if count == 1 else f"moe_mlp_{count - 1}"


def token_mask(mask: Any) -> Any:
    """The mask that Keras may attach to the tokens behind a layer: `[b, t]`, never `[b]`."""
    return mask if mask is not None and len(mask.shape) == 2 else None


def has_accelerator() -> bool:
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


@keras.saving.register_keras_serializable(package="keras_vmoe")
class MoEMLP(keras.layers.Layer):
    """A sparse mixture of MLPs in place of a transformer block's MLP.

    Tokens of `images_per_group` images are routed together. A batch of b images makes
    `ceil(b / images_per_group)` groups, the last of which holds the rest. A group has the capacity
    of its real tokens.

    Args:
        router: a router, its name (`"top_k"`, `"expert_choice"`, `"soft"`) or its config.
        hidden_dim: hidden width of an expert (h).
        images_per_group: images that are routed together.
        activation: of the experts; a name that `keras.activations` knows, or `"gelu_tanh"`.
        dropout_rate: dropout inside the experts.
        shared_init: all experts start from the same weights.
        dispatch: `"auto"` (chosen by arithmetic), `"einsum"`, `"gather"` or `"grouped"`. Under XLA
            on CPU (`jit_compile=True`) choose `"gather"`: `"grouped"` has data-dependent shapes.
        dispatch_dtype: optional dtype, such as `"bfloat16"`, that tokens and expert outputs are
            rounded to while they are moved.
        kernel_initializer: of each expert's kernels.
        bias_initializer: of each expert's biases.

    Call arguments:
        inputs: `[b, t, d]`; b may be dynamic. Where the router is of an ensemble of m members,
            `[b * m, t, d]`: each image m times in a row, as `RepeatMembers` gives it.
        mask: optional bools, `[b]` of images or `[b, t]` of tokens; false images or tokens take no
            slot, count in no loss or metric, and come out as zero. Of an ensemble `[b]`, of images
            whose copies are all false, or `[b * m, t]`.
        noise: optional unit normal noise, shaped like the router's logits: `[g, s, e]`.
        modality: `[b, t]` ints, the modality of each token, for a `ModalityRouter`, and for that
            alone.
        training: adds the router's noise and dropout, and picks the capacity factor.
        num_selected, capacity_factor, batch_priority: override the router's own for this call.

    Returns:
        As inputs; tokens that no expert took are zero, so use it in a residual branch.

    Raises:
        ValueError: unknown names, inputs that are not `[b, t, d]`, routing arguments that the
            router does not take.

    Example:

    >>> import keras
    >>> from keras_vmoe import layers
    >>> tokens = keras.Input((49, 64))
    >>> moe = layers.MoEMLP(layers.TopKRouter(num_experts=8, num_selected=2), hidden_dim=256)
    >>> model = keras.Model(tokens, tokens + moe(tokens))
    >>> model.output_shape
    (None, 49, 64)

    The layer's metrics are updated when it is called. A model of your own is exported without
    them by `with layers.routing_metrics(False): model.export(...)`; this package's models, and
    `models.FunctionalModel`, do so by themselves.

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2.
    """

    def __init__(
        self,
        router: Any = "top_k",
        hidden_dim: int = 2048,
        images_per_group: int = 8,
        activation: Any = "gelu_tanh",
        dropout_rate: float = 0.0,
        shared_init: bool = True,
        dispatch: str = "auto",
        dispatch_dtype: str | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "name": kwargs.get("name") or _default_name()})
        require_positive_int("images_per_group", images_per_group)
        require_dispatch(dispatch)
        if dispatch_dtype is not None:
            require_choice("dispatch_dtype", dispatch_dtype, _FLOATS)
        self.router = routers.get(router)
        require(
            self.router.plan_type is not ops.SoftPlan or dispatch in ("auto", "einsum"),
            f"dispatch must be 'auto' or 'einsum' for a soft router. Received: {dispatch!r}",
        )
        self.experts = ExpertMLP(
            self.router.num_experts,
            hidden_dim,
            activation,
            dropout_rate,
            shared_init,
            kernel_initializer,
            bias_initializer,
            dtype=self.dtype_policy,
            name="experts",
        )
        self.images_per_group = images_per_group
        self.dispatch = dispatch
        self.dispatch_dtype = dispatch_dtype
        self.supports_masking = True
        self.supports_jit = dispatch != "grouped"
        self._trackers = {
            name: keras.metrics.Mean(name=f"{self.name}/{name}")
            for name in (
                *_METRICS,
                *modality_metrics(self.router.modalities),
                *(f"{n}_soft_minimum" for n in self.router.asked_experts),
            )
            if name != "dropped" or self.router.plan_type is not ops.SoftPlan
        }

    @property
    def hidden_dim(self) -> int:
        """Hidden width of an expert."""
        return self.experts.hidden_dim

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            len(input_shape) == 3 and input_shape[-1] is not None,
            "inputs must have shape [images, tokens, width] with a known width. "
            f"Received: {tuple(input_shape)}",
        )
        tokens, width = input_shape[1:]
        rows = self.images_per_group * self.router.num_members
        group = None if tokens is None else rows * tokens
        # A router from a config may come built.
        if not self.router.built:
            self.router.build((None, group, width))
        self.experts.build((self.router.num_experts, None, width))

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        noise: Any = None,
        modality: Any = None,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> Any:
        require_rank("inputs", inputs, 3, "[images, tokens, width]")
        self._require_modality(modality)
        tokens_per_member = kops.shape(inputs)[1]
        routing = self.check_routing(num_selected, capacity_factor, batch_priority)
        inputs = ops.lay_out(inputs, "batch")
        inputs, mask = self._by_image(inputs, mask)
        batch, length = kops.shape(inputs)[:2]
        groups = group_images(inputs, self.images_per_group, mask, modality)
        slots, group_capacity = None, None
        if self.router.plan_type is not ops.SoftPlan:
            slots, group_capacity = self._slots(groups, length, bool(training), routing)
            routing.update(capacity=slots, group_capacity=group_capacity)
        if self.router.num_members > 1:
            routing.update(tokens_per_member=tokens_per_member)
        if modality is not None:
            routing.update(modality=groups.modality)
        plan = self.router(
            groups.tokens, mask=groups.mask, noise=noise, training=training, **routing
        )
        if effects.recording():
            terms = effects.take_terms()
            effects.emit_record(
                effects.RoutingCall(
                    self.name,
                    plan,
                    slots,
                    batch,
                    length,
                    terms,
                    group_capacity,
                    self.router.num_members,
                    groups.modality,
                    self.router.modalities,
                    groups.mask,
                )
            )
        self._update_metrics(plan, groups)
        outputs = self._mix(groups.tokens, plan, slots, training)
        outputs = ungroup_images(kops.cast(outputs, self.compute_dtype), batch, length)
        if self.router.num_members > 1:
            outputs = kops.reshape(outputs, [-1, tokens_per_member, outputs.shape[-1]])
        return ops.lay_out(outputs, "batch")

    def _require_modality(self, modality: Any) -> None:
        names = self.router.modalities
        require(
            (modality is not None) == bool(names),
            f"modality must tell the tokens of {', '.join(names)} apart. Received: modality=None "
            f"for layer {self.name!r}"
            if names
            else f"modality is of a ModalityRouter; {self.name!r} has a "
            f"{type(self.router).__name__}. Leave it out",
        )

    def _by_image(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """Inputs and mask with the tokens of all members of an image side by side, `[b, m * t]`."""
        members = self.router.num_members
        if members == 1:
            return inputs, mask
        rows, length, width = kops.shape(inputs)
        require(
            not isinstance(rows, int) or rows % members == 0,
            f"inputs must hold each image {members} times, once for each member of the router. "
            f"Received: inputs of shape {tuple(inputs.shape)}",
        )
        images, tokens = rows // members, members * length
        if mask is not None and len(mask.shape) == 2:
            mask = kops.reshape(mask, [images, tokens])
        return kops.reshape(inputs, [images, tokens, width]), mask

    def check_routing(
        self,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> dict[str, Any]:
        """The overrides of a call that were given, checked against what the router takes.

        Raises:
            ValueError: an override that this kind of router does not take, or out of range.
        """
        given = {
            "num_selected": num_selected,
            "capacity_factor": capacity_factor,
            "batch_priority": batch_priority,
        }
        given = {name: value for name, value in given.items() if value is not None}
        takes = {
            ops.TokenChoicePlan: tuple(given),
            ops.ExpertChoicePlan: ("capacity_factor",),
            ops.SoftPlan: (),
        }[self.router.plan_type]
        for name, value in given.items():
            require(
                name in takes,
                f"{name} cannot be changed on a {type(self.router).__name__}. "
                f"Received: {name}={value!r} for layer {self.name!r}",
            )
        self.router.capacity(1, num_selected=num_selected, capacity_factor=capacity_factor)
        return given

    def _slots(
        self, groups: Groups, length: Any, training: bool, routing: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Slots per expert in the buffers, and `[g]` slots in use where groups are not full."""
        factors = {k: v for k, v in routing.items() if k in ("num_selected", "capacity_factor")}

        def slots(tokens: Any) -> Any:
            return self.router.capacity(tokens, training, **factors)

        size = groups.images_per_group
        if groups.mask is None:
            return slots(size * length), None
        real = kops.sum(kops.cast(groups.mask, "int32"), axis=-1)
        if not isinstance(length, int):  # maps of any size
            return slots(size * length), kops.where(real > 0, slots(real), 0)
        known = isinstance(size, int)
        most = (size if known else self.images_per_group) * length
        by_tokens = [0, *(slots(tokens) for tokens in range(1, most + 1))]
        table = kops.convert_to_tensor(by_tokens, dtype="int32")
        whole = by_tokens[size * length] if known else kops.take(table, size * length)
        return whole, kops.take(table, real)

    def _method(self, tokens: Any) -> str:
        if self.dispatch != "auto":
            return self.dispatch
        if ops.on_mesh():
            return "einsum"  # the groups stay apart, so their tokens stay where they are
        return ops.choose_dispatch(
            self.router.plan_type,
            tokens.shape[1],
            self.hidden_dim,
            keras.backend.backend(),
            has_accelerator(),
        )

    def _mix(self, tokens: Any, plan: Any, slots: Any, training: bool) -> Any:
        """Dispatch, experts, combine: `[g, s, d]` to `[g, s, d]`."""
        method = self._method(tokens)
        tokens = self._round(tokens)
        shape, width = kops.shape(tokens), tokens.shape[-1]
        e = self.router.num_experts
        if method == "einsum" or isinstance(plan, ops.SoftPlan):
            mask = ops.dispatch_mask(plan, e, slots, tokens.dtype)
            outputs = self.experts(einsum_dispatch(tokens, mask), training=training)
            return einsum_combine(self._round(outputs), ops.combine_weights(plan, e, slots))
        where = ops.row_map(plan, e, slots, method)
        rows = ops.rows_from_tokens(kops.reshape(tokens, [-1, width]), where)
        if method == "grouped":
            outputs = self.experts(
                rows,
                group_sizes=where.group_sizes,
                training=training,
                few_rows=ops.has_few_rows(plan.weight.shape, e, slots),
            )
        else:
            outputs = self.experts(kops.reshape(rows, [e, -1, width]), training=training)
            outputs = kops.reshape(outputs, [-1, width])
        flat = ops.weighted_tokens(self._round(outputs), plan, where, shape[0] * shape[1])
        return kops.reshape(flat, [shape[0], -1, width])

    def _round(self, values: Any) -> Any:
        """To the precision of `dispatch_dtype`, in the layer's own dtype."""
        if self.dispatch_dtype is not None:
            values = kops.cast(values, self.dispatch_dtype)
        return kops.cast(values, self.compute_dtype)

    def _update_metrics(self, plan: Any, groups: Groups) -> None:
        if not effects.metrics_enabled():
            return
        found = ops.routing_statistics(plan, groups.mask)
        if groups.modality is not None:
            names = self.router.modalities
            found |= ops.modality_statistics(plan, groups.modality, names, groups.mask)
            for name, minimum in self.router.asked_experts.items():
                found[f"{name}_soft_minimum"] = kops.convert_to_tensor(minimum, dtype="float32")
        for name, value in found.items():
            effects.emit_metric(self._trackers[name], value)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return token_mask(previous_mask)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], *args: Any, **kwargs: Any
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        experts = self.experts.get_config()
        shared = ("hidden_dim", "activation", "dropout_rate", "shared_init")
        initializers = ("kernel_initializer", "bias_initializer")
        return {
            **super().get_config(),
            "router": keras.saving.serialize_keras_object(self.router),
            "images_per_group": self.images_per_group,
            "dispatch": self.dispatch,
            "dispatch_dtype": self.dispatch_dtype,
            **{name: experts[name] for name in shared + initializers},
        }
