"""LIMoE: one sparse tower for images and text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import layers
from keras_vmoe.models.base import argument_names, resolve_policy
from keras_vmoe.models.pairs import PairModel, Projection, logit_scale, pair_outputs
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.text_transformer import embed_text
from keras_vmoe.models.vit import (
    dense_mlp,
    depth_rates,
    embed_images,
    encoder_block,
    encoder_norm,
    image_shape,
    require_sizes,
)
from keras_vmoe.models.vmoe import moe_mlp
from keras_vmoe.ops.validation import require

MODALITIES = ("image", "text")
#: The losses that LIMoE is trained with.
AUXILIARY_LOSSES = ("importance", "load", "z", "local_text", "global_text", "global_image")
_LOSSES = (
    *("importance", "load", "gshard", "z"),
    *(f"{scope}_{name}" for scope in ("local", "global") for name in MODALITIES),
)
# The paper's soft minima, of 32 experts; models with others take the same share of theirs.
_PAPER_EXPERTS, _PAPER_MINIMA = 32, {"image": 20, "text": 9}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class LIMoE(PairModel):
    """One sparse transformer for images and texts, trained by telling pairs apart.

    Patches and tokens of text go through the same blocks, routers and experts, as sequences of
    their own: an image never attends to its text. They meet where they are routed: a routing group
    holds the images and the texts of the same pairs. No block is told which modality a token is of.

    Args:
        image_size: side of the input images, pixels, or (height, width).
        patch_size: side of a patch, pixels, or (height, width).
        num_layers: encoder blocks.
        width: model width (d).
        mlp_dim: hidden width of the MLPs and of each expert (h).
        num_heads: attention heads; must divide the width.
        vocabulary_size: tokens of the vocabulary.
        text_length: tokens of a text, its end included.
        eos_id: the token that ends a text; what is behind it is padding, which takes no expert's
            slot, counts in no loss and is not attended to.
        projection_dim: width of the embeddings; `None` takes `width`.
        placement: sparse blocks: `"every_2"`, `"last_2"` (the last 2 of the odd blocks),
            `"final_6"` (the last 6 blocks), block ids, or `"none"`: a dense tower.
        num_experts: experts per sparse block (e).
        num_selected: choices per token (k).
        capacity_factor: slots per assignment (C).
        eval_capacity_factor: the same when not training; `None`: nothing is dropped. Texts alone,
            as in zero-shot classification, use few of the experts, which would drop most of them.
            On a CPU that costs nothing; on accelerators e / k times the experts' compute.
        capacity_rounding: `"ceil"` or `"round"`.
        capacity_multiple_of: capacity is rounded up to a multiple.
        batch_priority: Batch Prioritized Routing over the tokens of both modalities.
        priority_score: `"max"` or `"sum"`.
        renormalise_gates: divide a token's weights by their sum.
        noise_std: router noise in training, before division by e.
        auxiliary_losses: names, or names with relative weights: `"importance"`, `"load"`,
            `"gshard"`, `"z"`, `"local_image"`, `"local_text"`, `"global_image"`, `"global_text"`
            (entropies, of one modality).
        auxiliary_loss_weight: of the mean over these losses and over the sparse blocks.
        soft_minimum_experts: experts that the tokens of a modality are to use, by its name: the
            threshold of its global entropy loss. `None`: 20 / 32 of the experts for images and
            9 / 32 for texts, as in the paper, and at least 2; a modality that is left out has no
            threshold.
        balanced_importance: give images and texts the same part in the importance loss.
        pairs_per_group: pairs whose tokens are routed together.
        expert_dropout_rate: dropout inside the experts; `None` takes `dropout_rate`.
        shared_expert_init: all experts of a block start from the same weights.
        dispatch: `"auto"`, `"einsum"`, `"gather"` or `"grouped"`.
        dispatch_dtype: optional dtype that tokens are rounded to while they are moved.
        loss: `"softmax"` or `"sigmoid"`, see `ops.contrastive_loss`.
        scale_init: the scale of the logits (inverse temperature) that training starts from.
        bias_init: the bias that it starts from, of the sigmoid loss.
        channels, position_embedding, position_temperature, qk_norm, dropout_rate,
            attention_dropout_rate, stochastic_depth_rate, activation, layer_norm_epsilon, remat:
            as in `ViT`.

    Call arguments:
        inputs: `{"images": [b, height, width, channels] in [-1, 1], "tokens": [b, text_length]
            ints}`; row i of both is pair i.

    Returns:
        `{"image_embedding": [b, projection_dim], "text_embedding": [b, projection_dim],
        "logit_scale": [b]}`, and `"logit_bias": [b]` with the sigmoid loss. Embeddings have length
        1, in float32. `encode_image` and `encode_text` take one modality alone.

    Raises:
        ValueError: a value out of range or an unknown word; the message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.LIMoE.from_variant("limoe_ti8")
    >>> images, tokens = np.zeros((2, 32, 32, 3), "float32"), np.ones((2, 16), "int32")
    >>> tuple(model({"images": images, "tokens": tokens})["text_embedding"].shape)
    (2, 64)
    >>> tuple(model.encode_image(images).shape)
    (2, 64)

    Reference: Mustafa et al. 2022, arXiv 2206.02770.
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
        projection_dim: int | None = None,
        placement: str | Sequence[int] = "every_2",
        num_experts: int = 32,
        num_selected: int = 1,
        capacity_factor: float = 1.05,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str = "ceil",
        capacity_multiple_of: int = 4,
        batch_priority: bool = True,
        priority_score: str = "max",
        renormalise_gates: bool = False,
        noise_std: float = 1.0,
        auxiliary_losses: Sequence[str] | Mapping[str, float] = AUXILIARY_LOSSES,
        auxiliary_loss_weight: float = 0.04,
        soft_minimum_experts: Mapping[str, float] | None = None,
        balanced_importance: bool = False,
        pairs_per_group: int = 8,
        expert_dropout_rate: float | None = None,
        shared_expert_init: bool = True,
        dispatch: str = "auto",
        dispatch_dtype: str | None = None,
        loss: str = "softmax",
        scale_init: float = 10.0,
        bias_init: float = -10.0,
        channels: int = 3,
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
        config = {n: values[n] for n in argument_names(LIMoE) if n != "name"}
        if isinstance(placement, Iterable) and not isinstance(placement, str):
            config["placement"] = tuple(placement)
        tower = Tower(config)
        super().__init__(config, tower.graph(), name=name, **kwargs)
        self._keep_encoders(tower.image_encoder, tower.text_encoder)


def loss_weights(config: Mapping[str, Any], num_blocks: int) -> dict[str, float]:
    """The weight of each auxiliary loss in each sparse block.

    Their mean over losses and blocks has the weight `auxiliary_loss_weight`; a weight of 0 leaves
    a loss out of the mean.

    Args:
        config: `LIMoE`'s arguments.
        num_blocks: sparse blocks.

    Raises:
        ValueError: an unknown name, a negative weight.

    Example:

    >>> from keras_vmoe.models import limoe
    >>> config = {"auxiliary_losses": ("z", "local_text"), "auxiliary_loss_weight": 0.04}
    >>> limoe.loss_weights(config, num_blocks=4)
    {'z': 0.005, 'local_text': 0.005}
    """
    losses = config["auxiliary_losses"]
    require(
        not isinstance(losses, str),
        f"auxiliary_losses must be a sequence of names. Received: {losses!r}; write ({losses!r},)",
    )
    relative = dict(losses) if isinstance(losses, Mapping) else dict.fromkeys(losses, 1.0)
    for name, weight in relative.items():
        require(
            name in _LOSSES,
            f"auxiliary_losses must be of {', '.join(map(repr, _LOSSES))}. Received: {name!r}",
        )
        require(weight >= 0, f"auxiliary_losses must not be negative. Received: {name}={weight}")
    each = config["auxiliary_loss_weight"]
    require(each >= 0, f"auxiliary_loss_weight must not be negative. Received: {each}")
    enabled = {name: weight for name, weight in relative.items() if weight}
    terms = max(len(enabled) * num_blocks, 1)
    return {name: each * weight / terms for name, weight in enabled.items()}


def soft_minimum_experts(config: Mapping[str, Any]) -> dict[str, float]:
    """How many experts each modality is to use, by its name.

    Example:

    >>> from keras_vmoe.models import limoe
    >>> limoe.soft_minimum_experts({"soft_minimum_experts": None, "num_experts": 8})
    {'image': 5, 'text': 2}
    """
    given = config["soft_minimum_experts"]
    if given is not None:
        return dict(given)
    experts = config["num_experts"]
    # A minimum of one asks for nothing, and the local loss would collect all on one expert.
    least = min(2, experts)
    return {n: max(round(x * experts / _PAPER_EXPERTS), least) for n, x in _PAPER_MINIMA.items()}


def evaluation_capacity_factor(config: Mapping[str, Any]) -> float:
    """The capacity factor when not training; `None` gives each expert a slot for every choice.

    Raises:
        ValueError: `num_selected` that is no number of choices.

    Example:

    >>> from keras_vmoe.models import limoe
    >>> config = {"eval_capacity_factor": None, "num_experts": 8, "num_selected": 2}
    >>> limoe.evaluation_capacity_factor(config)
    4.0
    """
    given = config["eval_capacity_factor"]
    if given is not None:
        return given
    require_sizes(config, ("num_selected",))
    return config["num_experts"] / config["num_selected"]


def modality_router(config: Mapping[str, Any], num_blocks: int) -> layers.ModalityRouter:
    """The router of one of a LIMoE's `num_blocks` sparse blocks."""
    weights = loss_weights(config, num_blocks)
    return layers.ModalityRouter(
        config["num_experts"],
        MODALITIES,
        config["num_selected"],
        {n: weights[f"local_{n}"] for n in MODALITIES if f"local_{n}" in weights},
        {n: weights[f"global_{n}"] for n in MODALITIES if f"global_{n}" in weights},
        soft_minimum_experts(config),
        config["balanced_importance"],
        config["capacity_factor"],
        evaluation_capacity_factor(config),
        config["capacity_rounding"],
        config["capacity_multiple_of"],
        batch_priority=config["batch_priority"],
        priority_score=config["priority_score"],
        noise_std=config["noise_std"],
        renormalise_gates=config["renormalise_gates"],
        importance_loss_weight=weights.get("importance", 0.0),
        load_loss_weight=weights.get("load", 0.0),
        gshard_loss_weight=weights.get("gshard", 0.0),
        z_loss_weight=weights.get("z", 0.0),
        name="router",
    )


class Tower:
    """The layers of a LIMoE, which are called for images, for texts, and for both.

    Args:
        config: `LIMoE`'s arguments.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        require_sizes(config, ("num_layers", "width", "mlp_dim", "num_heads", "channels"))
        require_sizes(config, ("text_length", "pairs_per_group"))
        self.config, self.policy = config, resolve_policy(config["dtype"])
        self.images = keras.Input(
            (*image_shape(config["image_size"]), config["channels"]), name="images", dtype="float32"
        )
        self.tokens = keras.Input((config["text_length"],), name="tokens", dtype="int32")
        # No class token: an image is the mean of its patches.
        self.patches = embed_images(self.images, {**config, "pooling": "gap"}, self.policy)
        self.words = embed_text(self.tokens, config, self.policy)
        self.text_mask = layers.text_mask(self.tokens, config["eos_id"])
        self.blocks = self._make_blocks()
        self.norm = encoder_norm(config, self.policy)
        self.pooling = layers.TokenPooling("mean", dtype=self.policy, name="pooling")
        self.projections = {
            name: Projection(config["projection_dim"] or config["width"], self.policy, name)
            for name in MODALITIES
        }

    def graph(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs of both modalities together."""
        length = self.patches.shape[1]
        x = kops.concatenate([self.patches, self.words], axis=1)
        mask = kops.concatenate(
            [kops.ones_like(self.patches[..., 0], dtype="bool"), self.text_mask], axis=1
        )
        modality = kops.concatenate([self._modality("image"), self._modality("text")], axis=1)
        x = self._encode(x, mask, modality, (length, self.words.shape[1]), (None, self.text_mask))
        image = self._embedding("image", x[:, :length], None)
        text = self._embedding("text", x[:, length:], self.text_mask)
        scale = logit_scale(self.config)(image)
        return {"images": self.images, "tokens": self.tokens}, pair_outputs(image, text, scale)

    def image_encoder(self) -> tuple[Any, Any]:
        """Input and output of images alone."""
        x = self._encode(self.patches, None, self._modality("image"), None, None)
        return self.images, self._embedding("image", x, None)

    def text_encoder(self) -> tuple[Any, Any]:
        """Input and output of texts alone."""
        mask = self.text_mask
        x = self._encode(self.words, mask, self._modality("text"), None, (mask,))
        return self.tokens, self._embedding("text", x, mask)

    def _make_blocks(self) -> list[layers.EncoderBlock]:
        config, policy = self.config, self.policy
        sparse = moe_blocks(config["placement"], config["num_layers"])
        if not sparse:
            modality_router(config, 1)  # a dense tower refuses what a sparse one would

        def mlp(index: int) -> keras.layers.Layer:
            if index not in sparse:
                return dense_mlp(config, policy)
            router = modality_router(config, len(sparse))
            return moe_mlp(config, index, router, config["pairs_per_group"], policy)

        rates = depth_rates(config["stochastic_depth_rate"], config["num_layers"])
        return [encoder_block(config, i, mlp(i), rate, policy) for i, rate in enumerate(rates)]

    def _modality(self, name: str) -> Any:
        """`[b, t]`, the place of a modality in `MODALITIES` for each of its tokens."""
        tokens = {"image": self.patches, "text": self.words}[name]
        return kops.full_like(tokens[..., 0], MODALITIES.index(name), dtype="int32")

    def _encode(self, x: Any, mask: Any, modality: Any, segments: Any, attention_masks: Any) -> Any:
        arguments = {"segments": segments, "attention_masks": attention_masks}
        for block in self.blocks:
            sparse = {"mask": mask, "modality": modality} if block.is_sparse else {}
            x = block(x, **arguments, **sparse)
        return self.norm(x)

    def _embedding(self, name: str, x: Any, mask: Any) -> Any:
        pooled = self.pooling(x) if mask is None else self.pooling(x, token_mask=mask)
        return self.projections[name](pooled)
