"""The graph of Mobile V-MoE, from the arguments of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_vmoe import layers, ops
from keras_vmoe.layers.image_moe_mlp import DISPATCHES
from keras_vmoe.models.base import resolve_policy
from keras_vmoe.models.vit import (
    dense_mlp,
    depth_rates,
    embed_images,
    encoder_block,
    encoder_norm,
    head,
    image_shape,
    pool,
    pre_logits,
    require_sizes,
)
from keras_vmoe.models.vmoe import expert_dropout_rate, moe_mlp
from keras_vmoe.ops.image_routing import require_gate
from keras_vmoe.ops.superclasses import require_superclasses
from keras_vmoe.ops.validation import require, require_choice, require_selected

ROUTINGS = ("image", "token", "dense")
ROUTER_INPUTS = ("token", "mean")
# Of a model whose tokens are routed: V-MoE's.
IMAGES_PER_GROUP = 8


def check_arguments(config: Mapping[str, Any]) -> None:
    """Refuses arguments of `MobileVMoE` that no graph is needed for.

    Raises:
        ValueError: a value out of range, or an unknown word.
    """
    sizes = ("num_layers", "width", "mlp_dim", "num_heads", "channels")
    own = ("num_moe_layers", "num_experts", "num_selected")
    require_sizes(dict(config), sizes + own)
    require_choice("routing", config["routing"], ROUTINGS)
    require_choice("router_input", config["router_input"], ROUTER_INPUTS)
    most, layers_ = config["num_layers"], config["num_moe_layers"]
    require(
        layers_ < most or (layers_ == most and config["routing"] != "image"),
        f"num_moe_layers must be below num_layers={most}: the router looks at what a dense block "
        f"gives. Received: num_moe_layers={layers_}",
    )
    weight = config["superclass_loss_weight"]
    require(
        weight >= 0,
        f"superclass_loss_weight must not be negative. Received: superclass_loss_weight={weight}",
    )
    require_gate(config["gate"], config["renormalise_gates"])
    if config["routing"] != "dense":
        require_selected(config["num_selected"], config["num_experts"])
    if config["routing"] == "image":
        require_choice("dispatch", config["dispatch"], DISPATCHES)
        require(
            config["router_input"] == "mean" or config["pooling"] == "token",
            "router_input='token' is the class token, which pooling='token' adds. Received: "
            f"pooling={config['pooling']!r}; set router_input='mean'",
        )
    if config["superclasses"] is None:
        return
    require(
        config["routing"] == "image" and config["num_classes"] is not None,
        "superclasses are of classes and of routing='image'. Received: superclasses with "
        f"routing={config['routing']!r}, num_classes={config['num_classes']}; leave them out",
    )
    require_superclasses(config["superclasses"], config["num_classes"], config["num_experts"])


def first_moe_block(config: Mapping[str, Any]) -> int:
    """The first of the last blocks, which are sparse."""
    return config["num_layers"] - config["num_moe_layers"]


def functional_mobile_vmoe(config: dict[str, Any]) -> tuple[Any, Any, ops.ImagePlan | None]:
    """Symbolic images, logits or features, and the plan where images are routed."""
    policy, plan = resolve_policy(config["dtype"]), None
    height, width = image_shape(config["image_size"])
    images = keras.Input((height, width, config["channels"]), name="images", dtype="float32")
    x = embed_images(images, config, policy)
    rates = depth_rates(config["stochastic_depth_rate"], config["num_layers"])
    for i, rate in enumerate(rates):
        if i == first_moe_block(config) and config["routing"] == "image":
            plan = _route(x, config, policy)
        block = encoder_block(config, i, _mlp(config, i, policy), rate, policy)
        x = block(x, plan=plan) if block.routes_images else block(x)
    x = pool(encoder_norm(config, policy)(x), config, policy)
    return images, head(pre_logits(x, config, policy), config, policy), plan


def _route(x: Any, config: dict[str, Any], policy: Any) -> ops.ImagePlan:
    kind = "first"
    if config["router_input"] == "mean":
        kind = "mean"
        x = x[:, 1:] if config["pooling"] == "token" else x
    described = layers.TokenPooling(kind, dtype=policy, name="router_input")(x)
    return layers.ImageRouter(
        config["num_experts"],
        config["num_selected"],
        renormalise_gates=config["renormalise_gates"],
        gate=config["gate"],
        use_bias=config["router_bias"],
        dtype=policy,
        name="router",
    )(described)


def _mlp(config: dict[str, Any], index: int, policy: Any) -> keras.layers.Layer:
    """The MLP of block `index`."""
    if index < first_moe_block(config):
        return dense_mlp(config, policy)
    k = config["num_selected"]
    if config["routing"] == "dense":
        return dense_mlp({**config, "mlp_dim": k * config["mlp_dim"]}, policy)
    if config["routing"] == "token":
        router = layers.TopKRouter(
            config["num_experts"],
            k,
            renormalise_gates=config["renormalise_gates"],
            name="router",
        )
        return moe_mlp({**config, "dispatch_dtype": None}, index, router, IMAGES_PER_GROUP, policy)
    return layers.ImageMoEMLP(
        config["num_experts"],
        config["mlp_dim"],
        activation=config["activation"],
        dropout_rate=expert_dropout_rate(config),
        shared_init=config["shared_expert_init"],
        dispatch=config["dispatch"],
        dtype=policy,
        name=f"encoder_block_{index}_moe",
    )
