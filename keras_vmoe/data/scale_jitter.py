"""From an image of any shape with boxes to a square one: fitted in, or at a scale that is drawn."""

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from keras_vmoe.data.crops import to_bytes

# What lies around an image that does not fill the square: the middle of the bytes.
FILLING = 128


@dataclass(frozen=True)
class ScaleJitter:
    """Resizes an image by a factor that is drawn, then cuts out or fills up to a square.

    At factor 1 the longer side is the square's. A larger image loses what lies outside a window
    drawn at random; a smaller one lies in the upper left corner, mirrored in the upper right.
    Boxes go along; what lies outside is cut off, and boxes that are left with a side below
    `min_side` go.

    Args:
        scale: least and largest factor: (0.1, 2.0) is large-scale jitter, (0.8, 1.25) the
            standard one.
        flip: probability of mirroring left and right.
        min_side: in pixels of the square, of boxes that stay.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> image, rows = tf.zeros((30, 40, 3), tf.uint8), tf.constant([[0, 0, 1, 0.5, 2, 0.0]])
        >>> square, kept = ScaleJitter((1.0, 1.0), flip=0.0)(image, rows, 80, tf.zeros([4]))
        >>> square.shape, kept[0].numpy().tolist()
        (TensorShape([80, 80, 3]), [0.0, 0.0, 60.0, 40.0, 2.0, 0.0])

    Reference:
        Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
        Segmentation", 2021, section 3 (https://arxiv.org/abs/2012.07177).
    """

    scale: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    min_side: float = 2.0

    # Uniform numbers that one image takes: the factor, two for the window, the mirror.
    num_draws: ClassVar[int] = 4

    def __post_init__(self):
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(
                f"scale={self.scale!r}: expected (least, largest), 0 < least <= largest."
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip!r}: expected a probability, 0 to 1.")
        if not 0 <= self.min_side < float("inf"):
            raise ValueError(f"min_side={self.min_side!r}: expected pixels, 0 or more.")

    def __call__(
        self, image: tf.Tensor, rows: tf.Tensor, image_size: int, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes a square of one image.

        Args:
            image: uint8 `[height, width, channels]`.
            rows: float32 `[boxes, 6]`, of the columns `boxes.COLUMNS`.
            image_size: side of the square in pixels.
            draws: float32 `[4]`, uniform in [0, 1).

        Returns:
            uint8 `[image_size, image_size, channels]`, and the rows that stay, their boxes in
            pixels of the square.
        """
        least, most = self.scale
        factor = least + draws[0] * (most - least)
        sides = _sides(image, factor * image_size)
        # The window's corner, in the resized image; 0 where all of it fits in.
        free = tf.cast(tf.maximum(sides - image_size, 0), tf.float32)
        corner = tf.floor(draws[1:3] * (free + 1.0))
        image = _resized(image, sides, corner, tf.minimum(sides, image_size))
        rows = in_pixels(rows, tf.cast(sides, tf.float32), corner)
        image = _filled(image, image_size)
        image, rows = _mirrored(image, rows, image_size, draws[3] < self.flip)
        rows = clipped(rows, tf.fill((2,), float(image_size)))
        lengths = rows[:, 2:4] - rows[:, :2]
        kept = tf.reduce_all((lengths >= self.min_side) & (lengths > 0), axis=1)
        return image, tf.boolean_mask(rows, kept)


def fit(
    image: tf.Tensor, rows: tf.Tensor, image_size: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Fits an image into a square, in the upper left corner, its proportions kept.

    Args:
        image: uint8 `[height, width, channels]`.
        rows: float32 `[boxes, 6]`, of the columns `boxes.COLUMNS`.
        image_size: side of the square in pixels.

    Returns:
        uint8 `[image_size, image_size, channels]`; the rows, their boxes in pixels of the square;
        float32 `[2]`, pixels of the square for one of the image, down and across.

    Example:
        >>> image, rows = tf.zeros((30, 40, 1), tf.uint8), tf.constant([[0, 0, 1, 0.5, 2, 0.0]])
        >>> square, rows, scale = fit(image, rows, 20)
        >>> rows.numpy().tolist(), scale.numpy().tolist()
        ([[0.0, 0.0, 15.0, 10.0, 2.0, 0.0]], [0.5, 0.5])
    """
    sides = _sides(image, float(image_size))
    floats = tf.cast(sides, tf.float32)
    square = _filled(_resized(image, sides, tf.zeros((2,)), sides), image_size)
    rows = clipped(in_pixels(rows, floats, tf.zeros((2,))), floats)
    return square, rows, floats / tf.cast(tf.shape(image)[:2], tf.float32)


def in_pixels(rows: tf.Tensor, sides: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
    """Returns rows whose boxes were shares of an image in pixels of a window of it.

    Args:
        rows: float32 `[boxes, 6]`.
        sides: float32 `[2]`, height and width of the image.
        corner: float32 `[2]`, where the window begins.
    """
    boxes = rows[:, :4] * tf.tile(sides, [2]) - tf.tile(corner, [2])
    return tf.concat([boxes, rows[:, 4:]], axis=1)


def clipped(rows: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Returns rows whose boxes end at the border of an image of so many pixels, `[2]`."""
    boxes = tf.clip_by_value(rows[:, :4], 0.0, tf.tile(sides, [2]))
    return tf.concat([boxes, rows[:, 4:]], axis=1)


def _sides(image: tf.Tensor, longer: tf.Tensor | float) -> tf.Tensor:
    """Height and width, int32, whose longer one is as given."""
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    return tf.cast(tf.maximum(tf.round(sides * (longer / tf.reduce_max(sides))), 1.0), tf.int32)


def _resized(image: tf.Tensor, sides: tf.Tensor, corner: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """A window of an image that is resized to `sides`, of which no other pixel is computed.

    Args:
        image: uint8 `[height, width, channels]`.
        sides: int32 `[2]`.
        corner: float32 `[2]`, where the window begins.
        size: int32 `[2]`, height and width of the window.
    """
    # What `tf.image.resize` with `antialias` calls, but for the window.
    window = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=tf.cast(sides, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32),
        translation=-corner,
        kernel_type="triangle",
        antialias=True,
    )
    return to_bytes(tf.ensure_shape(window[0], (None, None, image.shape[-1])))


def _filled(image: tf.Tensor, image_size: int) -> tf.Tensor:
    shape = tf.shape(image)
    missing = [[0, image_size - shape[0]], [0, image_size - shape[1]], [0, 0]]
    square = tf.pad(image, missing, constant_values=FILLING)
    return tf.ensure_shape(square, (image_size, image_size, image.shape[-1]))


def _mirrored(
    image: tf.Tensor, rows: tf.Tensor, image_size: int, wanted: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    y_min, x_min, y_max, x_max, *others = tf.unstack(rows, axis=1)
    turned = tf.stack([y_min, image_size - x_max, y_max, image_size - x_min, *others], axis=1)
    image = tf.where(wanted, tf.reverse(image, [1]), image)
    return image, tf.where(wanted, turned, rows)
