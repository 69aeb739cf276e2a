"""Activations that Keras knows by no string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_vmoe")
def gelu_tanh(x: Any) -> Any:
    """GELU in its tanh approximation, the one that ViT and V-MoE were trained with.

    Keras' string `"gelu"` is the exact, erf form.

    Example:

    >>> from keras_vmoe import ops
    >>> round(float(ops.gelu_tanh(1.0)), 4)
    0.8412

    Reference: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
    """
    return keras.activations.gelu(x, approximate=True)


def get_activation(identifier: Any) -> Callable[[Any], Any]:
    """`keras.activations.get`, which also knows `"gelu_tanh"`."""
    if identifier == "gelu_tanh":
        return gelu_tanh
    return keras.activations.get(identifier)


def serialize_activation(activation: Callable[[Any], Any]) -> Any:
    """The inverse of `get_activation`, for `get_config`."""
    return "gelu_tanh" if activation is gelu_tanh else keras.activations.serialize(activation)
