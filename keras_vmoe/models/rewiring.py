"""The same weights in another graph: other routing, or an image mask as a second input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_vmoe.layers import EncoderBlock, ImageRouter, MoEMLP
from keras_vmoe.models.base import rewired
from keras_vmoe.models.classifier import Classifier
from keras_vmoe.ops.validation import require

Call = Callable[..., Any]


def _routing(layer: Any) -> MoEMLP | ImageRouter | None:
    """What takes the further arguments in a layer, if it is called with them."""
    if isinstance(layer, EncoderBlock) and layer.is_sparse:
        return layer.mlp
    return layer if isinstance(layer, MoEMLP | ImageRouter) else None


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "_run_through_graph")
    )


def _functional(model: keras.Model) -> keras.Model:
    """The functional form of a functional or sequential model."""
    if isinstance(model, keras.Sequential):
        require(model.built, f"model {model.name!r} must be built before its routing can change")
        return keras.Model(model.inputs, model.outputs, name=model.name)
    require(
        _is_graph(model),
        f"model must be a functional or sequential Keras model, whose layers can be called "
        f"anew. Received: {type(model).__name__} {model.name!r}",
    )
    return model


def fresh_inputs(model: keras.Model) -> Any:
    """New symbolic inputs like those of a model."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), model.input
    )


def run_graph(model: keras.Model, inputs: Any, call: Call) -> Any:
    """The outputs of a functional or sequential model whose layers are called anew.

    Args:
        model: the model.
        inputs: new ones, symbolic or not.
        call: `call(layer, *args, **kwargs)` gives the outputs of a layer, or of an operation.
    """
    # The one private name of Keras that is leant on here; tests/models/test_rewiring.py fails
    # loudly when it changes.
    return _functional(model)._run_through_graph(inputs, call_fn=call)


def _rerun(model: keras.Model, inputs: Any, arguments: dict[str, Any]) -> tuple[Any, int]:
    """Calls a model's layers on new inputs, sparse ones with further arguments."""
    count = 0

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if not isinstance(layer, keras.layers.Layer):  # an operation of keras.ops
            return layer(*args, **kwargs)
        if (routing := _routing(layer)) is not None:
            count += 1
            routing.check_routing(**{n: v for n, v in arguments.items() if n != "mask"})
            return layer(*args, **{**kwargs, **_with_both_masks(arguments, kwargs)})
        if _is_graph(layer) and any(map(_routing, layer._flatten_layers())):
            outputs, inner = _rerun(_functional(layer), args[0], arguments)
            count += inner
            return outputs
        require(
            not any(isinstance(x, MoEMLP | ImageRouter) for x in layer._flatten_layers()),
            f"layer {layer.name!r} ({type(layer).__name__}) holds a MoE layer that cannot be "
            "reached from the graph. Build it of functional layers, or let its own call take the "
            "arguments and hand them on",
        )
        return layer(*args, **kwargs)

    outputs = run_graph(model, inputs, call)
    require(count > 0, f"model must hold at least one MoE layer. {model.name!r} holds none")
    return outputs, count


def _with_both_masks(arguments: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments, whose mask of images leaves out what a mask of tokens left out already."""
    images, tokens = arguments.get("mask"), kwargs.get("mask")
    if images is None or tokens is None:
        return arguments
    return {**arguments, "mask": keras.ops.logical_and(keras.ops.expand_dims(images, 1), tokens)}


def with_routing(
    model: keras.Model,
    num_selected: int | None = None,
    capacity_factor: float | None = None,
    batch_priority: bool | None = None,
) -> keras.Model:
    """A model with the same weights that routes otherwise.

    Setting an attribute of a trained model would do nothing: a compiled `predict` keeps its trace.

    Args:
        model: a functional or sequential model that holds MoE layers, at any depth.
        num_selected: choices per token (k).
        capacity_factor: slots per assignment (C), in training and out of it.
        batch_priority: whether tokens are served by the size of their gates.

    Returns:
        A new, uncompiled functional model; a `Classifier` stays one, a model of image-text pairs
        gives the same outputs but has no encoders of its own: `with_routing(model.text_encoder)`.
        It shares its layers with `model`: training either trains both.

    Raises:
        ValueError: nothing to change, a model without MoE layers, or an argument that a router of
            the model does not take.

    Example:

    >>> import numpy as np, keras_vmoe
    >>> from keras_vmoe import models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ... )
    >>> cheap = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=0.5)
    >>> cheap.count_params() == model.count_params()
    True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4.3.
    """
    given = {
        "num_selected": num_selected,
        "capacity_factor": capacity_factor,
        "batch_priority": batch_priority,
    }
    given = {name: value for name, value in given.items() if value is not None}
    require(
        len(given) > 0,
        "give at least one of num_selected, capacity_factor and batch_priority. Received none",
    )
    if isinstance(model, Classifier):
        return Classifier(with_routing(model.model, **given), model.class_names, model.value_range)
    model = _functional(model)
    inputs = fresh_inputs(model)
    outputs, _ = _rerun(model, inputs, given)
    return rewired(model, inputs, outputs)


def with_image_mask(model: keras.Model) -> keras.Model:
    """A model with the same weights and a second input that says which images are real.

    Padded images then take no expert's slot and count in no loss and no metric.

    Args:
        model: a functional model with one input of images `[b, ...]`, or a dict of inputs, that
            holds MoE layers. Of image-text pairs the mask is of pairs.

    Returns:
        A functional model of `{"images": [b, ...], "mask": [b] bool}`, or of the model's dict with
        `"mask"` besides.

    Raises:
        ValueError: a model without MoE layers, or with several inputs that are no dict.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ... )
    >>> masked = models.with_image_mask(model)
    >>> sorted(masked.input)
    ['images', 'mask']
    """
    model = _functional(model)
    named = isinstance(model.input, dict)
    require(
        named or len(model.inputs) == 1,
        f"model must have one input, of images, or a dict of inputs. {model.name!r} has "
        f"{len(model.inputs)}",
    )
    require(
        not named or "mask" not in model.input,
        f"model must not have an input 'mask' yet. {model.name!r} has {len(model.inputs)} inputs, "
        "and that is one of them",
    )
    own = model.input if named else {"images": model.inputs[0]}
    fresh = {
        name: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=name) for name, x in own.items()
    }
    batch = next(iter(own.values())).shape[:1]
    mask = keras.Input(batch_shape=batch, dtype="bool", name="mask")
    outputs, _ = _rerun(model, fresh if named else fresh["images"], {"mask": mask})
    return rewired(model, {**fresh, "mask": mask}, outputs)
