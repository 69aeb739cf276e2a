"""Mobile V-MoE: one router for the whole model, and for whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.models.base import FunctionalModel, VisionModel, argument_names, column_as_row
from keras_vmoe.models.classifier import Classifier, preprocess
from keras_vmoe.models.mobile_graph import check_arguments, functional_mobile_vmoe
from keras_vmoe.ops.losses import safe_divide
from keras_vmoe.ops.validation import require

ROUTER_LOGITS = "router_logits"


class _Untracked:
    """Holds what Keras must not take for a sublayer: another graph of layers that it knows."""

    def __init__(self, plan: ops.ImagePlan | None, both: keras.Model | None) -> None:
        self.plan, self.both = plan, both
        # Whether both outputs are asked for out of training as well.
        self.always = False


@keras.saving.register_keras_serializable(package="keras_vmoe")
class MobileVMoE(VisionModel):
    """Vision Transformer whose last MLPs are mixtures of experts that whole images go to.

    One router looks at an image behind the last dense block; all MoE blocks follow it. An image
    goes through k experts of each, so a small device reads and multiplies little more than for a
    dense model. Super-classes, groups of classes that a dense model confuses, teach the router.

    Args:
        image_size: side of the input images, pixels, or (height, width).
        patch_size: side of a patch, pixels, or (height, width).
        num_layers: encoder blocks, the MoE blocks among them.
        width: model width (d).
        mlp_dim: hidden width of the MLPs and of each expert (h).
        num_heads: attention heads; must divide the width.
        num_classes: size of the head; `None` leaves it out and gives features.
        routing: `"image"`; or for comparison `"token"`, where each token of each MoE block chooses
            for itself, as in `VMoE` with its defaults; or `"dense"`, where the last blocks have
            MLPs that are `num_selected` times wider: the dense twin of equal FLOPs.
        num_moe_layers: MoE blocks, the last ones (L).
        num_experts: experts of each (e).
        num_selected: experts per image (k).
        router_input: what the router looks at: `"token"` (the class token) or `"mean"` (of the
            patches' tokens).
        gate: of the experts' outputs, `"softmax"` or `"straight_through"`, see
            `ops.image_routing`.
        renormalise_gates: divide an image's weights by their sum.
        router_bias: whether the router has a bias.
        superclasses: the expert of each class, one of e numbers for each; routing by image only.
            `None`: the router learns from the task alone.
        superclass_loss_weight: of the router's loss (lambda).
        shared_expert_init: all experts of a block start from the same weights.
        expert_dropout_rate: dropout inside the experts; `None` takes `dropout_rate`.
        dispatch: of the MoE layers, see `layers.ImageMoEMLP`; by token, see `layers.MoEMLP`.
        channels, pooling, representation_size, position_embedding, position_temperature, qk_norm,
            dropout_rate, attention_dropout_rate, stochastic_depth_rate, activation,
            layer_norm_epsilon, head_kernel_initializer, head_bias_init, remat: as in `ViT`.

    Call arguments:
        inputs: `[b, height, width, channels]`, in [-1, 1]; any b.

    Returns:
        Logits `[b, num_classes]` (float32 under mixed precision), or features `[b, d]`. In training
        a model with a head that routes by image gives `{"logits", "router_logits"}`, the latter
        `[b, e]`. `fit` adds the router's loss to the compiled one, and tells `router_accuracy` and
        `router_loss`. Within the graph of another model, such as a `Classifier`, and as a copy by
        `keras.models.clone_model`, it gives logits in training, too: nobody teaches its router
        super-classes then.
        `with_router_outputs(model)` gives both, and the experts, out of training.

    Raises:
        ValueError: a value out of range or an unknown word; super-classes that leave a class or an
            expert out. The message names it.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.MobileVMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=3,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=4,
    ...     num_experts=2,
    ...     superclasses=[0, 0, 1, 1],
    ... )
    >>> images = np.zeros((1, 32, 32, 3), "float32")
    >>> tuple(model(images).shape)
    (1, 4)
    >>> {name: tuple(x.shape) for name, x in model(images, training=True).items()}
    {'logits': (1, 4), 'router_logits': (1, 2)}

    Reference: Daxberger et al. 2023, arXiv 2309.04354.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 32,
        num_layers: int = 12,
        width: int = 192,
        mlp_dim: int = 768,
        num_heads: int = 3,
        num_classes: int | None = 1000,
        routing: str = "image",
        num_moe_layers: int = 2,
        num_experts: int = 10,
        num_selected: int = 1,
        router_input: str = "token",
        gate: str = "softmax",
        renormalise_gates: bool = False,
        router_bias: bool = False,
        superclasses: Sequence[int] | None = None,
        superclass_loss_weight: float = 0.3,
        shared_expert_init: bool = True,
        expert_dropout_rate: float | None = None,
        dispatch: str = "auto",
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
        config = {n: values[n] for n in argument_names(MobileVMoE) if n != "name"}
        check_arguments(config)
        if superclasses is not None:
            config["superclasses"] = [int(i) for i in superclasses]
        images, outputs, plan = functional_mobile_vmoe(config)
        super().__init__(config, (images, outputs), name=name, **kwargs)
        both = None
        if plan is not None and num_classes is not None:
            both = keras.Model(images, {"logits": outputs, ROUTER_LOGITS: plan.logits})
        self._graphs = _Untracked(plan, both)
        self.superclasses = None if plan is None else config["superclasses"]
        self._router_means = [
            keras.metrics.Mean(name=name)
            for name in ("router_accuracy", "router_loss")
            if self.superclasses is not None
        ]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Logits, or features; in training the logits of the router as well."""
        # Within the graph of another model this node is known to give one tensor, and Keras takes
        # the first of these, by their names in alphabetical order: the logits.
        graphs = self._graphs
        if graphs.both is not None and (training or graphs.always):
            return graphs.both(inputs, training=training)
        return super().call(inputs, training=training, mask=mask)

    def test_step(self, *args: Any) -> Any:
        """Called by `evaluate`, on either backend; measures the router as well."""
        self._graphs.always = True
        try:
            return super().test_step(*args)
        finally:
            self._graphs.always = False

    def router_loss(self, labels: Any, router_logits: Any, weights: Any = None) -> Any:
        """The weighted loss of the router on a batch; takes note of it and of its accuracy.

        Args:
            labels: class ids `[b]`, or probabilities `[b, num_classes]` as Mixup makes them.
            router_logits: `[b, e]`.
            weights: optional `[b]`, of the images, such as which of them are real.

        Returns:
            `superclass_loss_weight` times the (weighted) mean of `ops.superclass_loss`, a scalar; 0
            for a model without super-classes.

        Example:

        >>> from keras_vmoe import models
        >>> model = models.from_variant("mobile_vmoe_6x64", num_classes=2, num_experts=2)
        >>> float(model.router_loss([0], [[1.0, 0.0]]))
        0.0
        """
        if self.superclasses is None:
            return kops.zeros([])
        losses = ops.superclass_loss(labels, router_logits, self.superclasses)
        hits = ops.superclass_hits(labels, router_logits, self.superclasses)
        weights = kops.ones_like(losses) if weights is None else kops.cast(weights, losses.dtype)
        total = kops.sum(weights)
        loss, accuracy = (safe_divide(kops.sum(x * weights), total) for x in (losses, hits))
        for metric, value in zip(self._router_means, (accuracy, loss), strict=True):
            effects.emit_metric(metric, value, total)
        return self.arguments["superclass_loss_weight"] * loss

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss of the logits, and the weighted one of the router."""
        y, weights = (
            None if values is None else column_as_row(values) for values in (y, sample_weight)
        )
        logits, own = logits_and_router_loss(self, y_pred, y, weights)
        loss = super().compute_loss(x, y, logits, weights, training)
        if weights is not None:  # as Keras has it: a sum of weighted losses over the images
            own = own * kops.mean(kops.cast(weights, own.dtype))
        # Keras' word for the share of a replica.
        return loss + self._aggregate_additional_loss(own)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The compiled metrics, of the logits."""
        logits = y_pred["logits"] if isinstance(y_pred, Mapping) else y_pred
        return super().compute_metrics(x, y, logits, sample_weight)

    def dense_twin(self) -> MobileVMoE:
        """A fresh dense model that does the FLOPs of this one, routers left out.

        Its MLPs in place of the MoE layers are `num_selected` times wider.

        Example:

        >>> from keras_vmoe import models
        >>> model = models.from_variant("mobile_vmoe_6x64", num_selected=2)
        >>> model.count_params() > model.dense_twin().count_params()
        True
        """
        own = {**self.arguments, "routing": "dense", "superclasses": None}
        return MobileVMoE(**own, name=f"{self.name}_dense")


def logits_and_router_loss(
    model: keras.Model, outputs: Any, labels: Any, weights: Any = None
) -> tuple[Any, Any]:
    """What any model of images gives, as a training step takes it.

    Args:
        model: any model.
        outputs: what it gave, or what `with_router_outputs` of it did.
        labels: class ids `[b]`, or probabilities `[b, classes]`.
        weights: optional `[b]`, of the images.

    Returns:
        The outputs without those of a router, and the weighted loss of that, a scalar.
    """
    if not isinstance(outputs, Mapping) or ROUTER_LOGITS not in outputs:
        return outputs, kops.zeros([])
    return outputs["logits"], model.router_loss(labels, outputs[ROUTER_LOGITS], weights)


def routes_images(model: Any) -> bool:
    """Whether a model is one whose router sends whole images to experts, or a classifier by one.

    Args:
        model: any Keras model.

    Example:

    >>> from keras_vmoe import models
    >>> models.routes_images(models.from_variant("mobile_vmoe_6x64", num_classes=2))
    True
    """
    inner = model.model if isinstance(model, Classifier) else model
    return isinstance(inner, MobileVMoE) and inner.arguments["routing"] == "image"


def with_router_outputs(model: keras.Model) -> FunctionalModel:
    """A model with the same weights that tells how it routes.

    Args:
        model: a `MobileVMoE` that routes by image, or a `Classifier` by one.

    Returns:
        A functional model from images to `{"logits", "router_logits", "experts"}`: `[b, classes]`
        (`[b, d]` features of a model without head), `[b, e]`, and `[b, k]` int32, best first.

    Raises:
        ValueError: another model.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.from_variant("mobile_vmoe_6x64", image_size=32, num_selected=2)
    >>> outputs = models.with_router_outputs(model)(np.zeros((1, 32, 32, 3), "float32"))
    >>> tuple(outputs["experts"].shape)
    (1, 2)
    """
    require(
        routes_images(model),
        "model must be a MobileVMoE with routing='image', or a Classifier by one. "
        f"Received: a {type(model).__name__}",
    )
    if isinstance(model, Classifier):
        inner = with_router_outputs(model.model)
        images = keras.Input((None, None, model.input_shape[-1]), name="images", dtype="float32")
        size = model.model.input_shape[1:3]
        outputs = inner(preprocess(images, size, model.value_range))
    else:
        images, plan = model.inputs[0], model._graphs.plan
        outputs = {"logits": model.outputs[0], ROUTER_LOGITS: plan.logits, "experts": plan.expert}
    found = FunctionalModel(images, outputs, name=model.name)
    found.input_range, found.gives_logits = model.input_range, model.gives_logits
    return found
