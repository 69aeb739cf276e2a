"""Arithmetic on sizes: ints where they are known, int tensors where a graph does not know them."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops as kops


def is_known(*sizes: Any) -> bool:
    """Whether all sizes are ints."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def ceil_divide(size: Any, divisor: Any) -> Any:
    """The quotient, rounded up."""
    return -(-size // divisor)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two sizes."""
    return min(a, b) if is_known(a, b) else kops.minimum(a, b)


def larger(a: Any, b: Any) -> Any:
    """The larger of two sizes."""
    return max(a, b) if is_known(a, b) else kops.maximum(a, b)
