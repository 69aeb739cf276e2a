"""Two towers, one for images and one for texts: what LIMoE is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.models.base import argument_names, resolve_policy
from keras_vmoe.models.pairs import PairModel, logit_scale, pair_outputs
from keras_vmoe.models.text_transformer import TextTransformer
from keras_vmoe.models.vmoe import VMoE


@keras.saving.register_keras_serializable(package="keras_vmoe")
class TwoTower(PairModel):
    """A transformer of images and one of texts, dense or sparse, trained by telling pairs apart.

    The towers share nothing but the space that they map to. By default they are dense, of the
    same size, and project the mean of their tokens.

    Args:
        image_size: side of the input images, pixels, or (height, width).
        patch_size: side of a patch, pixels, or (height, width).
        num_layers: encoder blocks of the image tower.
        width: model width (d) of the image tower.
        mlp_dim: hidden width of its MLPs and experts (h).
        num_heads: its attention heads.
        vocabulary_size: tokens of the vocabulary.
        text_length: tokens of a text, its end included.
        eos_id: the token that ends a text.
        mask_padding: leave out what is behind the end.
        text_num_layers, text_width, text_mlp_dim, text_num_heads: of the text tower; `None`: as
            those of the image tower.
        text_pooling: as of `TextTransformer`.
        projection_dim: width of the embeddings; `None` takes `width`.
        placement: sparse blocks of the image tower, as of `VMoE`; `"none"`: dense.
        text_placement: the same of the text tower.
        num_experts, num_selected, capacity_factor, batch_priority, noise_std,
            importance_loss_weight, load_loss_weight, z_loss_weight, expert_dropout_rate,
            shared_expert_init, dispatch, dispatch_dtype: of both towers, as in `VMoE`.
        eval_capacity_factor: of both towers, as in `VMoE`: `None` takes `capacity_factor`, so
            that tokens are dropped as in training. That of `LIMoE` drops none.
        pairs_per_group: images, and texts, that are routed together.
        loss: `"softmax"` or `"sigmoid"`, see `ops.contrastive_loss`.
        scale_init: the scale of the logits (inverse temperature) that training starts from.
        bias_init: the bias that it starts from, of the sigmoid loss.
        channels, pooling, position_embedding, position_temperature, qk_norm, dropout_rate,
            attention_dropout_rate, stochastic_depth_rate, activation, layer_norm_epsilon, remat:
            as in `ViT`.

    Call arguments:
        inputs: as of `LIMoE`.

    Returns:
        As `LIMoE`.

    Raises:
        ValueError: a value out of range or an unknown word; the message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.TwoTower(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     vocabulary_size=100,
    ... )
    >>> tuple(model.encode_text(np.ones((3, 16), "int32")).shape)
    (3, 16)

    Reference: Radford et al. 2021, arXiv 2103.00020 (dense towers); sparse ones as the two-tower
    contrastive model of the V-MoE reference code.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_layers: int = 12,
        width: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        vocabulary_size: int = 32_000,
        text_length: int = 16,
        eos_id: int = 1,
        mask_padding: bool = True,
        text_num_layers: int | None = None,
        text_width: int | None = None,
        text_mlp_dim: int | None = None,
        text_num_heads: int | None = None,
        text_pooling: str = "gap",
        projection_dim: int | None = None,
        placement: str | Sequence[int] = "none",
        text_placement: str | Sequence[int] = "none",
        num_experts: int = 32,
        num_selected: int = 1,
        capacity_factor: float = 1.05,
        eval_capacity_factor: float | None = None,
        batch_priority: bool = True,
        noise_std: float = 1.0,
        importance_loss_weight: float = 0.005,
        load_loss_weight: float = 0.005,
        z_loss_weight: float = 0.0,
        pairs_per_group: int = 8,
        expert_dropout_rate: float | None = None,
        shared_expert_init: bool = True,
        dispatch: str = "auto",
        dispatch_dtype: str | None = None,
        loss: str = "softmax",
        scale_init: float = 10.0,
        bias_init: float = -10.0,
        channels: int = 3,
        pooling: str = "gap",
        position_embedding: str = "learned",
        position_temperature: float = 10_000.0,
        qk_norm: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        activation: Any = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        remat: bool = False,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # Every argument, under its own name: this dict is the model's config.
        values = locals()
        config = {n: values[n] for n in argument_names(TwoTower) if n != "name"}
        for argument in ("placement", "text_placement"):
            value = config[argument]
            if isinstance(value, Iterable) and not isinstance(value, str):
                config[argument] = tuple(value)
        towers = _Towers(config)
        super().__init__(config, towers.graph(), name=name, **kwargs)
        self._keep_encoders(towers.image_encoder, towers.text_encoder)

    @property
    def image_tower(self) -> VMoE:
        """The transformer of images, up to its linear map."""
        return self.get_layer("image_tower")

    @property
    def text_tower(self) -> TextTransformer:
        """The transformer of texts, up to its linear map."""
        return self.get_layer("text_tower")


class _Towers:
    """The two towers, and what joins them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, policy = config, resolve_policy(config["dtype"])
        dim = config["projection_dim"] or config["width"]
        self.image_tower = VMoE(
            **_shared(VMoE, config),
            num_classes=dim,
            images_per_group=config["pairs_per_group"],
            head_kernel_initializer="glorot_uniform",
            name="image_tower",
            dtype=policy,
        )
        sizes = {
            n: config[n] if config[f"text_{n}"] is None else config[f"text_{n}"]
            for n in ("num_layers", "width", "mlp_dim", "num_heads")
        }
        of_text = {"placement": config["text_placement"], "pooling": config["text_pooling"]}
        self.text_tower = TextTransformer(
            **{**_shared(TextTransformer, config), **sizes, **of_text},
            num_classes=dim,
            texts_per_group=config["pairs_per_group"],
            name="text_tower",
            dtype=policy,
        )
        self.image_unit, self.text_unit = (
            layers.L2Normalization(dtype=policy, name=f"{name}_unit_length")
            for name in ("image", "text")
        )
        self.images, self.tokens = (
            keras.Input(tower.input.shape[1:], name=name, dtype=tower.input.dtype)
            for name, tower in (("images", self.image_tower), ("tokens", self.text_tower))
        )

    def graph(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs of both."""
        image, text = self.image_encoder()[1], self.text_encoder()[1]
        scale = logit_scale(self.config)(image)
        return {"images": self.images, "tokens": self.tokens}, pair_outputs(image, text, scale)

    def image_encoder(self) -> tuple[Any, Any]:
        """Input and output of images alone."""
        return self.images, self.image_unit(self.image_tower(self.images))

    def text_encoder(self) -> tuple[Any, Any]:
        """Input and output of texts alone."""
        return self.tokens, self.text_unit(self.text_tower(self.tokens))


def _shared(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a tower that the two-tower model has under the same name."""
    own = set(argument_names(cls)) - {"name", "dtype", "num_classes"}
    return {name: value for name, value in config.items() if name in own}
