"""Capacities as they are asked for, without rounding to a multiple."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_vmoe.analysis.records import moe_layers


@contextlib.contextmanager
def exact_capacity(model: keras.Model) -> Iterator[None]:
    """Lets a `with` block run a model without rounding slots up to a multiple.

    Accelerators like slots in fours, but in a small group that turns C = 0.1 and C = 0.2 into the
    same number. Only calls that are traced within the block see it; a compiled `predict` keeps
    the slots it was traced with.

    Args:
        model: a model that holds MoE layers; it is as before afterwards.

    Example:

    >>> from keras_vmoe import layers
    >>> moe = layers.MoEMLP(layers.TopKRouter(num_experts=8, num_selected=1), hidden_dim=4)
    >>> inputs = keras.Input((16, 4))
    >>> model = keras.Model(inputs, moe(inputs))
    >>> with exact_capacity(model):
    ...     moe.router.capacity(128, capacity_factor=0.1)
    2
    >>> moe.router.capacity(128, capacity_factor=0.1)
    4
    """
    routers = [layer.router for layer in moe_layers(model)]
    before = [router.capacity_multiple_of for router in routers]
    try:
        for router in routers:
            router.capacity_multiple_of = 1
        yield
    finally:
        for router, multiple in zip(routers, before, strict=True):
            router.capacity_multiple_of = multiple
