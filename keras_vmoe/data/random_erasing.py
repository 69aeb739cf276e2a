"""Random erasing of rectangles."""

import math
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from keras_vmoe.data.augmentation import map_images, rectangle

# What unit normal noise is once a reference has put ImageNet's mean and deviation out of it.
_NOISE_MEAN, _NOISE_DEVIATION = 0.449 * 255, 0.226 * 255
NOISE = "noise"


@dataclass(frozen=True)
class RandomErasing:
    """Fills a random rectangle with noise or a constant.

    The rectangle's area and the logarithm of its proportions are drawn uniformly; a rectangle
    longer than the image is cut to its side. It lies within the image.

    Args:
        probability: share of the images that lose a rectangle.
        area: least and largest share of the image's area.
        aspect: least and largest height over width.
        fill: "noise", normal for each value, with the mean and the deviation of natural images,
            cut off at 0 and 255; or a number from 0 to 255.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> images = tf.ones((2, 8, 8, 3), tf.uint8)
        >>> erased = RandomErasing(probability=1.0, fill=0)(images, tf.random.uniform((2, 7)))
        >>> 0 < int(tf.reduce_sum(tf.cast(erased, tf.int32))) < 2 * 8 * 8 * 3
        True

    Reference:
        Zhong et al., "Random Erasing Data Augmentation", 2017, algorithm 1
        (https://arxiv.org/abs/1708.04896); noise for each value as in DeiT.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str | float = NOISE

    # Whether, area, proportions, two for the place, two that seed the noise.
    num_draws: ClassVar[int] = 7
    per_image: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability!r}: expected 0 to 1.")
        for name, most in (("area", 1.0), ("aspect", float("inf"))):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                limit = "" if most == float("inf") else " <= 1"
                raise ValueError(
                    f"{name}={value!r}: expected (least, largest), 0 < least <= largest{limit}."
                )
        if self.fill != NOISE and (isinstance(self.fill, str) or not 0 <= self.fill <= 255):
            raise ValueError(f"fill={self.fill!r}: expected 'noise' or a number from 0 to 255.")

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Erases in a batch.

        Args:
            images: uint8 or float32 `[b, height, width, channels]`, 0 to 255.
            draws: float32 `[b, 7]`, uniform in [0, 1).

        Returns:
            Images of the same shape and type.
        """
        return map_images(self._change, images, draws)

    def _change(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            draws[0] < self.probability, lambda: self._erase(image, draws), lambda: image
        )

    def _erase(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        height, width = image.shape[:2]
        area = (self.area[0] + draws[1] * (self.area[1] - self.area[0])) * height * width
        least, most = (math.log(value) for value in self.aspect)
        aspect = tf.exp(least + draws[2] * (most - least))
        tall = tf.clip_by_value(tf.round(tf.sqrt(area * aspect)), 1.0, float(height))
        wide = tf.clip_by_value(tf.round(tf.sqrt(area / aspect)), 1.0, float(width))
        y = tf.floor(draws[3] * (height - tall + 1))
        x = tf.floor(draws[4] * (width - wide + 1))
        inside = rectangle(height, width, (y, x), (y + tall, x + wide))
        return tf.where(inside[:, :, None], self._filling(image, draws[5:7]), image)

    def _filling(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        if self.fill != NOISE:
            return tf.fill(image.shape, tf.cast(self.fill, image.dtype))
        noise = tf.random.stateless_normal(image.shape, tf.bitcast(draws, tf.int32))
        noise = tf.clip_by_value(_NOISE_MEAN + _NOISE_DEVIATION * noise, 0.0, 255.0)
        return tf.cast(tf.round(noise) if image.dtype == tf.uint8 else noise, image.dtype)
