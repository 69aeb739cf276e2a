"""`profile`: parameters and FLOPs of a model in closed form."""

from __future__ import annotations

from typing import Any

import keras

from keras_vmoe.analysis import as_vit_rows as as_vit_rows  # registers As-ViT and its layers
from keras_vmoe.analysis import keras_rows as keras_rows  # registers Keras' layers
from keras_vmoe.analysis.layer_rows import graph_rows
from keras_vmoe.analysis.model_rows import closed_form, has_closed_form
from keras_vmoe.analysis.routing_costs import Counting
from keras_vmoe.analysis.rows import Profile
from keras_vmoe.models.limoe import MODALITIES
from keras_vmoe.models.pairs import PairModel
from keras_vmoe.models.variants import merge_arguments, variant
from keras_vmoe.ops.validation import require, require_choice


def profile(
    model: str | type | keras.Model,
    *,
    training: bool = False,
    whole_slots: bool = False,
    modality: str | None = None,
    **overrides: Any,
) -> Profile:
    """Counts the parameters and the multiply-accumulates (MACs) of a forward pass of one image.

    Of a model of images and texts, such as LIMoE, it is a forward pass of one pair.

    An id or a class is counted from its arguments: nothing is built or allocated, whatever the
    size. A model that is built is counted layer by layer, calls with other routing included.

    What is counted:

    - MACs of all linear layers, convolutions and attention; not of biases, norms, activations,
      softmaxes and the movement of tokens to experts. `flops` is twice the MACs.
    - The experts of a top-k layer as `k * C` dense MLPs, which is all their buffers, filled or
      not; of expert choice as C. C is `capacity_factor` as it is given, because its rounding to
      whole slots depends on the group; `whole_slots=True` counts the slots of full groups.
    - Soft MoE as experts on `e * c` slots for `images_per_group` images, and three products of
      tokens and slots: scores, dispatch and combine.
    - Of a LIMoE whose capacity drops nothing, which is how it evaluates, the k choices of each
      token: the slots are nearly all empty. `whole_slots=True` counts them all.
    - `activated_params`, what one token uses: everything but the experts that it does not choose.
      Of e experts these are e - k for top-k, e - C in the mean for expert choice, none for soft
      routing. Tables of text and projections count whole, whichever modality the token is of.

    Args:
        model: an id of `keras_vmoe.list_variants()`; a model class; or a built model, any
            functional, sequential or other Keras model.
        training: count the capacity factor of training instead of that of evaluation.
        whole_slots: count slots rounded as the routers round them, instead of `capacity_factor`.
        modality: `"image"` or `"text"`: of a model of both, what `encode_image` or `encode_text`
            computes and uses, for one image or one text; `None` is a pair.
        **overrides: arguments of the model's class; only for an id, a class, or a model of a class
            that is profiled from its arguments (`ViT`, `VMoE`).

    Returns:
        A `Profile`. Layers that are not known count their parameters, and say in `.notes` that
        their MACs are missing.

    Raises:
        ValueError: an unknown id, an argument that the class does not have or would refuse, or
            something that is no model.

    Example:

    >>> from keras_vmoe import analysis
    >>> every_2 = analysis.profile("vmoe_h14", num_classes=18291, representation_size=1280)
    >>> every_2.params
    7160836211
    >>> dense = analysis.profile("vit_h14", num_classes=18291, representation_size=1280)
    >>> round(every_2.macs / dense.macs, 3)
    1.355
    >>> pair = analysis.profile("limoe_h14")
    >>> text = analysis.profile("limoe_h14", modality="text")
    >>> pair.unit, pair.params, round(text.macs / pair.macs, 3)
    ('pair', 5553772801, 0.057)

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2 and tables 1 and 8.
    """
    counting = Counting(training, whole_slots, modality)
    if isinstance(model, str):
        cls, arguments = variant(model)
        return _from_arguments(cls, {"name": model, **arguments}, overrides, counting)
    if isinstance(model, type):
        require(
            has_closed_form(model),
            f"model must be of a class that is profiled from its arguments, such as ViT or VMoE. "
            f"Received: {model.__name__}; profile a built model of it",
        )
        return _from_arguments(model, {}, overrides, counting)
    require(
        isinstance(model, keras.Model),
        "model must be an id of keras_vmoe.list_variants(), a model class or a Keras model. "
        f"Received: {model!r}",
    )
    if has_closed_form(type(model)):
        arguments = {**model.arguments, "name": model.name}
        return _from_arguments(type(model), arguments, overrides, counting)
    require(
        not overrides,
        f"arguments can be overridden for an id or a model of a class that is profiled from its "
        f"arguments, such as ViT or VMoE. Received: {', '.join(overrides)} for {model.name!r} of "
        f"class {type(model).__name__}",
    )
    _require_modality(type(model), modality)
    require(model.built, f"model {model.name!r} must be built: call it on one batch first")
    return Profile(model.name, graph_rows(model, counting), _unit(model))


def _from_arguments(
    cls: type, arguments: dict[str, Any], overrides: dict[str, Any], counting: Counting
) -> Profile:
    arguments = merge_arguments(cls, arguments, overrides)
    name = arguments.get("name") or cls.__name__
    _require_modality(cls, counting.modality)
    unit = counting.modality or ("pair" if issubclass(cls, PairModel) else "image")
    return Profile(name, closed_form(cls, arguments, counting), unit)


def _require_modality(cls: type, modality: str | None) -> None:
    if modality is None:
        return
    require(
        issubclass(cls, PairModel),
        f"modality is of models of images and texts, such as LIMoE. Received: "
        f"modality={modality!r} for a {cls.__name__}; leave it out",
    )
    require_choice("modality", modality, MODALITIES)


def _unit(model: keras.Model) -> str:
    """What one row of the inputs of a built model is."""
    inputs = getattr(model, "inputs", None) or []
    texts = any(len(x.shape) == 2 and "int" in x.dtype for x in inputs)
    if not texts:
        return "image"
    return "pair" if any(len(x.shape) == 4 for x in inputs) else "text"
