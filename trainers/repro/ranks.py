"""How well one order agrees with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2000
# Of two things every resample has a tau of 1, -1 or 0.
_FEWEST = 3


class Agreement(NamedTuple):
    """Kendall's tau with the interval that holds 95% of the resampled ones.

    Attributes:
        tau: from -1 to 1.
        low, high: of the interval.
        count: things that were ordered; of fewer than 3 the others are NaN.
    """

    tau: float
    low: float
    high: float
    count: int

    @property
    def is_measured(self) -> bool:
        """Whether there were enough things to order."""
        return self.count >= _FEWEST

    @property
    def verdict(self) -> str:
        """Whether the orders agree at all, in the words of `paired.verdict`."""
        if not self.is_measured:
            return "not measured"
        if self.low > 0 or self.high < 0:
            return "holds" if self.low > 0 else "does not hold"
        return "leans yes" if self.tau > 0 else "leans no"


def kendall_tau(left: Sequence[float], right: Sequence[float]) -> float:
    """Kendall's tau-b: the pairs that two orders agree on less those that they do not.

    Args:
        left, right: one value each of the same things.

    Returns:
        From -1 to 1, ties in either counted out; 0 where all values of one are equal.

    Example:
        >>> kendall_tau([1, 2, 3], [1, 3, 2])
        0.3333333333333333

    Reference: Kendall 1945, "The treatment of ties in ranking problems".
    """
    first, second = (
        np.sign(np.subtract.outer(np.asarray(x, float), np.asarray(x, float)))
        for x in (left, right)
    )
    pairs = np.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum() / pairs) if pairs else 0.0


def agreement(left: Sequence[float], right: Sequence[float], seed: int = 0) -> Agreement:
    """Kendall's tau and its bootstrap interval.

    Args:
        left, right: one finite value each of the same things.
        seed: of the resampling.

    Returns:
        NaN, and "not measured", of fewer than three things.
    """
    left, right = np.asarray(left, float), np.asarray(right, float)
    if len(left) < _FEWEST:
        return Agreement(np.nan, np.nan, np.nan, len(left))
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(left), size=(_RESAMPLES, len(left)))
    taus = [kendall_tau(left[draw], right[draw]) for draw in draws]
    low, high = np.percentile(taus, (2.5, 97.5))
    return Agreement(kendall_tau(left, right), float(low), float(high), len(left))
