"""What the figures of super-classes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require


def check_superclasses(
    name: str,
    matrix: Any,
    superclasses: Any,
    class_names: Sequence[str],
    superclass_names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a matrix of classes as float64 and their super-classes as ints, if they fit.

    Args:
        name: what messages call the matrix.
        matrix: `[n, n]`.
        superclasses: `[n]` ints from 0.
        class_names: a name a class.
        superclass_names: a name a super-class.

    Raises:
        ValueError: if they do not.
    """
    matrix, ids = np.asarray(matrix, "float64"), np.asarray(superclasses)
    n = len(class_names)
    require(
        matrix.shape == (n, n) and ids.shape == (n,) and n > 0,
        f"{name}, superclasses and class_names must be of the same classes. Received: {name} of "
        f"shape {matrix.shape}, {ids.shape} super-classes, {n} names",
    )
    wanted = np.arange(len(superclass_names))
    require(
        np.array_equal(np.unique(ids), wanted),
        f"superclass_names must hold one name for each of the super-classes, from 0 on. Received: "
        f"{len(wanted)} names for {np.unique(ids)[:12].tolist()}",
    )
    return matrix, ids


def short(name: str, length: int = 18) -> str:
    """Cuts a long name.

    Example:
        >>> short("Staffordshire bullterrier"), short("pug")
        ('Staffordshire bul…', 'pug')
    """
    return name if len(name) <= length else name[: length - 1] + "…"
