"""V-MoE, and its relatives with expert choice and soft routing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.models.base import VisionModel, argument_names, resolve_policy
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.vit import Members, dense_mlp, functional_vit
from keras_vmoe.ops.validation import require, require_choice

ROUTERS = ("top_k", "expert_choice", "soft")


@keras.saving.register_keras_serializable(package="keras_vmoe")
class VMoE(VisionModel):
    """Vision Transformer whose MLPs are, in some blocks, sparse mixtures of experts.

    Args:
        image_size: side of the input images, pixels, or (height, width).
        patch_size: side of a patch, pixels, or (height, width).
        num_layers: encoder blocks.
        width: model width (d).
        mlp_dim: hidden width of the MLPs and of each expert (h).
        num_heads: attention heads; must divide the width.
        num_classes: size of the head; `None` leaves it out and gives features.
        placement: sparse blocks: `"every_2"`, `"last_2"` (the last 2 of the odd blocks),
            `"final_6"` (the last 6 blocks), `"none"`, or block ids.
        num_experts: experts per sparse block (e).
        router: `"top_k"`, `"expert_choice"` or `"soft"`.
        num_selected: choices per token (k), top-k only; `None` is 2.
        capacity_factor: slots per assignment; `None` is 1.05 for top-k and 1.0 for the others.
        eval_capacity_factor: the same when not training; `None` takes `capacity_factor`.
        capacity_rounding: `"ceil"` or `"round"`; `None` is ceil for top-k, round for the others.
        capacity_multiple_of: capacity is rounded up to a multiple; `None` is 4 for top-k, else 1.
        expert_capacity: slots per expert and group, given outright.
        num_slots: slots per expert of a soft router; `None` computes them.
        batch_priority: Batch Prioritized Routing, top-k only.
        priority_score: `"max"` or `"sum"`.
        renormalise_gates: divide a token's weights by their sum, top-k and expert choice.
        noise_std: router noise in training, before division by e; `None` is 1.0, soft 0.0.
        importance_loss_weight, load_loss_weight, gshard_loss_weight, z_loss_weight: of the
            auxiliary losses, top-k only.
        images_per_group: images routed together; `None` is 8 for top-k and 1 for the others.
        expert_dropout_rate: dropout inside the experts; `None` takes `dropout_rate`.
        shared_expert_init: all experts of a block start from the same weights.
        dispatch: `"auto"`, `"einsum"`, `"gather"` or `"grouped"`.
        dispatch_dtype: optional dtype that tokens are rounded to while they are moved.
        channels, pooling, representation_size, position_embedding, position_temperature, qk_norm,
            dropout_rate, attention_dropout_rate, stochastic_depth_rate, activation,
            layer_norm_epsilon, head_kernel_initializer, head_bias_init, remat: as in `ViT`.

    Call arguments:
        inputs: `[b, height, width, channels]`, in [-1, 1]; any b.

    Returns:
        Logits `[b, num_classes]` (float32 under mixed precision), or features `[b, d]`.
        `model.losses` holds the weighted auxiliary losses, one entry per loss and sparse block.

    Raises:
        ValueError: a value out of range or an unknown word; the message names it.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=4,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ...     num_selected=1,
    ... )
    >>> [block.name for block in model.layers if getattr(block, "is_sparse", False)]
    ['encoder_block_1', 'encoder_block_3']

    Reference: Riquelme et al. 2021, arXiv 2106.05974; Zhou et al. 2022, arXiv 2202.09368;
    Puigcerver et al. 2023, arXiv 2308.00951.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_layers: int = 12,
        width: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        num_classes: int | None = 1000,
        placement: str | Sequence[int] = "every_2",
        num_experts: int = 32,
        router: str = "top_k",
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str | None = None,
        capacity_multiple_of: int | None = None,
        expert_capacity: int | None = None,
        num_slots: int | None = None,
        batch_priority: bool = True,
        priority_score: str = "max",
        renormalise_gates: bool = False,
        noise_std: float | None = None,
        importance_loss_weight: float = 0.005,
        load_loss_weight: float = 0.005,
        gshard_loss_weight: float = 0.0,
        z_loss_weight: float = 0.0,
        images_per_group: int | None = None,
        expert_dropout_rate: float | None = None,
        shared_expert_init: bool = True,
        dispatch: str = "auto",
        dispatch_dtype: str | None = None,
        channels: int = 3,
        pooling: str = "token",
        representation_size: int | None = None,
        position_embedding: str = "learned",
        position_temperature: float = 10_000.0,
        qk_norm: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        activation: Any = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        head_kernel_initializer: Any = "zeros",
        head_bias_init: float = 0.0,
        remat: bool = False,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # Every argument, under its own name: this dict is the model's config.
        values = locals()
        config = {n: values[n] for n in argument_names(VMoE) if n != "name"}
        if isinstance(placement, Iterable) and not isinstance(placement, str):
            config["placement"] = tuple(placement)
        super().__init__(config, functional_vmoe(config), name=name, **kwargs)


def functional_vmoe(config: dict[str, Any], members: Members | None = None) -> tuple[Any, Any]:
    """Inputs and outputs of a V-MoE from its arguments, or of an ensemble of `members`."""
    require_choice("router", config["router"], ROUTERS)
    blocks = moe_blocks(config["placement"], config["num_layers"])
    policy = resolve_policy(config["dtype"])

    def make_mlp(index: int) -> keras.layers.Layer:
        if index not in blocks:
            return dense_mlp(config, policy)
        router = make_router(config, members)
        return moe_mlp(config, index, router, images_per_group(config), policy)

    return functional_vit(config, make_mlp, members)


def moe_mlp(
    config: dict[str, Any],
    index: int,
    router: layers.Router,
    images_per_group: int,
    policy: Any,
    prefix: str = "",
    kernel_initializer: Any = "glorot_uniform",
) -> layers.MoEMLP:
    """The sparse MLP of block `index`, with the prefix of its name."""
    return layers.MoEMLP(
        router,
        config["mlp_dim"],
        images_per_group=images_per_group,
        activation=config["activation"],
        dropout_rate=expert_dropout_rate(config),
        shared_init=config["shared_expert_init"],
        dispatch=config["dispatch"],
        dispatch_dtype=config["dispatch_dtype"],
        kernel_initializer=kernel_initializer,
        dtype=policy,
        name=f"{prefix}encoder_block_{index}_moe",
    )


def expert_dropout_rate(config: dict[str, Any]) -> float:
    """The dropout inside the experts: that of the dense MLPs, unless it is given."""
    own = config["expert_dropout_rate"]
    return config["dropout_rate"] if own is None else own


def images_per_group(config: dict[str, Any]) -> int:
    """8 images for top-k, one for expert choice and soft routing, unless it is given."""
    if config["images_per_group"] is not None:
        return config["images_per_group"]
    return 8 if config["router"] == "top_k" else 1


# Arguments of one kind of router, with the values that say nothing to the others.
_TOP_K_ONLY = {
    "batch_priority": (True, False),
    "priority_score": ("max",),
    "importance_loss_weight": (0.005, 0.0),
    "load_loss_weight": (0.005, 0.0),
    "gshard_loss_weight": (0.0,),
    "z_loss_weight": (0.0,),
}
_SHARED = ("capacity_factor", "capacity_rounding", "capacity_multiple_of", "noise_std")
_ROUTER_CLASSES = {
    "top_k": layers.TopKRouter,
    "expert_choice": layers.ExpertChoiceRouter,
    "soft": layers.SoftRouter,
}
_OWN = {
    "top_k": ("num_selected", "eval_capacity_factor", "expert_capacity", "renormalise_gates"),
    "expert_choice": ("eval_capacity_factor", "expert_capacity", "renormalise_gates"),
    "soft": ("num_slots",),
}


def make_router(config: dict[str, Any], members: Members | None = None) -> layers.Router:
    """A fresh router from a model's arguments; what is `None` there is the router's default.

    Raises:
        ValueError: an argument that this kind of router does not take.
    """
    kind = config["router"]
    own = _SHARED + _OWN[kind]
    for name in {name for names in _OWN.values() for name in names} - set(own):
        _require_not_given(name, config[name] is None or config[name] is False, config)
    given = {name: config[name] for name in own if config[name] is not None}
    for name, silent in _TOP_K_ONLY.items():
        if kind == "top_k":
            given[name] = config[name]
        else:
            _require_not_given(name, config[name] in silent, config)
    if members is not None:
        return layers.EnsembleTopKRouter(
            config["num_experts"], members.count, name="router", **given
        )
    return _ROUTER_CLASSES[kind](config["num_experts"], name="router", **given)


def _require_not_given(name: str, absent: bool, config: dict[str, Any]) -> None:
    require(
        absent,
        f"{name} is not of router={config['router']!r}. Received: {name}={config[name]!r}; "
        "leave it out",
    )
