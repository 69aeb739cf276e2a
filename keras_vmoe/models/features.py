"""A model without its head: what transfer takes from it."""

from __future__ import annotations

from typing import Any

import keras

from keras_vmoe.layers import EnsembleAverage
from keras_vmoe.models.base import FunctionalModel
from keras_vmoe.models.pairs import PairModel
from keras_vmoe.ops.validation import require

# A dense layer with another activation, such as the tanh of "pre_logits", is no head.
_HEAD_ACTIVATIONS = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.sigmoid,
)


def feature_extractor(model: keras.Model) -> FunctionalModel:
    """A model with the same weights that gives what the head of `model` is given.

    The features of a `ViT` or `VMoE` are its pooled tokens, after `pre_logits` where there is one.
    Those of an `EfficientEnsemble` are its members' side by side: a linear classifier of them adds
    up one of each member.

    Args:
        model: a functional or sequential model that ends in a dense head, by itself or in a model
            inside it; or a model of image-text pairs, whose image encoder gives the features. A
            `Classifier` keeps its preprocessing, so its features are those of raw images;
            `feature_extractor(classifier.model)` takes images in [-1, 1].

    Returns:
        An uncompiled model of the inputs of `model`, with outputs `[b, d]`, or `[b, m * d]` of an
        ensemble of m members. It shares its layers with `model`, so it follows when that is
        trained.

    Raises:
        ValueError: a model that has no graph, several outputs, or no dense head at its end.

    Example:

    >>> from keras_vmoe import models
    >>> vit = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=1,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ... )
    >>> models.feature_extractor(vit).output_shape
    (None, 16)

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 3.4 (few-shot transfer).
    """
    if isinstance(model, PairModel):
        return model.image_encoder
    require(
        isinstance(model, keras.Model) and bool(getattr(model, "outputs", None)),
        "model must be a built functional or sequential Keras model. "
        f"Received: {getattr(model, 'name', model)!r} of class {type(model).__name__}",
    )
    require(
        len(model.outputs) == 1,
        f"model must have one output, of logits. {model.name!r} has {len(model.outputs)}",
    )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    features = _head_input(model, model.outputs[0])
    if len(features.shape) == 3:  # members of an ensemble
        features = keras.layers.Flatten(name="members_side_by_side")(features)
    extractor = FunctionalModel(inputs, features, name=f"{model.name}_features")
    extractor.input_range = getattr(model, "input_range", None)
    return extractor


def _head_input(model: keras.Model, output: Any) -> Any:
    """The symbolic input of the dense layer that an output of a model comes from."""
    # Keras keeps where a symbolic tensor came from under this private name.
    history = output._keras_history
    layer, node = history.operation, history.operation._inbound_nodes[history.node_index]
    if isinstance(layer, EnsembleAverage):
        return _head_input(model, node.input_tensors[0])
    if isinstance(layer, keras.Model):
        return feature_extractor(layer)(*node.arguments.args, **node.arguments.kwargs)
    activation = getattr(layer, "activation", None)
    with_activation = f" with activation {getattr(activation, '__name__', activation)!r}"
    require(
        isinstance(layer, keras.layers.Dense) and activation in _HEAD_ACTIVATIONS,
        f"model must end in a dense head. {model.name!r} ends in {layer.name!r}, a "
        f"{type(layer).__name__}{with_activation if activation else ''}; a model without a head "
        "gives features as it is",
    )
    return node.input_tensors[0]
