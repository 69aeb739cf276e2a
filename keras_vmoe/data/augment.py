"""Light geometric augmentation of whole batches, without per-image loops."""

import math
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf


@dataclass(frozen=True)
class Augment:
    """Random shift, flip, rotation and zoom, joined into one resampling of the batch.

    The random numbers are handed in, so that whoever calls decides what they depend on.

    Args:
        shift: largest shift in whole pixels along each side.
        flip: mirror left and right with probability one half.
        rotation: largest rotation in degrees, either way.
        zoom: largest change of scale: 0.1 means a factor from 0.9 to 1.1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> images = tf.ones((2, 8, 8, 1))
        >>> Augment(shift=1, rotation=10.0)(images, tf.random.uniform((2, 5))).shape
        TensorShape([2, 8, 8, 1])
    """

    shift: int = 0
    flip: bool = False
    rotation: float = 0.0
    zoom: float = 0.0

    # Uniform numbers that one image takes: two shifts, flip, rotation, zoom.
    num_draws: ClassVar[int] = 5
    per_image: ClassVar[bool] = False

    def __post_init__(self):
        if self.shift < 0 or self.shift != int(self.shift):
            raise ValueError(f"shift={self.shift!r}: expected a whole number of pixels, 0 or more.")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation={self.rotation!r}: expected degrees from 0 to 180.")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"zoom={self.zoom!r}: expected 0 <= zoom < 1.")

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Transforms a batch; what comes in from outside an image is 0.

        Args:
            images: float32 or uint8 `[b, height, width, channels]`.
            draws: float32 `[b, 5]`, uniform in [0, 1).

        Returns:
            Images of the same shape, float32: resampled values are not rounded.
        """
        if self == Augment():
            return images
        images = tf.cast(images, tf.float32)
        height, width = images.shape[1:3]
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=self._transforms(draws, height, width),
            output_shape=[height, width],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )

    def _transforms(self, draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Returns the maps from output to input pixels about the centre, `[b, 8]`."""
        dx, dy = (
            tf.floor(draws[:, i] * (2 * self.shift + 1)) - float(self.shift) for i in range(2)
        )
        mirror = tf.where(draws[:, 2] < 0.5, -1.0, 1.0) if self.flip else tf.ones_like(dx)
        angle = (2 * draws[:, 3] - 1) * math.radians(self.rotation)
        scale = 1 / (1 + (2 * draws[:, 4] - 1) * self.zoom)
        cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
        center_x, center_y = (width - 1) / 2, (height - 1) / 2
        a, b, d, e = mirror * cos, -mirror * sin, sin, cos
        c = center_x + dx - a * center_x - b * center_y
        f = center_y + dy - d * center_x - e * center_y
        zero = tf.zeros_like(a)
        return tf.stack([a, b, c, d, e, f, zero, zero], axis=1)


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right with probability one half.

    Example:
        >>> images = tf.constant([[[[1], [2]]]], tf.uint8)
        >>> Flip()(images, tf.constant([[0.2]])).numpy().ravel()
        array([2, 1], dtype=uint8)
    """

    num_draws: ClassVar[int] = 1
    per_image: ClassVar[bool] = False

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Mirrors the images of which the draw is below one half.

        Args:
            images: `[b, height, width, channels]` of any type.
            draws: float32 `[b, 1]`, uniform in [0, 1).

        Returns:
            Images of the same shape and type.
        """
        mirrored = draws[:, :, None, None] < 0.5
        return tf.where(mirrored, tf.reverse(images, axis=[2]), images)
