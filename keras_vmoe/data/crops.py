"""From an image of any size to a square one: the crops of training and of evaluation.

A crop takes one image and keeps it in bytes: what it resizes, it rounds.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import tensorflow as tf


class Crop(Protocol):
    """What `make_dataset` takes as `crop`."""

    num_draws: ClassVar[int]

    def __call__(self, image: tf.Tensor, image_size: int, draws: tf.Tensor) -> tf.Tensor: ...


@dataclass(frozen=True)
class InceptionCrop:
    """A random window of random area and proportions, resized to a square bilinearly.

    The proportions are drawn first; then the height, uniformly among those that keep the area
    within its range and the window within the image; then the place. An image too long for the
    smallest area at these proportions gives the largest window that has them.

    Args:
        area: least and largest share of the image's area.
        aspect: least and largest width over height of the window.

    Raises:
        ValueError: if a range is not one.

    Example:
        >>> image = tf.zeros((30, 40, 3), tf.uint8)
        >>> InceptionCrop()(image, 16, tf.random.uniform([4])).shape
        TensorShape([16, 16, 3])

    Reference:
        Szegedy et al., "Going Deeper with Convolutions", 2015, section 6
        (https://arxiv.org/abs/1409.4842); the rule is that of
        `tf.image.sample_distorted_bounding_box`, with one attempt.
    """

    area: tuple[float, float] = (0.05, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    # Uniform numbers that one image takes: proportions, height, two for the place.
    num_draws: ClassVar[int] = 4

    def __post_init__(self):
        for name, most in (("area", 1.0), ("aspect", float("inf"))):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                limit = "" if most == float("inf") else " <= 1"
                raise ValueError(
                    f"{name}={value!r}: expected (least, largest), 0 < least <= largest{limit}."
                )

    def __call__(self, image: tf.Tensor, image_size: int, draws: tf.Tensor) -> tf.Tensor:
        """Crops one image.

        Args:
            image: uint8 `[height, width, channels]`.
            image_size: side of the result in pixels.
            draws: float32 `[4]`, uniform in [0, 1).

        Returns:
            uint8 `[image_size, image_size, channels]`.
        """
        return self.resize(self.cut(image, draws), image_size)

    def cut(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Cuts the window out of an image, uint8 `[height, width, channels]`; draws as above."""
        shape = tf.shape(image)
        y, x, height, width = tf.unstack(self.window(shape[0], shape[1], draws))
        return image[y : y + height, x : x + width]

    def window(self, height: tf.Tensor, width: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Returns the window of an image of this size.

        Args:
            height: int32 scalar, of the image.
            width: int32 scalar, of the image.
            draws: float32 `[4]`, uniform in [0, 1).

        Returns:
            int32 `[4]`: top, left, height and width in pixels.
        """
        image_height, image_width = (tf.cast(side, tf.float32) for side in (height, width))
        least, most = self.aspect
        aspect = least + draws[0] * (most - least)
        shortest, tallest = (
            tf.round(tf.sqrt(share * image_height * image_width / aspect)) for share in self.area
        )
        # The tallest of which the width, rounded, is not more than the image's.
        widest = tf.floor((image_width + 0.5) / aspect)
        tallest = tf.maximum(tf.minimum(tallest, tf.minimum(image_height, widest)), 1.0)
        shortest = tf.clip_by_value(shortest, 1.0, tallest)
        crop_height = shortest + tf.floor(draws[1] * (tallest - shortest + 1))
        crop_width = tf.clip_by_value(tf.round(crop_height * aspect), 1.0, image_width)
        y = tf.floor(draws[2] * (image_height - crop_height + 1))
        x = tf.floor(draws[3] * (image_width - crop_width + 1))
        return tf.cast(tf.stack([y, x, crop_height, crop_width]), tf.int32)

    def resize(self, image: tf.Tensor, image_size: int) -> tf.Tensor:
        """Resizes a window, uint8 `[height, width, channels]`, to a square bilinearly."""
        return to_bytes(tf.image.resize(image, (image_size, image_size)))


@dataclass(frozen=True)
class CentralCrop:
    """The smaller side resized by averaging areas, then the central square.

    Args:
        resize: what the smaller side is resized to, in pixels; the other side keeps the
            proportions.

    Raises:
        ValueError: if `resize` is not a whole number above 0.

    Example:
        >>> image = tf.zeros((30, 40, 3), tf.uint8)
        >>> CentralCrop(resize=16)(image, 14).shape
        TensorShape([14, 14, 3])

    Reference:
        "resize_small(256)|central_crop(224)" of the ViT and V-MoE recipes; He et al., "Deep
        Residual Learning", 2015, section 3.4 (https://arxiv.org/abs/1512.03385).
    """

    resize: int = 256

    num_draws: ClassVar[int] = 0

    def __post_init__(self):
        if self.resize != int(self.resize) or self.resize < 1:
            raise ValueError(f"resize={self.resize!r}: expected a whole number of pixels above 0.")

    def __call__(
        self, image: tf.Tensor, image_size: int, draws: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Crops one image.

        Args:
            image: uint8 `[height, width, channels]`.
            image_size: side of the result in pixels, at most `resize`.
            draws: of no use here.

        Returns:
            uint8 `[image_size, image_size, channels]`.

        Raises:
            ValueError: if `image_size` is larger than `resize`.
        """
        self.check(image_size)
        shape = tf.shape(image)[:2]
        sides = tf.cast(shape, tf.float32)
        sides = tf.cast(tf.round(sides * (self.resize / tf.reduce_min(sides))), tf.int32)
        image = to_bytes(tf.image.resize(image, sides, tf.image.ResizeMethod.AREA))
        y, x = tf.unstack((sides - image_size) // 2)
        return tf.ensure_shape(
            image[y : y + image_size, x : x + image_size],
            (image_size, image_size, image.shape[-1]),
        )

    def check(self, image_size: int) -> None:
        """Raises a ValueError if a square of this side cannot be cut out."""
        if image_size > self.resize:
            raise ValueError(
                f"CentralCrop(resize={self.resize}) cannot give image_size={image_size}: "
                f"make resize at least {image_size}, such as {round(image_size * 256 / 224)}."
            )


def to_bytes(images: tf.Tensor) -> tf.Tensor:
    """Rounds images of any type to uint8, and cuts off what lies outside 0..255."""
    if images.dtype == tf.uint8:
        return images
    return tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)
