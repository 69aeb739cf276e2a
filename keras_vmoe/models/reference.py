"""Models from the configs of the reference implementation (google-research/vmoe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_vmoe.models.base import VisionModel
from keras_vmoe.models.efficient_ensemble import EfficientEnsemble
from keras_vmoe.models.vit import image_shape
from keras_vmoe.models.vmoe import VMoE
from keras_vmoe.ops.validation import require

_POOLINGS = {"token": "token", "gap": "gap", "map": "map", "0": "first"}
_ROUTERS = {
    "NoisyTopExpertsPerItemRouter": "top_k",
    "NoisyTopItemsPerExpertRouter": "expert_choice",
    "SoftRouter": "soft",
}


class _Options:
    """A mapping that every key has to be taken from."""

    def __init__(self, values: Mapping[str, Any] | None, path: str) -> None:
        self.values, self.path = dict(values or {}), path

    def take(self, name: str, *default: Any) -> Any:
        require(
            name in self.values or len(default) > 0,
            f"config must hold {self.path}{name}. Received: {sorted(self.values)}",
        )
        return self.values.pop(name, *default)

    def done(self) -> None:
        require(
            not self.values,
            f"config holds options that are not known: "
            f"{', '.join(f'{self.path}{name}={value!r}' for name, value in self.values.items())}",
        )


def from_reference_config(
    config: Mapping[str, Any], image_size: int | tuple[int, int] = 224, **overrides: Any
) -> VisionModel:
    """Builds a model from a config of the reference's `VisionTransformerMoe`.

    Every option is read or refused; what a config leaves out has the reference's default, which
    is not always this package's (batch priority off, auxiliary losses of weight 1).

    Args:
        config: the keyword arguments of the reference's model, `encoder` and `moe` nested.
        image_size: side of the input images, pixels, or (height, width): the reference reads it
            off its input.
        **overrides: arguments of the model's class that are laid over the config's.

    Returns:
        A `VMoE`, with `placement=()` where the config has no sparse block; an `EfficientEnsemble`
        where it has an `ensemble_size`.

    Raises:
        ValueError: an unknown option, or a group size that is not a whole number of images.

    Example:

    >>> from keras_vmoe import models
    >>> config = {
    ...     "patch_size": [8, 8],
    ...     "hidden_size": 16,
    ...     "num_classes": 10,
    ...     "encoder": {"num_layers": 2, "mlp_dim": 32, "num_heads": 2},
    ... }
    >>> models.from_reference_config(config, image_size=32).output_shape
    (None, 10)
    """
    top = _Options(config, "")
    encoder = _Options(top.take("encoder"), "encoder.")
    patch, pooling = tuple(top.take("patch_size")), str(top.take("classifier", "token"))
    require(
        pooling in _POOLINGS,
        f"classifier must be one of {', '.join(_POOLINGS)}. Received: classifier={pooling!r}",
    )
    position = _Options(encoder.take("position_emb", None), "encoder.position_emb.")
    arguments = {
        "image_size": image_size,
        "patch_size": patch,
        "width": top.take("hidden_size"),
        "num_classes": top.take("num_classes", None) or None,
        "pooling": _POOLINGS[pooling],
        "representation_size": top.take("representation_size", None),
        "head_bias_init": top.take("head_bias_init", 0.0),
        "head_kernel_initializer": "zeros"
        if top.take("head_kernel_zero_init", True)
        else "lecun_normal",
        "num_layers": encoder.take("num_layers"),
        "mlp_dim": encoder.take("mlp_dim"),
        "num_heads": encoder.take("num_heads"),
        "dropout_rate": encoder.take("dropout_rate", 0.0),
        "attention_dropout_rate": encoder.take("attention_dropout_rate", 0.0),
        "qk_norm": encoder.take("attention_qk_norm", False),
        "position_embedding": position.take("name", "learned"),
        "position_temperature": position.take("temperature", 10_000.0),
    }
    height, width = image_shape(image_size)
    tokens = (height // patch[0]) * (width // patch[1]) + (pooling == "token")
    arguments.update(_moe_arguments(encoder.take("moe", None), tokens))
    for options in (top, encoder, position):
        options.done()
    cls = EfficientEnsemble if "num_members" in arguments else VMoE
    return cls(**{**arguments, **overrides})


def _moe_arguments(config: Mapping[str, Any] | None, tokens: int) -> dict[str, Any]:
    """The arguments of the sparse blocks; `tokens` per image turns a group size into images."""
    moe = _Options(config, "encoder.moe.")
    blocks = tuple(moe.take("layers", ()))
    if not blocks:
        return {"placement": ()}
    members = moe.take("ensemble_size", 1)
    # A group counts the copies of an image, too.
    tokens, group = members * tokens, moe.take("group_size")
    require(
        group % tokens == 0,
        f"encoder.moe.group_size must be a whole number of images of {tokens} tokens. "
        f"Received: group_size={group}, ensemble_size={members}",
    )
    split = moe.take("split_rngs", False)
    arguments = {
        "placement": blocks,
        "num_experts": moe.take("num_experts"),
        "images_per_group": group // tokens,
        "expert_dropout_rate": moe.take("dropout_rate", None),
        "shared_expert_init": not (split is True or (split and "params" in split)),
        **_router_arguments(moe.take("router", None)),
    }
    moe.done()
    return arguments if members == 1 else _of_ensemble(arguments, members)


def _of_ensemble(arguments: dict[str, Any], members: int) -> dict[str, Any]:
    """The arguments of an `EfficientEnsemble`, whose routers are top-k routers all."""
    router = arguments.pop("router")
    require(
        router == "top_k",
        "encoder.moe.router must be a NoisyTopExpertsPerItemRouter where encoder.moe.ensemble_size "
        f"is above 1. Received: a router of kind {router!r}",
    )
    return {**arguments, "num_members": members}


def _router_arguments(config: Mapping[str, Any] | None) -> dict[str, Any]:
    router = _Options(config, "encoder.moe.router.")
    name = router.take("name", "NoisyTopExpertsPerItemRouter").rsplit(".", 1)[-1]
    require(
        name in _ROUTERS,
        f"encoder.moe.router.name must be one of {', '.join(_ROUTERS)}. Received: {name!r}",
    )
    kind = _ROUTERS[name]
    deterministic = router.take("deterministic", False)
    noise = router.take("noise_std", 0.0 if kind == "soft" else 1.0)
    arguments = {"router": kind, "noise_std": 0.0 if deterministic else noise}
    if kind == "soft":
        arguments["num_slots"] = router.take("num_slots", None)
        arguments["capacity_factor"] = router.take("capacity_factor", 1.0)
        for ignored in ("partition_spec", "compute_similarity_metrics"):
            router.take(ignored, None)
    else:
        arguments.update(_dispatcher_arguments(router.take("dispatcher", None)))
    if kind == "top_k":
        arguments["num_selected"] = router.take("num_selected_experts", 1)
        arguments["importance_loss_weight"] = router.take("importance_loss_weight", 1.0)
        arguments["load_loss_weight"] = router.take("load_loss_weight", 1.0)
        arguments["gshard_loss_weight"] = router.take("gshard_loss_weight", 0.0)
    else:
        arguments["batch_priority"] = False
    router.done()
    return arguments


def _dispatcher_arguments(config: Mapping[str, Any] | None) -> dict[str, Any]:
    dispatcher = _Options(config, "encoder.moe.router.dispatcher.")
    # Which dispatch the reference used does not matter: all of them agree.
    for ignored in ("name", "partition_spec", "einsum_precision"):
        dispatcher.take(ignored, None)
    capacity, factor = dispatcher.take("capacity", None), dispatcher.take("capacity_factor", None)
    require(
        (capacity is None) != (factor is None),
        "encoder.moe.router.dispatcher must hold either capacity or capacity_factor. "
        f"Received: capacity={capacity}, capacity_factor={factor}",
    )
    arguments = {
        "expert_capacity": capacity,
        "capacity_factor": factor,
        "capacity_rounding": dispatcher.take("capacity_ceil_or_round", "ceil"),
        "capacity_multiple_of": dispatcher.take("capacity_multiple_of", 4) or 1,
        "batch_priority": dispatcher.take("batch_priority", False),
        "dispatch_dtype": "bfloat16" if dispatcher.take("bfloat16", False) else None,
    }
    dispatcher.done()
    return arguments
