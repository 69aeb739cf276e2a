"""A transformer of texts, dense or sparse: the text tower of two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.models.base import VisionModel, argument_names, resolve_policy
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.vit import (
    dense_mlp,
    depth_rates,
    encoder_block,
    encoder_norm,
    head,
    pool,
    require_sizes,
)
from keras_vmoe.models.vmoe import make_router, moe_mlp
from keras_vmoe.ops.validation import require_choice

POOLINGS = ("gap", "gmp", "map", "last", "first")
# Of the names of layers, so that metrics and graphs of two towers keep them apart.
_PREFIX = "text_"


@keras.saving.register_keras_serializable(package="keras_vmoe")
class TextTransformer(VisionModel):
    """Transformer of texts whose MLPs may be, in some blocks, sparse mixtures of experts.

    Args:
        vocabulary_size: tokens of the vocabulary.
        text_length: tokens of a text, its end included.
        eos_id: the token that ends a text.
        mask_padding: leave out what is behind the end: from attention, pooling and routing.
        num_layers: encoder blocks.
        width: model width (d).
        mlp_dim: hidden width of the MLPs and of each expert (h).
        num_heads: attention heads; must divide the width.
        num_classes: size of the linear map behind the pooling; `None` leaves it out.
        pooling: `"gap"` (mean of the tokens), `"gmp"` (their largest values), `"map"` (attention
            pooling, which looks at padding too), the `"last"` token or the `"first"`.
        placement: sparse blocks, as of `VMoE`; `"none"`: dense.
        num_experts, num_selected, capacity_factor, eval_capacity_factor, batch_priority, noise_std,
            importance_loss_weight, load_loss_weight, z_loss_weight, expert_dropout_rate,
            shared_expert_init, dispatch, dispatch_dtype: as in `VMoE`.
        texts_per_group: texts that are routed together.
        qk_norm, dropout_rate, attention_dropout_rate, stochastic_depth_rate, activation,
            layer_norm_epsilon, head_kernel_initializer, head_bias_init, remat: as in `ViT`.

    Call arguments:
        inputs: `[b, text_length]` ints.

    Returns:
        `[b, num_classes]`, or features `[b, d]`.

    Raises:
        ValueError: a value out of range or an unknown word; the message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.TextTransformer(
    ...     vocabulary_size=100,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ... )
    >>> tuple(model(np.ones((3, 16), "int32")).shape)
    (3, 16)

    Reference: Zhai et al. 2021, arXiv 2111.07991 (LiT), section 3 and appendix (text towers).
    """

    def __init__(
        self,
        vocabulary_size: int = 32_000,
        text_length: int = 16,
        eos_id: int = 1,
        mask_padding: bool = True,
        num_layers: int = 12,
        width: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        num_classes: int | None = None,
        pooling: str = "gap",
        placement: str | Sequence[int] = "none",
        num_experts: int = 32,
        num_selected: int = 1,
        capacity_factor: float = 1.05,
        eval_capacity_factor: float | None = None,
        batch_priority: bool = True,
        noise_std: float = 1.0,
        importance_loss_weight: float = 0.005,
        load_loss_weight: float = 0.005,
        z_loss_weight: float = 0.0,
        texts_per_group: int = 8,
        expert_dropout_rate: float | None = None,
        shared_expert_init: bool = True,
        dispatch: str = "auto",
        dispatch_dtype: str | None = None,
        qk_norm: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        activation: Any = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        head_kernel_initializer: Any = "glorot_uniform",
        head_bias_init: float = 0.0,
        remat: bool = False,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # Every argument, under its own name: this dict is the model's config.
        values = locals()
        config = {n: values[n] for n in argument_names(TextTransformer) if n != "name"}
        if isinstance(placement, Iterable) and not isinstance(placement, str):
            config["placement"] = tuple(placement)
        super().__init__(config, _graph(config), name=name, **kwargs)
        self.input_range = None  # of images


def embed_text(tokens: Any, config: dict[str, Any], policy: Any) -> Any:
    """Tokens to vectors with positions.

    Args:
        tokens: symbolic `[b, text_length]`.
        config: arguments of a model of texts.
        policy: dtype policy.
    """
    require_sizes(config, ("vocabulary_size", "text_length", "width"))
    x = layers.TextEmbedding(
        config["vocabulary_size"], config["width"], dtype=policy, name="text_embedding"
    )(tokens)
    x = layers.PositionEmbedding(
        "learned", (1, config["text_length"]), dtype=policy, name="text_position_embedding"
    )(x)
    if config["dropout_rate"]:
        x = keras.layers.Dropout(config["dropout_rate"], dtype=policy, name="text_dropout")(x)
    return x


def _graph(config: dict[str, Any]) -> tuple[Any, Any]:
    require_choice("pooling", config["pooling"], POOLINGS)
    require_sizes(config, ("num_layers", "mlp_dim", "num_heads", "texts_per_group"))
    policy = resolve_policy(config["dtype"])
    tokens = keras.Input((config["text_length"],), name="tokens", dtype="int32")
    x = embed_text(tokens, config, policy)
    mask = layers.text_mask(tokens, config["eos_id"]) if config["mask_padding"] else None
    sparse = moe_blocks(config["placement"], config["num_layers"])
    rates = depth_rates(config["stochastic_depth_rate"], config["num_layers"])
    for i, rate in enumerate(rates):
        if i in sparse:
            router = make_router(_router_config(config))
            mlp = moe_mlp(config, i, router, config["texts_per_group"], policy, _PREFIX)
        else:
            mlp = dense_mlp(config, policy)
        masks = {} if mask is None else {"attention_masks": (mask,)}
        if mask is not None and i in sparse:
            masks["mask"] = mask
        x = encoder_block(config, i, mlp, rate, policy, _PREFIX)(x, **masks)
    x = encoder_norm(config, policy, _PREFIX)(x)
    return tokens, head(_pool(x, mask, config, policy), config, policy, _PREFIX)


def _pool(x: Any, mask: Any, config: dict[str, Any], policy: Any) -> Any:
    """Tokens to one vector per text."""
    if config["pooling"] not in ("gap", "gmp"):
        return pool(x, config, policy, _PREFIX)
    kind = "mean" if config["pooling"] == "gap" else "max"
    pooling = layers.TokenPooling(kind, dtype=policy, name=f"{_PREFIX}pooling")
    return pooling(x) if mask is None else pooling(x, token_mask=mask)


def _router_config(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments as those of a `VMoE`, for its top-k router."""
    others = {
        "router": "top_k",
        "capacity_rounding": None,
        "capacity_multiple_of": None,
        "expert_capacity": None,
        "num_slots": None,
        "priority_score": "max",
        "renormalise_gates": False,
        "gshard_loss_weight": 0.0,
    }
    return {**config, **others}
