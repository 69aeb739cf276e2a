"""Mixing the images of a batch, and their labels with them."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import tensorflow as tf

from keras_vmoe.data.augmentation import rectangle


class Mix(Protocol):
    """What `make_dataset` takes as `mix`, alone or in a sequence."""

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]: ...


def mix_with_weights(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds to each image the images that come after it in the batch, in given shares.

    Entry j becomes `sum_i weights[i] * entry[(j + i) mod b]`, images and labels alike.

    Args:
        images: float32 `[b, height, width, channels]`.
        labels: float32 `[b, classes]`.
        weights: float32 `[size]`, adding up to 1.

    Returns:
        Mixed images and labels, of the same shapes.

    Example:
        >>> images = tf.reshape(tf.constant([0.0, 10.0, 20.0]), (3, 1, 1, 1))
        >>> mixed, labels = mix_with_weights(images, tf.eye(3), tf.constant([0.7, 0.3]))
        >>> mixed.numpy().ravel().round(3)
        array([ 3., 13., 14.], dtype=float32)

    Reference:
        Zhang et al., "mixup", 2017, equation (1) (https://arxiv.org/abs/1710.09412), as V-MoE
        does it.
    """

    def mixed(values: tf.Tensor) -> tf.Tensor:
        parts = tf.unstack(weights)
        return tf.add_n([part * tf.roll(values, -i, axis=0) for i, part in enumerate(parts)])

    return mixed(images), mixed(labels)


@dataclass(frozen=True)
class Mixup:
    """Mixes each image with the next ones, in shares that are drawn anew for each batch.

    The shares are drawn from a symmetric Dirichlet distribution and sorted, so that an image
    keeps the largest for itself.

    Args:
        concentration: of the distribution; small numbers mix little, 1 mixes uniformly.
        size: how many images go into one.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> images, labels = tf.random.uniform((4, 8, 8, 3)), tf.one_hot([0, 1, 2, 3], 4)
        >>> mixed, shares = Mixup(concentration=0.5)(images, labels, tf.constant([0, 1]))
        >>> shares.shape
        TensorShape([4, 4])

    Reference:
        Zhang et al., "mixup", 2017, equation (1) (https://arxiv.org/abs/1710.09412); of two
        images, in V-MoE's form.
    """

    concentration: float = 0.2
    size: int = 2

    def __post_init__(self):
        if not 0 < self.concentration < float("inf"):
            raise ValueError(
                f"concentration={self.concentration!r}: expected a number above 0; "
                "mix=None mixes nothing."
            )
        if self.size != int(self.size) or self.size < 2:
            raise ValueError(f"size={self.size!r}: expected a whole number of 2 or more.")

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch.

        Args:
            images: float32 `[b, height, width, channels]`.
            labels: float32 `[b, classes]`.
            seed: int `[2]`.

        Returns:
            Mixed images and labels, of the same shapes.
        """
        return mix_with_weights(images, labels, self.weights(seed))

    def weights(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns the shares of a batch, float32 `[size]`, the largest first."""
        # In float64 even tiny concentrations do not underflow to nothing but zeros.
        gamma = tf.random.stateless_gamma(
            (self.size,), seed, tf.constant(self.concentration, tf.float64), dtype=tf.float64
        )
        shares = tf.sort(gamma / tf.reduce_sum(gamma), direction="DESCENDING")
        return tf.cast(shares, tf.float32)


@dataclass(frozen=True)
class CutMix:
    """Puts a rectangle of the next image into each image; the same for the whole batch.

    Its area is drawn from a Beta distribution, its proportions are the image's, its centre is
    drawn uniformly; what lies outside is cut off. Labels are mixed by the area that was pasted.

    Args:
        alpha: of the Beta distribution; 1 draws areas uniformly.

    Raises:
        ValueError: if `alpha` is not above 0.

    Example:
        >>> images, labels = tf.random.uniform((4, 8, 8, 3)), tf.one_hot([0, 1, 2, 3], 4)
        >>> mixed, shares = CutMix()(images, labels, tf.constant([0, 1]))
        >>> mixed.shape
        TensorShape([4, 8, 8, 3])

    Reference:
        Yun et al., "CutMix", 2019, equations (1) and (2) (https://arxiv.org/abs/1905.04899).
    """

    alpha: float = 1.0

    def __post_init__(self):
        if not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"alpha={self.alpha!r}: expected a number above 0; mix=None mixes nothing."
            )

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch.

        Args:
            images: float32 `[b, height, width, channels]`.
            labels: float32 `[b, classes]`.
            seed: int `[2]`.

        Returns:
            Mixed images and labels, of the same shapes.
        """
        height, width = images.shape[1:3]
        inside = self._rectangle(height, width, seed)
        mixed = tf.where(inside[:, :, None], tf.roll(images, -1, axis=0), images)
        pasted = tf.reduce_mean(tf.cast(inside, tf.float32))
        return mixed, (1 - pasted) * labels + pasted * tf.roll(labels, -1, axis=0)

    def _rectangle(self, height: int, width: int, seed: tf.Tensor) -> tf.Tensor:
        seeds = [tf.random.fold_in(seed, i) for i in range(2)]
        gamma = tf.random.stateless_gamma(
            (2,), seeds[0], tf.constant(self.alpha, tf.float64), dtype=tf.float64
        )
        side = tf.cast(tf.sqrt(gamma[1] / tf.reduce_sum(gamma)), tf.float32)
        tall, wide = tf.round(side * height), tf.round(side * width)
        place = tf.random.stateless_uniform((2,), seeds[1])
        y = tf.floor(place[0] * height) - tf.floor(tall / 2)
        x = tf.floor(place[1] * width) - tf.floor(wide / 2)
        return rectangle(height, width, (y, x), (y + tall, x + wide))


def as_one_mix(mix: Mix | Sequence[Mix] | None) -> Mix | None:
    """Returns one mix that takes, for each batch, one of several at random.

    Args:
        mix: None, one, or a sequence.

    Raises:
        ValueError: if one of them is none, a class for instance.
    """
    found = (mix,) if callable(mix) else tuple(mix or ())
    for one in found:
        if inspect.isclass(one) or inspect.isroutine(one) or not callable(one):
            raise ValueError(
                f"mix={one!r} is no mix: make one, such as Mixup(); in gin with brackets, "
                "train.mix = @Mixup()."
            )
    if len(found) < 2:
        return found[0] if found else None

    def one_of_them(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        which_seed, own_seed = (tf.random.fold_in(seed, i) for i in range(2))
        which = tf.random.stateless_uniform((), which_seed, maxval=len(found), dtype=tf.int32)
        branches = [functools.partial(one, images, labels, own_seed) for one in found]
        return tf.switch_case(which, branches)

    return one_of_them
