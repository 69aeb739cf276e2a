"""What a few paired seeds say: means, standard errors, and a verdict that owns up to doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: the mean.
        error: its standard error; nan for one seed.
        count: the number of seeds.
    """

    mean: float
    error: float
    count: int

    @property
    def half_width(self) -> float:
        """Half of the 95 % confidence interval, by Student's t; infinite for one seed."""
        if self.count < 2:
            return math.inf
        # Beyond the table its last value: a little too wide.
        return self.error * _T[min(self.count - 1, len(_T)) - 1]

    def words(self, digits: int = 2) -> str:
        """The mean and its standard error in percent, such as "89.41 ± 0.12"."""
        error = f" ± {100 * self.error:.{digits}f}" if self.count > 1 else ""
        return f"{100 * self.mean:.{digits}f}{error}"


def estimate(values: Sequence[float]) -> Estimate:
    """Returns mean and standard error of one value a seed.

    Args:
        values: at least one.

    Example:
        >>> estimate([0.5, 0.7]).mean, round(estimate([0.5, 0.7]).error, 3)
        (0.6, 0.1)
    """
    values = np.asarray(values, float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(error), len(values))


def difference(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """Returns the mean of `left - right`, seed by seed, and its standard error.

    Args:
        left: one value a seed.
        right: the same seeds in the same order.
    """
    if len(left) != len(right):
        raise ValueError(f"left has {len(left)} seeds and right {len(right)}: they must pair up")
    return estimate(np.asarray(left, float) - np.asarray(right, float))


def verdict(gain: Estimate, margin: float = 0.0) -> str:
    """Judges the claim that a gain is above `-margin`.

    Args:
        gain: a difference that the claim wants to be positive, or not worse than `-margin`.
        margin: how much worse still counts as "no worse".

    Returns:
        "holds" or "does not hold" where the 95 % interval lies on one side of `-margin`, else
        "leans yes" or "leans no": these seeds cannot tell.
    """
    distance = gain.mean + margin
    if abs(distance) > gain.half_width:
        return "holds" if distance > 0 else "does not hold"
    return "leans yes" if distance > 0 else "leans no"
