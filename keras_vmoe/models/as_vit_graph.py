"""The functional graph of an As-ViT, and its parts by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_vmoe import layers
from keras_vmoe.layers.transformer import NORMS, make_norm
from keras_vmoe.models.base import resolve_policy
from keras_vmoe.models.genotype import STRIDES, Genotype
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.vit import depth_rates, image_shape, require_sizes
from keras_vmoe.models.vmoe import ROUTERS, images_per_group, make_router, moe_mlp
from keras_vmoe.ops.maps import window_on
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_fraction,
    require_image_size,
    require_number,
    require_positive,
)

HEADS = ("tanh_mlp", "linear")
WINDOWS = ("size", "number")


class Block(NamedTuple):
    """Where a block stands: its stage, 0 to 3, and its number among the blocks of all stages."""

    stage: int
    index: int

    @property
    def name(self) -> str:
        return f"encoder_block_{self.index}"


def blocks(genotype: Genotype) -> list[Block]:
    """All blocks, in their order."""
    stages = [stage for stage, depth in enumerate(genotype.depths) for _ in range(depth)]
    return [Block(stage, index) for index, stage in enumerate(stages)]


def last_blocks(genotype: Genotype) -> list[str]:
    """The name of the last block of each stage."""
    return [f"encoder_block_{sum(genotype.depths[: i + 1]) - 1}" for i in range(4)]


def check_arguments(config: Mapping[str, Any]) -> Genotype:
    """The genotype of `AsViT`'s arguments, which are refused where no graph is needed to.

    Raises:
        ValueError: a value out of range, or an unknown word.
    """
    genotype = Genotype.parse(config["genotype"])
    require_sizes(dict(config), ("channels",))
    require_choice("merge_norm", config["merge_norm"], ("pre", "post"))
    require_choice("head", config["head"], HEADS)
    require_choice("norm", config["norm"], NORMS)
    require_choice("windows", config["windows"], WINDOWS)
    require_choice("router", config["router"], ROUTERS)
    require(
        config["pos_emb"] in (None, "absolute"),
        f"pos_emb must be None or 'absolute'. Received: pos_emb={config['pos_emb']!r}",
    )
    require_image_size("image_size", config["image_size"])
    if config["pretrain_size"] is not None:
        require_image_size("pretrain_size", config["pretrain_size"])
    require_fraction("stochastic_depth_rate", config["stochastic_depth_rate"])
    require_positive("layer_norm_epsilon", config["layer_norm_epsilon"])
    require_number("head_bias_init", config["head_bias_init"])
    moe_blocks(config["placement"], sum(genotype.depths))
    return genotype


def pretrained_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images that windows and the position table are of."""
    size = config["pretrain_size"]
    return image_shape(config["image_size"] if size is None else size)


def window_sizes(genotype: Genotype, image: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the windows of each stage, in tokens, for an image of this size."""
    return tuple(
        window_on(grid, genes.splits)
        for genes, grid in zip(genotype.stages, genotype.grids(image), strict=True)
    )


def functional_as_vit(config: dict[str, Any]) -> tuple[Any, Any]:
    """Symbolic images, and logits or features."""
    genotype = check_arguments(config)
    policy = resolve_policy(config["dtype"])
    height, width = image_shape(config["image_size"])
    images = keras.Input((height, width, config["channels"]), name="images", dtype="float32")
    x = _embed(images, genotype, config, policy)
    rates = depth_rates(config["stochastic_depth_rate"], sum(genotype.depths))
    for block, rate in zip(blocks(genotype), rates, strict=True):
        if _opens_stage(genotype, block):
            x = _merging(genotype, block.stage, config, policy)(x)
        x = _encoder_block(genotype, block, rate, config, policy)(x)
    x = make_norm(config["norm"], config["layer_norm_epsilon"], policy, "encoder_norm")(x)
    x = pooling(policy)(x)
    return images, _head(x, config, policy)


def pooling(policy: Any, name: str = "pooling") -> keras.layers.Layer:
    """The mean of all tokens of a map."""
    return keras.layers.GlobalAveragePooling2D("channels_last", dtype=policy, name=name)


def kernel_initializer() -> keras.initializers.Initializer:
    """Of all kernels but that of the tokens: the paper's cut at 2, 100 deviations, cuts nothing."""
    return keras.initializers.RandomNormal(stddev=0.02)


def _opens_stage(genotype: Genotype, block: Block) -> bool:
    return block.stage > 0 and block.index == sum(genotype.depths[: block.stage])


def _embed(images: Any, genotype: Genotype, config: dict[str, Any], policy: Any) -> Any:
    kernel_size = genotype.stages[0].kernel_size
    # Kernel and bias are uniform up to one over the root of the kernel's fan-in.
    limit = 1 / math.sqrt(kernel_size**2 * config["channels"])
    x = layers.OverlappingPatchEmbedding(
        kernel_size,
        genotype.widths[0],
        STRIDES[0],
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        bias_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype=policy,
        name="embedding",
    )(images)
    x = make_norm(config["norm"], config["layer_norm_epsilon"], policy, "embedding_norm")(x)
    if config["pos_emb"]:
        grid = genotype.grids(pretrained_shape(config))[0]
        x = layers.MapPositionEmbedding(grid, dtype=policy, name="position_embedding")(x)
    if config["dropout_rate"]:
        x = keras.layers.Dropout(config["dropout_rate"], dtype=policy, name="dropout")(x)
    return x


def _merging(
    genotype: Genotype, stage: int, config: dict[str, Any], policy: Any
) -> layers.PatchMerging:
    """What makes the tokens of a stage, 1 to 3, from those of the stage before."""
    return layers.PatchMerging(
        genotype.stages[stage].kernel_size,
        genotype.widths[stage],
        norm="none" if config["norm"] == "identity" else config["merge_norm"],
        layer_norm_epsilon=config["layer_norm_epsilon"],
        kernel_initializer=kernel_initializer(),
        dtype=policy,
        name=f"merging_{stage}",
    )


def _encoder_block(
    genotype: Genotype, block: Block, rate: float, config: dict[str, Any], policy: Any
) -> layers.WindowEncoderBlock:
    genes = genotype.stages[block.stage]
    size = None
    if config["windows"] == "size":
        size = window_sizes(genotype, pretrained_shape(config))[block.stage]
    return layers.WindowEncoderBlock(
        genotype.num_heads[block.stage],
        _mlp(genotype, block, config, policy),
        splits=genes.splits,
        window_size=size,
        dropout_rate=config["dropout_rate"],
        attention_dropout_rate=config["attention_dropout_rate"],
        stochastic_depth_rate=rate,
        layer_norm_epsilon=config["layer_norm_epsilon"],
        remat=config["remat"],
        norm=config["norm"],
        kernel_initializer=kernel_initializer(),
        dtype=policy,
        name=block.name,
    )


def _mlp(
    genotype: Genotype, block: Block, config: dict[str, Any], policy: Any
) -> keras.layers.Layer:
    """The dense or the sparse MLP of a block."""
    hidden = genotype.stages[block.stage].mlp_ratio * genotype.widths[block.stage]
    if block.index in moe_blocks(config["placement"], sum(genotype.depths)):
        own = {**config, "mlp_dim": hidden}
        return moe_mlp(
            own,
            block.index,
            make_router(config),
            images_per_group(config),
            policy,
            kernel_initializer=kernel_initializer(),
        )
    return layers.MLP(
        hidden,
        config["activation"],
        config["dropout_rate"],
        kernel_initializer=kernel_initializer(),
        bias_initializer="zeros",
        dtype=policy,
        name="mlp",
    )


def _head(x: Any, config: dict[str, Any], policy: Any) -> Any:
    """Pooled tokens to logits, in float32 under half precision; or as they are."""
    if config["num_classes"] is None:
        return x
    require_sizes(config, ("num_classes",))
    if config["head"] == "tanh_mlp":
        x = keras.layers.Dense(
            x.shape[-1],
            activation="tanh",
            kernel_initializer=kernel_initializer(),
            dtype=policy,
            name="pre_logits",
        )(x)
    own = config["head_kernel_initializer"]
    return keras.layers.Dense(
        config["num_classes"],
        kernel_initializer=kernel_initializer() if own is None else own,
        bias_initializer=keras.initializers.Constant(config["head_bias_init"]),
        dtype="float64" if policy.compute_dtype == "float64" else "float32",
        name="head",
    )(x)
