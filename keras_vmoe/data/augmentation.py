"""What every augmentation is: a function of a batch of images and of numbers drawn for each.

Images hold values from 0 to 255, in bytes or floats. All but `Augment`, which resamples in floats,
give bytes back where they were given bytes.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf


class Augmentation(Protocol):
    """What `make_dataset` takes as `augment`, alone or in a sequence.

    Attributes:
        num_draws: uniform numbers that one image takes.
        per_image: whether images are changed one after the other. If so, the pipeline hands them
            in one by one, so that many are worked on at a time.
    """

    num_draws: int
    per_image: bool

    def __call__(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor: ...


def as_sequence(augment: Augmentation | Sequence[Augmentation] | None) -> tuple[Augmentation, ...]:
    """Returns the augmentations in the order in which they are made.

    Args:
        augment: None, one, or a sequence.

    Raises:
        ValueError: if one of them is none, a class for instance.

    Example:
        >>> from keras_vmoe.data import Flip
        >>> as_sequence(Flip()), as_sequence(None)
        ((Flip(),), ())
    """
    found = (augment,) if callable(augment) else tuple(augment or ())
    for one in found:
        if inspect.isclass(one) or not hasattr(one, "num_draws") or not callable(one):
            raise ValueError(
                f"augment={one!r} is no augmentation: make one, such as Flip(); "
                "in gin with brackets, train.augment = @Flip()."
            )
    return found


def augment_all(
    augmentations: Sequence[Augmentation], images: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """Applies augmentations one after the other.

    Args:
        augmentations: in their order.
        images: `[b, height, width, channels]`, 0 to 255.
        draws: float32 `[b, sum of num_draws]`, uniform in [0, 1).

    Returns:
        The changed images.
    """
    sizes = [one.num_draws for one in augmentations]
    for one, numbers in zip(augmentations, tf.split(draws, sizes, axis=1), strict=True):
        images = one(images, numbers)
    return images


def map_images(
    change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], images: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """Applies a function of one image to each image of a batch.

    Args:
        change: takes an image `[height, width, channels]` and its draws `[n]`, returns an image of
            the same shape and type.
        images: `[b, height, width, channels]`.
        draws: `[b, n]`.

    Returns:
        The changed images, of the same shape and type.
    """
    if images.shape[0] == 1:  # a loop costs a third more
        return change(images[0], draws[0])[None]
    return tf.map_fn(
        tf.autograph.experimental.do_not_convert(lambda pair: change(*pair)),
        (images, draws),
        fn_output_signature=tf.TensorSpec(images.shape[1:], images.dtype),
    )


def check_channels(augmentation: Augmentation, images: tf.Tensor) -> None:
    """Raises a ValueError if images are neither grey nor RGB."""
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{type(augmentation).__name__} takes images of 1 or 3 channels, these have "
            f"{images.shape[-1]}: leave it out."
        )


def rectangle(
    height: int,
    width: int,
    begin: tuple[tf.Tensor, tf.Tensor],
    end: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Marks a rectangle.

    Args:
        height: of the image.
        width: of the image.
        begin: its first row and column.
        end: the row and the column after its last; what lies outside the image is left out.

    Returns:
        bool `[height, width]`, true within it.

    Example:
        >>> rectangle(2, 3, (-1.0, 1.0), (1.0, 3.0)).numpy()
        array([[False,  True,  True],
               [False, False, False]])
    """
    rows, columns = (tf.range(side, dtype=tf.float32) for side in (height, width))
    in_rows = (rows >= begin[0]) & (rows < end[0])
    in_columns = (columns >= begin[1]) & (columns < end[1])
    return in_rows[:, None] & in_columns[None, :]
