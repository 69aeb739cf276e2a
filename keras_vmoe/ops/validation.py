"""Checks of arguments that the rooms above share."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def require(condition: bool, message: str) -> None:
    """Raises `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` that lists `choices` unless `value` is one of them."""
    require(
        value in choices,
        f"{name} must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}",
    )


def require_positive_int(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is an integer of at least 1."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    require(
        is_int and value >= 1, f"{name} must be an integer of at least 1. Received: {name}={value}"
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; bools are none."""
    known = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return known and bool(np.isfinite(value))


def require_number(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a finite number."""
    require(is_number(value), f"{name} must be a finite number. Received: {name}={value!r}")


def require_positive(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a finite number above 0."""
    ok = is_number(value) and value > 0
    require(ok, f"{name} must be a finite number above 0. Received: {name}={value!r}")


def require_not_negative(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a finite number of at least 0."""
    ok = is_number(value) and value >= 0
    require(ok, f"{name} must be a finite number of at least 0. Received: {name}={value!r}")


def require_image_size(name: str, value: Any, dynamic: bool = False) -> None:
    """Raises a `ValueError` unless `value` is a side in pixels, or a pair (height, width).

    Args:
        name: of the argument.
        value: its value.
        dynamic: whether a side may be `None`.
    """
    sides = value if isinstance(value, (tuple, list)) else (value, value)
    integers = (int, np.integer)
    ok = len(sides) == 2 and all(
        (dynamic and side is None)
        or (isinstance(side, integers) and not isinstance(side, bool) and side >= 1)
        for side in sides
    )
    words = ", either of which may be None" if dynamic else ""
    require(
        ok,
        f"{name} must be an integer of at least 1, or two of them, (height, width){words}. "
        f"Received: {name}={value!r}",
    )


def require_selected(num_selected: Any, num_experts: int) -> None:
    """Raises a `ValueError` unless so many of the experts can be chosen."""
    require_positive_int("num_selected", num_selected)
    require(
        num_selected <= num_experts,
        f"num_selected must be at most num_experts={num_experts}. "
        f"Received: num_selected={num_selected}",
    )


def require_fraction(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a rate in [0, 1)."""
    ok = isinstance(value, (int, float)) and 0.0 <= value < 1.0
    require(ok, f"{name} must be in [0, 1). Received: {name}={value!r}")


def require_rank(name: str, value: Any, rank: int, axes: str) -> None:
    """Raises a `ValueError` unless the tensor `value` has `rank` axes, spelt `axes`."""
    shape = tuple(value.shape)
    require(len(shape) == rank, f"{name} must have shape {axes}. Received: {name} of shape {shape}")


def require_same_axes(name: str, value: Any, wanted: Any, count: int = 2) -> None:
    """Raises a `ValueError` unless the first `count` axes of two tensors agree where known."""
    own, axes = tuple(value.shape), tuple(wanted.shape)[:count]
    differ = any(None not in pair and pair[0] != pair[1] for pair in zip(own, axes, strict=False))
    require(
        not differ,
        f"{name} must begin with the axes {axes}. Received: {name} of shape {own}",
    )


def concrete(value: Any) -> np.ndarray | None:
    """The value as NumPy where it is known now (eager mode), else `None`."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, keras.KerasTensor):
        return None
    if keras.backend.backend() == "jax":
        import jax

        return None if isinstance(value, jax.core.Tracer) else np.asarray(value)
    return value.numpy() if hasattr(value, "numpy") else None


def require_finite(name: str, value: Any) -> None:
    """Raises a `ValueError` where a tensor holds NaN or infinity; graphs are not looked at."""
    known = concrete(value)
    if known is None or known.dtype.kind not in "fV":
        return
    finite = np.isfinite(known.astype("float32") if known.dtype.kind == "V" else known)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name} must be finite. Received: {int((~finite).sum())} non-finite values, the "
            f"first {known[where]} at index {where}. Look for a diverged or uninitialised input."
        )
