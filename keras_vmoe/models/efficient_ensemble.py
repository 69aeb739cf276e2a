"""E3: an ensemble of sparse models that share what comes before their experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.models.base import VisionModel, argument_names, rewired
from keras_vmoe.models.placement import moe_blocks
from keras_vmoe.models.vit import Members
from keras_vmoe.models.vmoe import functional_vmoe
from keras_vmoe.ops.validation import require, require_positive_int


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EfficientEnsemble(VisionModel):
    """Efficient ensemble of sparse mixtures of experts (E3): several V-MoEs in one.

    Just before the first sparse block each image is repeated, once for each member. Members share
    all dense weights, but in the sparse blocks each has a router and `num_experts / num_members`
    experts of its own, so they come to predictions of their own. An ensemble of m members has the
    parameters of one `VMoE` with as many experts, and costs m times its blocks from the first
    sparse one on.

    The output keeps the members apart, because they are trained by the mean of their losses and
    not by the loss of their mean. `fit` takes `EnsembleCrossentropy` and `EnsembleAccuracy`; for
    predictions take `averaged_prediction(model)`, or `Classifier`, which does so by itself.

    Args:
        num_members: members of the ensemble (m); must divide `num_experts`.
        num_experts: experts per sparse block (e), of all members together.
        num_selected: choices per token (k), among its member's experts; `None` is 1.
        placement: sparse blocks, as in `VMoE`; at least one.
        capacity_factor: slots per assignment, `e` experts for the tokens of all members; `None` is
            1.05.
        noise_std: router noise in training, before division by `e / m`; `None` is 1.0.
        images_per_group: images routed together, with all their copies; `None` is 8.
        image_size, patch_size, num_layers, width, mlp_dim, num_heads, num_classes,
            eval_capacity_factor, capacity_rounding, capacity_multiple_of, expert_capacity,
            batch_priority, priority_score, renormalise_gates, importance_loss_weight,
            load_loss_weight, gshard_loss_weight, z_loss_weight, expert_dropout_rate,
            shared_expert_init, dispatch, dispatch_dtype, channels, pooling, representation_size,
            position_embedding, position_temperature, qk_norm, dropout_rate,
            attention_dropout_rate, stochastic_depth_rate, activation, layer_norm_epsilon,
            head_kernel_initializer, head_bias_init, remat: as in `VMoE`.

    Call arguments:
        inputs: `[b, height, width, channels]`, in [-1, 1]; any b.

    Returns:
        Logits of each member `[b, m, num_classes]` (float32 under mixed precision), or features
        `[b, m, d]`. `model.losses` holds the weighted auxiliary losses, means over the members.

    Raises:
        ValueError: no sparse block, members that do not divide the experts, a value out of range
            or an unknown word; the message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.EfficientEnsemble(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=4,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ... )
    >>> images = np.zeros((3, 32, 32, 3), "float32")
    >>> tuple(model(images).shape)
    (3, 2, 10)
    >>> tuple(models.averaged_prediction(model)(images).shape)
    (3, 10)

    Reference: Allingham et al. 2021, arXiv 2110.03360.
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
        num_members: int = 2,
        placement: str | Sequence[int] = "last_2",
        num_experts: int = 32,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        capacity_rounding: str | None = None,
        capacity_multiple_of: int | None = None,
        expert_capacity: int | None = None,
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
        config = {n: values[n] for n in argument_names(EfficientEnsemble) if n != "name"}
        if isinstance(placement, Iterable) and not isinstance(placement, str):
            config["placement"] = tuple(placement)
        super().__init__(config, functional_ensemble(config), name=name, **kwargs)


def functional_ensemble(config: dict[str, Any]) -> tuple[Any, Any]:
    """Inputs and outputs of an `EfficientEnsemble` from its arguments."""
    require_positive_int("num_members", config["num_members"])
    blocks = moe_blocks(config["placement"], config["num_layers"])
    require(
        len(blocks) > 0,
        "placement must name at least one sparse block: without one, all members are the same. "
        f"Received: placement={config['placement']!r}",
    )
    members = Members(config["num_members"], blocks[0])
    return functional_vmoe(vmoe_arguments(config), members)


def vmoe_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an `EfficientEnsemble` as those of the `VMoE` that it is built from."""
    shared = {name: value for name, value in config.items() if name != "num_members"}
    selected = 1 if config["num_selected"] is None else config["num_selected"]
    return {**shared, "router": "top_k", "num_slots": None, "num_selected": selected}


def averaged_prediction(model: keras.Model, kind: str = "softmax") -> keras.Model:
    """A model with the same weights that gives what the members of an ensemble predict together.

    Args:
        model: a functional model from images to the members' logits `[b, m, classes]`, such as an
            `EfficientEnsemble` or what `with_routing` makes of one. A model with logits
            `[b, classes]` is given back as it is.
        kind: `"softmax"` or `"sigmoid"`, what the members were trained with.

    Returns:
        A model of the same inputs with logits `[b, classes]`, whose softmax (sigmoid) is the mean
        of the members'. It shares its layers with `model`.

    Raises:
        ValueError: another kind, or outputs that are no logits.

    Example:

    >>> from keras_vmoe import models
    >>> size = dict(patch_size=8, num_layers=4, width=16, mlp_dim=32, num_heads=2)
    >>> model = models.EfficientEnsemble(32, num_classes=10, num_experts=4, num_members=4, **size)
    >>> model.output_shape, models.averaged_prediction(model).output_shape
    ((None, 4, 10), (None, 10))

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 2.2.
    """
    shape = getattr(model, "output_shape", None)
    require(
        isinstance(shape, tuple) and len(shape) in (2, 3),
        "model must give logits [images, classes] or [images, members, classes]. "
        f"Received: {getattr(model, 'name', model)!r} with outputs of shape {shape}",
    )
    if len(shape) == 2:
        return model
    average = layers.EnsembleAverage(kind, name="ensemble_average")
    return rewired(model, model.input, average(model.output))
