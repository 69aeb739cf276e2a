"""Random changes of brightness, contrast, saturation and hue."""

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from keras_vmoe.data.augmentation import check_channels
from keras_vmoe.data.crops import to_bytes

# Lightness of red, green and blue (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue by random factors, in this order.

    A factor is drawn from `1 - strength` (0 at least) to `1 + strength`. Contrast is that to the
    mean lightness of the image; values are cut off at 0 and 255 after each change. Grey images
    have neither saturation nor hue: they keep what they have.

    Args:
        brightness: strength of the factor on all values.
        contrast: strength of the factor on the distance from the mean lightness.
        saturation: strength of the factor on the distance from grey.
        hue: largest turn of the colour circle, either way: 0.5 is half of it.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> images = tf.fill((2, 8, 8, 3), tf.constant(100, tf.uint8))
        >>> ColorJitter(brightness=0.5)(images, tf.zeros((2, 4))).numpy()[0, 0, 0]
        array([50, 50, 50], dtype=uint8)

    Reference:
        As in torchvision and DeiT (Touvron et al., 2021, table 9,
        https://arxiv.org/abs/2012.12877), which draw the order too.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    # One uniform number for each of the four.
    num_draws: ClassVar[int] = 4
    per_image: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 or more.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue!r}: expected 0 to 0.5.")

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Changes a batch.

        Args:
            images: uint8 or float32 `[b, height, width, 1 or 3]`, 0 to 255.
            draws: float32 `[b, 4]`, uniform in [0, 1).

        Returns:
            Images of the same shape and type; uint8 is rounded once, at the end.

        Raises:
            ValueError: if the images have another number of channels.
        """
        check_channels(self, images)
        factors = [
            _factors(draws[:, i], strength)
            for i, strength in enumerate((self.brightness, self.contrast, self.saturation))
        ]
        values = _cut(tf.cast(images, tf.float32) * factors[0])
        mean = tf.reduce_mean(_lightness(values), axis=(1, 2, 3), keepdims=True)
        values = _cut(mean + (values - mean) * factors[1])
        if images.shape[-1] == 3:
            grey = _lightness(values)
            values = _cut(grey + (values - grey) * factors[2])
            if self.hue:
                values = _turn_hue(values, (2 * draws[:, 3] - 1) * self.hue)
        return to_bytes(values) if images.dtype == tf.uint8 else values


def _factors(draws: tf.Tensor, strength: float) -> tf.Tensor:
    least = max(0.0, 1 - strength)
    return (least + draws * (1 + strength - least))[:, None, None, None]


def _cut(values: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(values, 0.0, 255.0)


def _lightness(values: tf.Tensor) -> tf.Tensor:
    if values.shape[-1] == 1:
        return values
    return tf.reduce_sum(values * tf.constant(_LUMA), axis=-1, keepdims=True)


def _turn_hue(values: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(values / 255), axis=-1)
    hue = tf.math.floormod(hue + turns[:, None, None], 1.0)
    return _cut(tf.image.hsv_to_rgb(tf.stack([hue, saturation, value], axis=-1)) * 255)
