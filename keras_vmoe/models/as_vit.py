"""As-ViT: a hierarchical vision transformer whose shape was searched for without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vmoe.models.as_vit_graph import functional_as_vit
from keras_vmoe.models.base import VisionModel, argument_names
from keras_vmoe.models.genotype import STRIDES, Genotype

SEED_GENOTYPE = "8,2,3|4,1,2|4,1,4|4,1,6|32"


@keras.saving.register_keras_serializable(package="keras_vmoe")
class AsViT(VisionModel):
    """Vision Transformer of four stages: tokens grow fewer and wider from one to the next.

    Attention stays within windows, whose number in each stage is a gene of the architecture, as
    are the sizes of the patches that tokens are made of, the widths of the MLPs and the depths.
    Images of any size go: what is no multiple of 32 is padded.

    Args:
        genotype: text as `Genotype.parse` reads it, or a `Genotype`.
        num_classes: size of the head; `None` leaves it out and gives features.
        image_size: side of the input images, pixels, or (height, width).
        channels: of the input images.
        pos_emb: `"absolute"`: a learned table of the first stage's tokens; or `None`.
        merge_norm: of the layers that make a stage's tokens from those of the one before: layer
            norm `"pre"`, over the values of a patch; or `"post"`, over the new tokens.
        head: `"tanh_mlp"`: a tanh layer as wide as the last stage before the head; or `"linear"`.
        norm: `"layer"`; or `"identity"`: the model without any layer norm, as the search measures
            the length of its manifold. Weights have the names that they have with norms.
        windows: at another image size than `pretrain_size` windows keep their `"size"` in tokens,
            or their `"number"`.
        pretrain_size: image size that windows and the position table are of; `None` takes
            `image_size`. The table is resized to the tokens of the image.
        dropout_rate: behind the tokens, attention and MLPs.
        attention_dropout_rate: on attention weights.
        stochastic_depth_rate: of the last block; grows linearly from 0 in the first.
        activation: of the MLPs.
        layer_norm_epsilon: of the layer norms.
        head_kernel_initializer: of the head; `None` draws it as all other kernels.
        head_bias_init: constant that the head's bias starts from.
        remat: recompute blocks in the backward pass instead of keeping their activations.
        placement: sparse blocks, which are counted through all stages: `"none"`, `"every_2"`,
            `"final_2"` ... or block ids, as in `VMoE`. An expert has the width of the stage's MLP.
        num_experts, router, num_selected, capacity_factor, eval_capacity_factor, capacity_rounding,
            capacity_multiple_of, expert_capacity, num_slots, batch_priority, priority_score,
            renormalise_gates, noise_std, importance_loss_weight, load_loss_weight,
            gshard_loss_weight, z_loss_weight, images_per_group, expert_dropout_rate,
            shared_expert_init, dispatch, dispatch_dtype: of sparse blocks, as in `VMoE`.

    Call arguments:
        inputs: `[b, height, width, channels]`, in [-1, 1]; any b.

    Returns:
        Logits `[b, num_classes]` (float32 under mixed precision), or features `[b, d]`.
        `pooled_features`, `feature_pyramid` and `retokenized` give models of the same weights with
        other outputs, or of coarser tokens.

    Raises:
        ValueError: a genotype that does not read, a value out of range or an unknown word; the
            message names it.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.AsViT("4,2,2|2,1,2|2,1,2|2,1,2|16,8", num_classes=10, image_size=64)
    >>> model.output_shape, model.count_params()
    ((None, 10), 61386)

    Reference: Chen et al. 2022, arXiv 2202.11921.
    """

    # Pixels from one token of the first stage to the next.
    STRIDE = STRIDES[0]

    def __init__(
        self,
        genotype: str | Genotype = SEED_GENOTYPE,
        num_classes: int | None = 1000,
        image_size: int | tuple[int, int] = 224,
        channels: int = 3,
        pos_emb: str | None = None,
        merge_norm: str = "pre",
        head: str = "tanh_mlp",
        norm: str = "layer",
        windows: str = "size",
        pretrain_size: int | tuple[int, int] | None = None,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        activation: Any = "gelu",
        layer_norm_epsilon: float = 1e-5,
        head_kernel_initializer: Any = None,
        head_bias_init: float = 0.0,
        remat: bool = False,
        placement: str | Sequence[int] = "none",
        num_experts: int = 8,
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
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # Every argument, under its own name: this dict is the model's config.
        values = locals()
        config = {n: values[n] for n in argument_names(AsViT) if n != "name"}
        config["genotype"] = str(Genotype.parse(genotype))
        if isinstance(placement, Iterable) and not isinstance(placement, str):
            config["placement"] = tuple(placement)
        super().__init__(config, functional_as_vit(config), name=name, **kwargs)

    @property
    def genotype(self) -> Genotype:
        """What the model is made of."""
        return Genotype.parse(self.arguments["genotype"])

    @classmethod
    def from_genotype(cls, genotype: str | Genotype, **overrides: Any) -> AsViT:
        """The model of a genotype, in the layout that searches measure.

        Args:
            genotype: text as `Genotype.parse` reads it, or a `Genotype`.
            **overrides: any other argument of the class.

        Raises:
            ValueError: an argument that the class does not have, or as the class raises it.

        Example:

        >>> from keras_vmoe import models
        >>> model = models.AsViT.from_genotype(
        ...     "4,2,2|2,1,2|2,1,2|2,1,2|16,8", num_classes=None, image_size=32
        ... )
        >>> model.output_shape
        (None, 64)
        """
        from keras_vmoe.models.variants import merge_arguments

        return cls(**merge_arguments(cls, {"genotype": genotype}, overrides))
