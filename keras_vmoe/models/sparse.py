"""The MoE layers of a model, and their capacity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_vmoe.layers import ImageMoEMLP, MoEMLP


def moe_layers(model: keras.Model) -> list[MoEMLP]:
    """The layers of a model that send tokens to experts, at any depth, each once, in its order.

    Those of a `MobileVMoE`, which send whole images, are not among them.

    Args:
        model: any Keras model.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=4,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_experts=4,
    ... )
    >>> [layer.name for layer in models.moe_layers(model)]
    ['encoder_block_1_moe', 'encoder_block_3_moe']
    """
    return _held(model, MoEMLP)


def image_moe_layers(model: keras.Model) -> list[ImageMoEMLP]:
    """The layers of a model that send whole images to experts, as `moe_layers`.

    Args:
        model: any Keras model.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.from_variant("mobile_vmoe_6x64", num_classes=2)
    >>> [layer.name for layer in models.image_moe_layers(model)]
    ['encoder_block_4_moe', 'encoder_block_5_moe']
    """
    return _held(model, ImageMoEMLP)


def _held(model: keras.Model, kind: type) -> list[Any]:
    found: dict[int, Any] = {}

    def look_into(layer: keras.layers.Layer) -> None:
        for inner in layer._flatten_layers(recursive=False, include_self=False):
            if isinstance(inner, kind):
                found.setdefault(id(inner), inner)
            else:
                look_into(inner)

    look_into(model)
    return list(found.values())


def is_sparse(model: keras.Model) -> bool:
    """Whether a model holds a MoE layer, of tokens or of whole images, at any depth.

    Args:
        model: any Keras model.

    Example:

    >>> from keras_vmoe import models
    >>> models.is_sparse(models.from_variant("vit_ti16", image_size=32, num_layers=1))
    False
    """
    return bool(_held(model, MoEMLP | ImageMoEMLP))


def exact_capacity(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Lets a `with` block run a model without rounding slots up to a multiple.

    Accelerators like slots in fours, but in a small group that turns C = 0.1 and C = 0.2 into the
    same number. Only calls that are traced within the block see it; a compiled `predict` keeps
    the slots it was traced with.

    Args:
        model: a model that holds MoE layers; it is as before afterwards.

    Example:

    >>> from keras_vmoe import layers, models
    >>> moe = layers.MoEMLP(layers.TopKRouter(num_experts=8, num_selected=1), hidden_dim=4)
    >>> inputs = keras.Input((16, 4))
    >>> model = keras.Model(inputs, moe(inputs))
    >>> with models.exact_capacity(model):
    ...     moe.router.capacity(128, capacity_factor=0.1)
    2
    >>> moe.router.capacity(128, capacity_factor=0.1)
    4
    """
    return with_attribute(
        "capacity_multiple_of", [(layer.router, 1) for layer in moe_layers(model)]
    )


@contextlib.contextmanager
def with_attribute(name: str, values: Sequence[tuple[keras.layers.Layer, Any]]) -> Iterator[None]:
    """Lets layers have other values of an attribute in a `with` block.

    Args:
        name: of the attribute.
        values: layers, and the value of each.
    """
    before = [(layer, getattr(layer, name)) for layer, _ in values]
    try:
        for layer, value in values:
            setattr(layer, name, value)
        yield
    finally:
        for layer, value in before:
            setattr(layer, name, value)
