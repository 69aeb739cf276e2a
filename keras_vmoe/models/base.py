"""What all vision models share: their config, their variants, their export."""

from __future__ import annotations

from typing import Any

import keras

from keras_vmoe import layers


def resolve_policy(dtype: Any) -> keras.DTypePolicy:
    """The dtype policy of a model's layers: the given one, else the global one."""
    return keras.dtype_policies.get(dtype or keras.config.dtype_policy())


class VisionModel(keras.Model):
    """Base class of the functional vision models: keeps its arguments as its config."""

    def __init__(self, config: dict[str, Any], graph: tuple[Any, Any], **kwargs: Any) -> None:
        super().__init__(inputs=graph[0], outputs=graph[1], **kwargs)
        self.arguments = dict(config)

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
        policy = resolve_policy(config["dtype"])
        config["dtype"] = keras.saving.serialize_keras_object(policy)
        for name in ("activation", "head_kernel_initializer"):
            if not isinstance(config[name], str):
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

    def export(self, *args: Any, **kwargs: Any) -> None:
        """`keras.Model.export`, with routing metrics left out of the exported graph."""
        with layers.routing_metrics(False):
            super().export(*args, **kwargs)
