"""The names that gin files may use. Importing this module registers them, once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from keras_vmoe import data, models
from keras_vmoe.trainers import errors, gin_config, optimizers, pairs
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.few_shot_evaluation import FewShot
from keras_vmoe.trainers.pair_evaluation import Retrieval, ZeroShot
from keras_vmoe.trainers.superclass_source import superclasses


def factory(target: Callable[..., Any], **defaults: Any) -> Callable[..., Any]:
    """Returns a plain function that calls a class or function, with the parameters of its own.

    Gin changes a class that it is given, which breaks Keras 3 classes; it leaves a function
    alone, and the signature lets it refuse a misspelt parameter.

    Args:
        target: a class, a class method or a function.
        **defaults: other defaults for some of its parameters.
    """
    parameters = inspect.signature(target).parameters.values()
    if inspect.isclass(target):
        # Keras classes take any keyword, and refuse the unknown ones only when they are called.
        parameters = [p for p in parameters if p.kind is not p.VAR_KEYWORD]

    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in parameters]

    def make(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **{**defaults, **kwargs})

    make.__name__ = make.__qualname__ = target.__name__
    # Gin joins a module to the name, and could not tell our `constant` from its own.
    make.__module__ = None
    make.__doc__ = target.__doc__
    make.__signature__ = inspect.Signature(parameters)
    return make


def train_config() -> TrainConfig:
    """Returns the run that the parsed gin files describe.

    Raises:
        ValueError: if a parameter has a wrong value, or one that has no default is not bound.
    """
    try:
        return gin_config.load().get_configurable("train")()
    except TypeError as error:
        if "required" not in str(error):  # a value of the wrong type, not one that is missing
            raise ValueError(errors.one_line(error)) from error
        raise ValueError(
            f"the gin file binds no {_missing(error)}; a run binds train.model, train.optimizer, "
            "train.dataset and train.image_size, as runs/quickstart.gin does"
        ) from error


def _missing(error: TypeError) -> str:
    names = re.findall(r"'(\w+)'", str(error).splitlines()[0])
    return " and ".join(f"train.{name}" for name in names) or "train"


# Every name that gin files may use, with the parameters that it has.
PARAMETERS: dict[str, tuple[str, ...]] = {}


def _register(made: Callable[..., Any], name: str) -> Callable[..., Any]:
    PARAMETERS[name] = tuple(inspect.signature(made).parameters)
    return gin_config.load().external_configurable(made, name)


def _register_all() -> None:
    _register(factory(TrainConfig), "train")
    _register(factory(models.VMoE), "VMoE")
    _register(factory(models.EfficientEnsemble), "EfficientEnsemble")
    _register(factory(models.ViT), "ViT")
    _register(factory(models.MobileVMoE), "MobileVMoE")
    _register(factory(models.AsViT), "AsViT")
    _register(factory(models.LIMoE), "LIMoE")
    _register(factory(models.TwoTower), "TwoTower")
    _register(factory(models.RetinaNet), "RetinaNet")
    _register(factory(models.from_variant), "from_variant")
    _register(factory(data.load), "dataset")
    _register(factory(pairs.load), "pairs")
    _register(factory(data.load_boxes), "boxes")
    _register(factory(superclasses), "superclasses")
    for part in (
        *(data.InceptionCrop, data.CentralCrop, data.ScaleJitter),
        *(data.Augment, data.Flip, data.RandAugment, data.ColorJitter, data.RandomErasing),
        *(data.Mixup, data.CutMix),
    ):
        _register(factory(part), part.__name__)
    for measurement in (FewShot, Retrieval, ZeroShot):
        _register(factory(measurement), measurement.__name__)
    for schedule in (optimizers.linear, optimizers.rsqrt, optimizers.constant):
        _register(factory(schedule), schedule.__name__)
    # As gin made it: of the bare function, the bindings of `cosine` would go unheard.
    cosine = _register(factory(optimizers.cosine), "cosine")
    for optimizer in (optimizers.adamw, optimizers.sgd, optimizers.adafactor):
        _register(factory(optimizer, schedule=cosine), optimizer.__name__)


_register_all()
