"""Functions with gradients of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.custom_gradient`, of which no tape records what the function does inside.

    A tape would keep every intermediate tensor of `tf.custom_gradient` alive, though it never asks
    for their gradients.

    Args:
        function: gives its result and the function of its backward pass.
    """

    @functools.wraps(function)
    def unrecorded(*tensors: tf.Tensor) -> Any:
        return function(*(tf.stop_gradient(x) for x in tensors))

    return tf.custom_gradient(unrecorded)
