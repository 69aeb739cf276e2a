"""The model that a run's config makes, of the kind that its data wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_vmoe.models.base import UnknownArgument


def fresh_model(
    make: Callable[..., keras.Model], kind: type, what: str, take: str, **arguments: Any
) -> Any:
    """Calls `train.model`, and refuses what makes a model of another kind.

    Args:
        make: `train.model`.
        kind: the class that the data wants.
        what: the data, in words, such as "'digit_scenes' holds images with boxes".
        take: the names of such models in gin.
        **arguments: what the model is called with.

    Raises:
        ValueError: a model of another kind.

    Example:
        >>> from keras_vmoe import models
        >>> fresh_model(models.ViT, models.LIMoE, "'pairs' holds texts", "@LIMoE", eos_id=1)
        Traceback (most recent call last):
        ValueError: train.model makes a ViT, but 'pairs' holds texts: take @LIMoE
    """
    try:
        model = make(**arguments)
        made = type(model)
    except UnknownArgument as error:
        if issubclass(error.cls, kind):
            raise
        made = error.cls
    if not issubclass(made, kind):
        raise ValueError(f"train.model makes a {made.__name__}, but {what}: take {take}")
    return model
