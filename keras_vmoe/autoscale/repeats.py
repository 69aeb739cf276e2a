"""Measures of one topology over several draws of weights and circles."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from keras_vmoe.autoscale.measures import (
    CONVENTIONS,
    draw_circle,
    manifold_length,
    ntk_condition_number,
)
from keras_vmoe.autoscale.weights import draw_weights
from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require, require_choice, require_positive_int

# What the draws are for: the numbers keep their streams apart.
_OF_CIRCLE, _OF_WEIGHTS, _OF_EMBEDDING, _OF_IMAGES = range(4)


class Measures(NamedTuple):
    """What one repeat gives, or the mean of several.

    Attributes:
        length: L^E.
        condition_number: of the NTK; NaN where the kernel is singular.
    """

    length: float
    condition_number: float


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How topologies are measured: everything but the topology and the images.

    Every draw follows from `seed`, the occasion (a step of a search) and the repeat alone, so that
    repeats may be measured in any order and in any process.

    Args:
        image_size: pixels of a side, a multiple of 32.
        repeats: draws of weights whose measures are averaged. A repeat keeps its circle for all
            topologies, so that they are compared on the same one.
        convention: of the length, see `manifold_length`.
        seed: of all draws.
        compat: as the published code: the repeats share one draw of the embedding. By default each
            has its own. In both ways the length and the NTK of a repeat are of the same weights.

    Raises:
        ValueError: a value out of range.
    """

    image_size: int = 224
    repeats: int = 5
    convention: str = "code"
    seed: int = 0
    compat: bool = False

    def __post_init__(self) -> None:
        require_positive_int("image_size", self.image_size)
        require(
            self.image_size % 32 == 0,
            "image_size must be a multiple of 32, the stride of the last stage. Received: "
            f"image_size={self.image_size}; take 32, 64 or 224",
        )
        require_choice("convention", self.convention, CONVENTIONS)
        require_positive_int("repeats", self.repeats)
        require(self.seed >= 0, f"seed must be at least 0. Received: seed={self.seed}")

    def measure(
        self, genotype: Genotype | str, images: np.ndarray, occasion: int, repeat: int
    ) -> Measures:
        """Measures one repeat.

        Args:
            genotype: the network.
            images: `[b, image_size, image_size, 3]` of the NTK.
            occasion: a number that tells draws apart, such as a search's step.
            repeat: from 0.
        """
        genotype = Genotype.parse(genotype)
        of_embedding = self._rng(_OF_EMBEDDING, occasion) if self.compat else None
        weights = draw_weights(genotype, self._rng(_OF_WEIGHTS, occasion, repeat), of_embedding)
        circle = draw_circle(self._rng(_OF_CIRCLE, repeat), self.image_size)
        return Measures(
            manifold_length(genotype, weights, circle, self.convention),
            ntk_condition_number(images, genotype, weights),
        )

    def gaussian_images(self, count: int) -> np.ndarray:
        """Images of independent normal numbers, for an NTK without data.

        Args:
            count: how many.
        """
        shape = (count, self.image_size, self.image_size, 3)
        return self._rng(_OF_IMAGES).standard_normal(shape, "float32")

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])


def mean_measures(repeats: list[Measures]) -> Measures:
    """The means over repeats; NaN where a repeat has no value.

    Example:
        >>> mean_measures([Measures(1.0, 4.0), Measures(3.0, 5.0)])
        Measures(length=2.0, condition_number=4.5)
    """
    return Measures(*(float(np.mean(values)) for values in zip(*repeats, strict=True)))
