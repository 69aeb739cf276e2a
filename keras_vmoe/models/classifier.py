"""A model together with its preprocessing and the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_vmoe.layers import EnsembleAverage
from keras_vmoe.models.base import FunctionalModel
from keras_vmoe.ops.validation import require


def preprocess(images: Any, size: tuple[int, int], value_range: tuple[float, float]) -> Any:
    """Raw images as a model takes them: of its size, bilinearly, and in its range of values.

    Args:
        images: `[b, any height, any width, channels]`, 0 to 255.
        size: height and width of the result.
        value_range: what the pixel values 0 and 255 become.
    """
    low, high = value_range
    # Keras' Resizing notes training=True in the graph where it is not told otherwise, and the
    # model behind it would take that over: noise and dropout in inference.
    resize = keras.layers.Resizing(*size, dtype="float32", name="resize")
    rescale = keras.layers.Rescaling((high - low) / 255.0, low, dtype="float32", name="rescale")
    return rescale(resize(images, training=False))


def require_images(images: Any, channels: int) -> None:
    """Raises a `ValueError` unless these are images of so many channels, `[b, h, w, channels]`."""
    shape = tuple(images.shape)
    require(
        len(shape) == 4 and shape[-1] in (None, channels),
        f"images must have shape [images, height, width, {channels}]; a single image needs an "
        f"axis in front, images[None]. Received: images of shape {shape}",
    )


@keras.saving.register_keras_serializable(package="keras_vmoe")
class Classifier(FunctionalModel):
    """Classifies raw images: resizes, rescales, calls the model, knows the classes by name.

    Args:
        model: a model from images `[b, height, width, channels]` to logits `[b, classes]`, or of
            the members of an ensemble, `[b, m, classes]`, trained with softmax (for sigmoid,
            hand in `averaged_prediction(model, "sigmoid")`).
        class_names: a name per logit.
        value_range: what the pixel values 0 and 255 become.

    Call arguments:
        inputs: `[b, any height, any width, channels]`, 0 to 255, integers or floats.

    Returns:
        Logits `[b, classes]`; of an ensemble, those of the mean probability of its members.

    Raises:
        ValueError: not as many names as logits, or a range that is none.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> vit = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=1,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=2,
    ... )
    >>> classifier = models.Classifier(vit, ["cat", "dog"])
    >>> classifier.classify(np.zeros((1, 48, 64, 3), "uint8"))[0][0] in ("cat", "dog")
    True
    """

    def __init__(
        self,
        model: keras.Model,
        class_names: Sequence[str],
        value_range: tuple[float, float] = (-1.0, 1.0),
        **kwargs: Any,
    ) -> None:
        _, height, width, channels = model.input_shape
        names = [str(name) for name in class_names]
        require(
            len(names) == model.output_shape[-1],
            f"class_names must hold one name per logit, {model.output_shape[-1]}. "
            f"Received: {len(names)} names",
        )
        low, high = float(value_range[0]), float(value_range[1])
        require(low < high, f"value_range must be (low, high). Received: value_range={value_range}")
        images = keras.Input((None, None, channels), name="images", dtype="float32")
        logits = model(preprocess(images, (height, width), (low, high)))
        if len(logits.shape) == 3:
            logits = EnsembleAverage(name="ensemble_average")(logits)
        super().__init__(inputs=images, outputs=logits, **kwargs)
        self.model = model
        self.class_names = names
        self.value_range = (low, high)
        self.input_range, self.gives_logits = (0.0, 255.0), True

    def classify(self, images: Any) -> list[tuple[str, float]]:
        """The most likely class of each image, with its probability by the softmax of the logits.

        Args:
            images: `[b, height, width, channels]`, 0 to 255.

        Raises:
            ValueError: another rank or other channels.
        """
        images = np.asarray(images)
        require_images(images, self.model.input_shape[-1])
        logits = self.predict(images, verbose=0)
        probabilities = np.asarray(keras.ops.softmax(logits.astype("float32"), axis=-1))
        best = probabilities.argmax(axis=-1)
        return [
            (self.class_names[i], float(p[i])) for i, p in zip(best, probabilities, strict=True)
        ]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # Keras would take the rows of a single grey image for images.
        require_images(inputs, self.model.input_shape[-1])
        return super().call(inputs, training=training, mask=mask)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self.model),
            "class_names": list(self.class_names),
            "value_range": self.value_range,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Classifier:
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})
