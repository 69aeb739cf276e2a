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
