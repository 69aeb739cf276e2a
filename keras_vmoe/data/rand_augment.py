"""RandAugment, drawn from numbers that are handed in."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow as tf

from keras_vmoe.data.augmentation import check_channels, map_images, rectangle
from keras_vmoe.data.crops import to_bytes

# A magnitude of 10 is the whole scale; recipes go up to twice of it.
_SCALE, _LARGEST = 10, 20
# What comes in from outside an image, and what is cut out of it.
_GREY = 128
_DRAWS_PER_LAYER = 3

# Takes an RGB image in bytes and two uniform numbers: a sign or a row, and a column.
Operation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class RandAugment:
    """A few operations after each other, each drawn uniformly out of sixteen.

    They are those of EfficientNet's `distort_image_with_randaugment`, at its strengths: rotation
    to 30 degrees, shear to 0.3, translation to 100 and cutout to 40 pixels of 224, factors of
    colour, contrast, brightness and sharpness from 0.1 to 1.9, posterizing to 1 to 4 bits,
    solarizing from 0 to 256, adding 0 to 110; a magnitude of 10 is the upper end, 20 goes as far
    again. Signs are drawn; holes are grey. Not all grow stronger: posterizing keeps more bits and
    solarizing inverts less, so at 10 and above solarizing leaves an image alone. At 0 rotation,
    shear, translation, cutout and addition do nothing, the other operations act.

    The operations are those of `official.vision.ops.augment`, whose own RandAugment draws from a
    global state and reflects images at their borders.

    Args:
        layers: how many operations an image takes.
        magnitude: their strength, 0 to 20.
        translate: largest translation at magnitude 10, as a share of the image's side.
        cutout: half the side of the square cut out at magnitude 10, as a share of the image's.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> images = tf.zeros((2, 16, 16, 3), tf.uint8)
        >>> augment = RandAugment(layers=2, magnitude=10)
        >>> augment.num_draws
        6

    Reference:
        Cubuk et al., "RandAugment", 2019, section 3 (https://arxiv.org/abs/1909.13719).
    """

    layers: int = 2
    magnitude: float = 10
    translate: float = 100 / 224
    cutout: float = 40 / 224

    per_image: ClassVar[bool] = True

    def __post_init__(self):
        if self.layers != int(self.layers) or self.layers < 1:
            raise ValueError(f"layers={self.layers!r}: expected a whole number above 0.")
        if not 0 <= self.magnitude <= _LARGEST:
            raise ValueError(
                f"magnitude={self.magnitude!r}: expected 0 to {_LARGEST}; {_SCALE} is the whole "
                "scale of the paper."
            )
        for name in ("translate", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a share from 0 to 1.")

    @property
    def num_draws(self) -> int:
        """Uniform numbers that one image takes: operation and two others, for each layer."""
        return _DRAWS_PER_LAYER * self.layers

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Changes a batch.

        Args:
            images: uint8 `[b, height, width, 1 or 3]`; floats from 0 to 255 are rounded to bytes
                before. Grey images are worked on as coloured ones and stay grey.
            draws: float32 `[b, num_draws]`, uniform in [0, 1).

        Returns:
            uint8, of the same shape.

        Raises:
            ImportError: if tf-models-official is not installed.
            ValueError: if the images have another number of channels.
        """
        check_channels(self, images)
        images = to_bytes(images)
        is_grey = images.shape[-1] == 1
        if is_grey:
            images = tf.repeat(images, 3, axis=-1)
        operations = list(self.operations(images.shape[1], images.shape[2]).values())

        def change(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
            for layer in tf.unstack(tf.reshape(numbers, (self.layers, _DRAWS_PER_LAYER))):
                image = _apply_one(operations, image, *tf.unstack(layer))
            return image

        images = map_images(change, images, draws)
        return images[..., :1] if is_grey else images

    def operations(self, height: int, width: int) -> dict[str, Operation]:
        """Returns the sixteen operations at this strength, in the order of the draws.

        Args:
            height: of the images that they will be given.
            width: of the images.
        """
        official = _official_operations()
        share = self.magnitude / _SCALE
        factor = share * 1.8 + 0.1
        moved_x, moved_y = (share * self.translate * side for side in (width, height))
        half = round(share * self.cutout * min(height, width))
        bits, threshold = max(int(share * 4), 1), int(share * 256)
        shear = share * 0.3
        return {
            "AutoContrast": _ignore_draws(official.autocontrast),
            "Equalize": _ignore_draws(official.equalize),
            "Invert": _ignore_draws(official.invert),
            "Rotate": _geometric(official, lambda s: _rotation(s * share * 30, height, width)),
            "Posterize": _ignore_draws(lambda image: official.posterize(image, bits)),
            "Solarize": _ignore_draws(_solarize(official, threshold)),
            "Color": _ignore_draws(lambda image: official.color(image, factor)),
            "Contrast": _ignore_draws(lambda image: official.contrast(image, factor)),
            "Brightness": _ignore_draws(lambda image: official.brightness(image, factor)),
            "Sharpness": _ignore_draws(lambda image: official.sharpness(image, factor)),
            "ShearX": _geometric(official, lambda s: [1.0, s * shear, 0.0, 0.0, 1.0, 0.0]),
            "ShearY": _geometric(official, lambda s: [1.0, 0.0, 0.0, s * shear, 1.0, 0.0]),
            "TranslateX": _geometric(official, lambda s: [1.0, 0.0, s * moved_x, 0.0, 1.0, 0.0]),
            "TranslateY": _geometric(official, lambda s: [1.0, 0.0, 0.0, 0.0, 1.0, s * moved_y]),
            "Cutout": _cutout(height, width, half),
            "SolarizeAdd": _ignore_draws(
                lambda image: official.solarize_add(image, int(share * 110))
            ),
        }


def _official_operations() -> Any:
    try:
        from official.vision.ops import augment
    except ImportError as error:
        raise ImportError(
            "RandAugment needs tf-models-official: pip install 'keras_vmoe[train]'."
        ) from error
    return augment


def _apply_one(
    operations: list[Operation], image: tf.Tensor, which: tf.Tensor, a: tf.Tensor, b: tf.Tensor
) -> tf.Tensor:
    chosen = tf.cast(which * len(operations), tf.int32)
    branches = [functools.partial(one, image, a, b) for one in operations]
    return tf.ensure_shape(tf.switch_case(chosen, branches), image.shape)


def _ignore_draws(change: Callable[[tf.Tensor], tf.Tensor]) -> Operation:
    return lambda image, a, b: change(image)


def _geometric(official: Any, first_two_rows: Callable[[tf.Tensor], list]) -> Operation:
    """Returns a resampling; `first_two_rows` maps a sign to the matrix from output to input."""

    def change(image: tf.Tensor, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        rows = first_two_rows(tf.where(a < 0.5, -1.0, 1.0))
        # By default it would reflect the image at its borders.
        hole = {"fill_mode": "constant", "fill_value": float(_GREY)}
        return official.transform(image, tf.stack([*rows, 0.0, 0.0]), **hole)

    return change


def _rotation(degrees: tf.Tensor, height: int, width: int) -> list:
    """Returns a rotation about the centre."""
    sin, cos = tf.sin(degrees * (math.pi / 180)), tf.cos(degrees * (math.pi / 180))
    x, y = (width - 1) / 2, (height - 1) / 2
    return [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]


def _solarize(official: Any, threshold: int) -> Callable[[tf.Tensor], tf.Tensor]:
    # As a byte 256 would be 0, and invert all.
    if threshold > 255:
        return tf.identity
    return lambda image: official.solarize(image, threshold)


def _cutout(height: int, width: int, half: int) -> Operation:
    def change(image: tf.Tensor, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        y, x = tf.floor(a * height), tf.floor(b * width)
        hole = rectangle(height, width, (y - half, x - half), (y + half, x + half))
        return tf.where(hole[:, :, None], tf.constant(_GREY, tf.uint8), image)

    return change
