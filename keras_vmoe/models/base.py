"""What all vision models share: their config, their variants, their export."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.layers import effects

# What any Keras model takes beside its own arguments.
_OF_ANY_MODEL = {"inputs", "outputs", "name", "trainable"}


def resolve_policy(dtype: Any) -> keras.DTypePolicy:
    """The dtype policy of a model's layers: the given one, else the global one."""
    return keras.dtype_policies.get(dtype or keras.config.dtype_policy())


def argument_names(cls: type) -> list[str]:
    """The names of a model class's arguments."""
    return [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "kwargs")]


class UnknownArgument(ValueError):
    """An argument that a model class does not have.

    Args:
        cls: the class.
        name: of the argument.
        value: that it was given.

    Attributes:
        cls: the class.
    """

    def __init__(self, cls: type, name: str, value: Any) -> None:
        known = argument_names(cls)
        close = difflib.get_close_matches(name, known, n=1)
        super().__init__(
            f"{cls.__name__} has no argument {name!r}. Received: {name}={value!r}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + f"It has: {', '.join(known)}"
        )
        self.cls = cls


def require_known(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raises `UnknownArgument`, which lists the arguments of a model class, where it lacks one.

    Args:
        cls: a model class.
        arguments: name to value, as they were given.
    """
    known = argument_names(cls)
    for name, value in arguments.items():
        if name not in known:
            raise UnknownArgument(cls, name, value)


def column_as_row(values: Any) -> Any:
    """`[b, 1]`, as `fit` may hand class ids and weights over, as `[b]`; others as they are."""
    values = keras.ops.convert_to_tensor(values)
    is_column = len(values.shape) == 2 and values.shape[-1] == 1
    return keras.ops.squeeze(values, axis=-1) if is_column else values


@keras.saving.register_keras_serializable(package="keras_vmoe")
class FunctionalModel(keras.Model):
    """A functional model that may hold MoE layers; takes care of their metrics.

    An exported graph updates no metric. In `fit` and `evaluate` on JAX, whose steps are pure
    functions, the metrics that layers update while they are called are carried out of the step; a
    plain `keras.Model` goes without them there. (On TensorFlow it has them too.)

    Args:
        inputs, outputs, name: as of a functional `keras.Model`.

    Attributes:
        input_range: what the images have for black and white; `None` where that is not known.
        gives_logits: whether the output is known to be logits of classes.
    """

    input_range: tuple[float, float] | None = None
    gives_logits: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Keras swallows what it does not know, and so a misspelt argument. Looked at here, before
        # a graph is built.
        require_known(cls, {n: v for n, v in kwargs.items() if n not in _OF_ANY_MODEL})
        return super().__new__(cls, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.input_range is not None:
            config["input_range"] = self.input_range
        if self.gives_logits:
            config["gives_logits"] = True
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> FunctionalModel:
        config = dict(config)
        input_range = config.pop("input_range", None)
        gives_logits = config.pop("gives_logits", False)
        model = super().from_config(config, custom_objects)
        if input_range is not None:
            model.input_range = tuple(input_range)
        model.gives_logits = gives_logits
        return model

    def export(self, *args: Any, **kwargs: Any) -> None:
        """`keras.Model.export`, with routing metrics left out of the exported graph."""
        with layers.routing_metrics(False):
            super().export(*args, **kwargs)

    def compute_loss_and_updates(
        self,
        trainable_variables: Any,
        non_trainable_variables: Any,
        metrics_variables: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Called by Keras' JAX trainer: the loss, and the states after this step."""
        with effects.collect_metrics() as updates:
            loss, auxiliary = super().compute_loss_and_updates(
                trainable_variables, non_trainable_variables, metrics_variables, *args, **kwargs
            )
        *others, metrics_variables = auxiliary
        mapping = list(zip(self.metrics_variables, metrics_variables, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            for metric, value, weights in updates:
                metric.update_state(value, weights)
        metrics_variables = [scope.get_current_value(v) for v in self.metrics_variables]
        return loss, (*others, metrics_variables)


def rewired(model: keras.Model, inputs: Any, outputs: Any) -> FunctionalModel:
    """A model of another graph of the same layers, with the name and the facts of `model`."""
    found = FunctionalModel(inputs, outputs, name=model.name)
    found.input_range = getattr(model, "input_range", None)
    found.gives_logits = getattr(model, "gives_logits", False)
    return found


class VisionModel(FunctionalModel):
    """Base class of the functional vision models: keeps its arguments as its config."""

    def __init__(self, config: dict[str, Any], graph: tuple[Any, Any], **kwargs: Any) -> None:
        name = kwargs.pop("name", None) or type(self).__name__.lower()
        super().__init__(inputs=graph[0], outputs=graph[1], name=name, **kwargs)
        # The policy that the layers were made with, whatever the global one is later.
        self.arguments = dict(config, dtype=resolve_policy(config["dtype"]))
        self.input_range = (-1.0, 1.0)
        self.gives_logits = config.get("num_classes") is not None

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> VisionModel:
        """Builds a preset of this class.

        Args:
            variant: an id of `keras_vmoe.list_variants()`.
            **overrides: any argument of the class.

        Raises:
            ValueError: an unknown id, an id of another class, or an argument that the class does
                not have; the message lists what there is.
        """
        from keras_vmoe.models.variants import variant_arguments

        return cls(**variant_arguments(variant, cls, overrides))

    def get_config(self) -> dict[str, Any]:
        config = dict(self.arguments)
        config["dtype"] = keras.saving.serialize_keras_object(config["dtype"])
        for name in ("activation", "head_kernel_initializer"):
            if not isinstance(config.get(name, ""), str):
                config[name] = keras.saving.serialize_keras_object(config[name])
        return {**config, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VisionModel:
        config = {
            name: keras.saving.deserialize_keras_object(value, custom_objects)
            if isinstance(value, dict)
            else value
            for name, value in config.items()
        }
        return cls(**config)
