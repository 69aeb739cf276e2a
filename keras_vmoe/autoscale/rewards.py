"""What a measured topology is worth beside the one before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from keras_vmoe.ops.validation import require

WINDOW = 20
_EPSILON = 1e-6


def reward(
    condition_numbers: Sequence[float] | None = None,
    lengths: Sequence[float] | None = None,
    constraints: Sequence[float] | None = None,
    constraint_weight: float = 0.0,
    window: int = WINDOW,
    compat: bool = False,
) -> float:
    """The reward of the last topology of a search.

    Every measure counts by its change since the topology before, as a share of its range over the
    last `window` topologies, this one included: condition numbers should fall, lengths grow. The
    first topology has none.

    Args:
        condition_numbers: the NTK's, of all topologies so far; NaN where there was none. `None`
            leaves the measure out.
        lengths: L^E of all topologies so far; or `None`.
        constraints: something to keep low, such as FLOPs; or `None`.
        constraint_weight: of it.
        window: topologies, at least 2.
        compat: as the published code: a condition number that is NaN counts as -1, the best that
            there is, where lengths count too. By default what is not finite counts as the worst
            value of all topologies so far.

    Raises:
        ValueError: a window of fewer than two topologies, which have no range.

    Example:
        >>> round(reward([100, 80], [5, 6]), 4), round(reward([100, 80, 120], [5, 6, 5.5]), 4)
        (2.0, -1.5)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 1.
    """
    require_window(window)
    total = 0.0
    if condition_numbers is not None:
        if compat and lengths is not None:
            condition_numbers = [-1.0 if math.isnan(x) else x for x in condition_numbers]
        total -= _change(_filled(condition_numbers, max), window)
    if lengths is not None:
        total += _change(_filled(lengths, min), window)
    if constraints is not None:
        total -= constraint_weight * _change(_filled(constraints, max), window)
    return total


def require_window(window: int) -> None:
    """Refuses a window whose topologies have no range."""
    is_int = isinstance(window, int) and not isinstance(window, bool)
    require(
        is_int and window >= 2,
        f"window must be an integer of at least 2. Received: window={window}; the paper takes "
        f"{WINDOW}",
    )


def _filled(values: Sequence[float], worst: Callable[[list[float]], float]) -> list[float]:
    finite = [x for x in values if math.isfinite(x)]
    filler = worst(finite) if finite else 0.0
    return [x if math.isfinite(x) else filler for x in values]


def _change(values: Sequence[float], window: int) -> float:
    if len(values) < 2:
        return 0.0
    last = values[-window:]
    return (values[-1] - values[-2]) / (max(last) - min(last) + _EPSILON)
