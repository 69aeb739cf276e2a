"""What can be measured of a live model between training steps, beside its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import keras


class Measurement(Protocol):
    """A measurement of a model as it is now. Metrics and weights are left alone.

    Attributes:
        parameter: what gin calls it.
        command: the subcommand that measures the same of a finished run.
        label: what the progress line calls its batches.
        passes: the batches of one measurement, after `prepare`.
    """

    parameter: str
    command: str
    label: str

    @property
    def passes(self) -> int: ...

    def is_due(self, step: int) -> bool:
        """Tells whether to measure at an evaluation after so many steps."""

    def prepare(self, own: Any = None) -> list[str]:
        """Loads what is needed, so that errors come before training; returns what there is to tell.

        Args:
            own: the data of the run.
        """

    def measure(
        self, model: keras.Model, own: Any = None, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns names and shares.

        Args:
            model: of the run.
            own: the data of the run.
            on_batch: called after each batch; what it raises ends the measurement.
        """


def require_positive(made: object, name: str, value: Any) -> None:
    """Raises a `ValueError` that names a parameter of gin unless it is a positive whole number."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(made).__name__}.{name}={value!r} must be a positive whole number")


class Periodic:
    """When a measurement is due, and how it reads images.

    Args:
        every: steps between two measurements, at the evaluations of the run; `None`: at each.
        batch_size: images of one step.
        crop: how an image becomes a square.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, every: int | None, batch_size: int, crop: Any) -> None:
        if every is not None:
            require_positive(self, "every", every)
        require_positive(self, "batch_size", batch_size)
        self.every, self.batch_size, self.crop = every, batch_size, crop

    def is_due(self, step: int) -> bool:
        """Whether to measure at an evaluation of the run.

        Args:
            step: the steps taken.
        """
        return self.every is None or step % self.every == 0
