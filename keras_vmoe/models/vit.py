"""Vision transformers as functional Keras models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras

from keras_vmoe import layers
from keras_vmoe.models.base import VisionModel, resolve_policy
from keras_vmoe.ops.validation import (
    require_choice,
    require_image_size,
    require_positive_int,
)

POOLINGS = ("token", "gap", "map", "first")


def image_shape(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from an int or a pair."""
    require_image_size("image_size", image_size)
    if not isinstance(image_size, (tuple, list)):
        image_size = (image_size, image_size)
    return (int(image_size[0]), int(image_size[1]))


def depth_rates(rate: float, num_layers: int) -> list[float]:
    """Stochastic depth that grows linearly from 0 in the first block to `rate` in the last."""
    return [rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ViT(VisionModel):
    """Vision Transformer.

    Args:
        image_size: side of the input images, pixels, or (height, width).
        patch_size: side of a patch, pixels, or (height, width).
        num_layers: encoder blocks.
        width: model width (d).
        mlp_dim: hidden width of the MLPs.
        num_heads: attention heads; must divide the width.
        num_classes: size of the head; `None` leaves it out and gives features.
        channels: of the input images.
        pooling: `"token"` (a class token), `"gap"` (mean of the tokens), `"map"` (attention
            pooling) or `"first"` (the first patch).
        representation_size: width of a tanh layer before the head ("pre-logits"), or `None`.
        position_embedding: `"learned"`, `"sincos2d"` or `"none"`.
        position_temperature: of `"sincos2d"`.
        qk_norm: layer norm on queries and keys.
        dropout_rate: behind the position embedding, attention and MLPs.
        attention_dropout_rate: on attention weights.
        stochastic_depth_rate: of the last block; grows linearly from 0 in the first.
        activation: of the MLPs.
        layer_norm_epsilon: of the layer norms.
        head_kernel_initializer: of the head.
        head_bias_init: constant that the head's bias starts from, such as `-log(num_classes)`.
        remat: recompute blocks in the backward pass instead of keeping their activations.

    Call arguments:
        inputs: `[b, height, width, channels]`, in [-1, 1].

    Returns:
        Logits `[b, num_classes]` (float32 under mixed precision), or features `[b, d]`.

    Raises:
        ValueError: a value out of range; the message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ... )
    >>> model(np.zeros((1, 32, 32, 3), "float32")).shape[-1]
    10

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929.
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
        config = {
            "image_size": image_size,
            "patch_size": patch_size,
            "num_layers": num_layers,
            "width": width,
            "mlp_dim": mlp_dim,
            "num_heads": num_heads,
            "num_classes": num_classes,
            "channels": channels,
            "pooling": pooling,
            "representation_size": representation_size,
            "position_embedding": position_embedding,
            "position_temperature": position_temperature,
            "qk_norm": qk_norm,
            "dropout_rate": dropout_rate,
            "attention_dropout_rate": attention_dropout_rate,
            "stochastic_depth_rate": stochastic_depth_rate,
            "activation": activation,
            "layer_norm_epsilon": layer_norm_epsilon,
            "head_kernel_initializer": head_kernel_initializer,
            "head_bias_init": head_bias_init,
            "remat": remat,
            "dtype": dtype,
        }
        super().__init__(config, functional_vit(config), name=name, **kwargs)


class Members(NamedTuple):
    """An ensemble in one ViT: `count` members, images repeated just before block `first_block`."""

    count: int
    first_block: int


def functional_vit(
    config: dict[str, Any],
    make_mlp: Callable[[int], keras.layers.Layer] | None = None,
    members: Members | None = None,
) -> tuple[Any, Any]:
    """Inputs and outputs of a ViT.

    Args:
        config: `ViT`'s arguments.
        make_mlp: gives the MLP of a block from its id; `None` makes dense ones.
        members: of an ensemble, whose outputs have an axis of members behind that of images.

    Returns:
        The symbolic images and the symbolic logits or features.
    """
    require_choice("pooling", config["pooling"], POOLINGS)
    require_sizes(config, ("num_layers", "width", "mlp_dim", "num_heads", "channels"))
    policy = resolve_policy(config["dtype"])
    height, width = image_shape(config["image_size"])
    images = keras.Input((height, width, config["channels"]), name="images", dtype="float32")
    x = embed_images(images, config, policy)
    rates = depth_rates(config["stochastic_depth_rate"], config["num_layers"])
    for i, rate in enumerate(rates):
        if members is not None and i == members.first_block:
            x = layers.RepeatMembers(members.count, dtype=policy, name="repeat_members")(x)
        mlp = make_mlp(i) if make_mlp else dense_mlp(config, policy)
        x = encoder_block(config, i, mlp, rate, policy)(x)
    x = encoder_norm(config, policy)(x)
    x = pool(x, config, policy)
    if members is not None:
        x = layers.SplitMembers(members.count, dtype=policy, name="split_members")(x)
    return images, head(pre_logits(x, config, policy), config, policy)


def encoder_block(
    config: dict[str, Any],
    index: int,
    mlp: keras.layers.Layer,
    depth_rate: float,
    policy: Any,
    prefix: str = "",
) -> layers.EncoderBlock:
    """Block `index` of an encoder, with its MLP, its rate of stochastic depth and the prefix of its
    name."""
    return layers.EncoderBlock(
        config["num_heads"],
        mlp,
        qk_norm=config["qk_norm"],
        dropout_rate=config["dropout_rate"],
        attention_dropout_rate=config["attention_dropout_rate"],
        stochastic_depth_rate=depth_rate,
        layer_norm_epsilon=config["layer_norm_epsilon"],
        remat=config["remat"],
        dtype=policy,
        name=f"{prefix}encoder_block_{index}",
    )


def encoder_norm(
    config: dict[str, Any], policy: Any, prefix: str = ""
) -> keras.layers.LayerNormalization:
    """The layer norm behind the last block."""
    return keras.layers.LayerNormalization(
        epsilon=config["layer_norm_epsilon"], dtype=policy, name=f"{prefix}encoder_norm"
    )


def require_sizes(config: dict[str, Any], names: Iterable[str]) -> None:
    """Raises a `ValueError` unless all of these arguments are integers of at least 1."""
    for name in names:
        require_positive_int(name, config[name])


def dense_mlp(config: dict[str, Any], policy: Any) -> layers.MLP:
    """The dense MLP of a block."""
    return layers.MLP(
        config["mlp_dim"], config["activation"], config["dropout_rate"], dtype=policy, name="mlp"
    )


def embed_images(images: Any, config: dict[str, Any], policy: Any) -> Any:
    """Images to tokens with positions."""
    embedding = layers.PatchEmbedding(
        config["patch_size"], config["width"], dtype=policy, name="embedding"
    )
    x = embedding(images)
    prefix = int(config["pooling"] == "token")
    if prefix:
        x = layers.ClassToken(dtype=policy, name="class_token")(x)
    x = layers.PositionEmbedding(
        config["position_embedding"],
        embedding.grid(*image_shape(config["image_size"])),
        prefix,
        config["position_temperature"],
        dtype=policy,
        name="position_embedding",
    )(x)
    if config["dropout_rate"]:
        x = keras.layers.Dropout(config["dropout_rate"], dtype=policy, name="dropout")(x)
    return x


def pool(x: Any, config: dict[str, Any], policy: Any, prefix: str = "") -> Any:
    """Tokens to one vector per image, or text."""
    if config["pooling"] == "map":
        return layers.AttentionPooling(
            config["num_heads"],
            config["mlp_dim"],
            config["qk_norm"],
            config["activation"],
            config["layer_norm_epsilon"],
            dtype=policy,
            name=f"{prefix}pooling",
        )(x)
    kind = {"gap": "mean", "last": "last"}.get(config["pooling"], "first")
    return layers.TokenPooling(kind, dtype=policy, name=f"{prefix}pooling")(x)


def pre_logits(x: Any, config: dict[str, Any], policy: Any) -> Any:
    """The tanh layer before the head, where there is one."""
    if config["representation_size"] is None:
        return x
    require_positive_int("representation_size", config["representation_size"])
    return keras.layers.Dense(
        config["representation_size"], activation="tanh", dtype=policy, name="pre_logits"
    )(x)


def head(x: Any, config: dict[str, Any], policy: Any, prefix: str = "") -> Any:
    """The linear head, in float32 under half precision."""
    if config["num_classes"] is None:
        return x
    require_positive_int("num_classes", config["num_classes"])
    return keras.layers.Dense(
        config["num_classes"],
        kernel_initializer=config["head_kernel_initializer"],
        bias_initializer=keras.initializers.Constant(config["head_bias_init"]),
        dtype="float64" if policy.compute_dtype == "float64" else "float32",
        name=f"{prefix}head",
    )(x)
