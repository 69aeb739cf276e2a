"""The line on standard error that shows how far work that comes in pieces is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from keras_vmoe.trainers.progress import duration
from keras_vmoe.trainers.status_line import StatusLine

_SECONDS_BETWEEN_LINES = 15.0


class WorkProgress:
    """Shows what is being measured, the share of the work that is done, and the time that is left.

    On a terminal one line is drawn over and over; anywhere else a line is printed every 15
    seconds.

    Args:
        total_work: the sum of what `begin` will be given, in any unit that grows with time.
        stream: where to write; standard error by default.
        clock: seconds; tests hand in their own.

    Example:
        >>> progress = WorkProgress(total_work=2.0)
        >>> progress.begin("first half", work=1.0)
        >>> progress.advance(1.0)
    """

    def __init__(
        self,
        total_work: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_work
        self._line = StatusLine(stream)
        self._clock = clock
        self._began = self._shown_at = clock()
        self._label, self._before, self._work, self._share = "", 0.0, 0.0, 0.0

    def begin(self, label: str, work: float) -> None:
        """Starts the next piece of work; the one before it is done."""
        self._before += self._work
        self._label, self._work, self._share = label, work, 0.0
        self._show()

    def advance(self, share: float) -> None:
        """Tells which share of the piece is done."""
        self._share = share
        self._show()

    def print(self, text: str) -> None:
        """Prints a line of results on standard output."""
        self.clear()
        print(text, flush=True)

    def clear(self) -> None:
        """Takes the line off the terminal."""
        self._line.clear()

    def line(self) -> str:
        """Returns the line that is shown."""
        done = (self._before + self._share * self._work) / self._total
        seconds = self._clock() - self._began
        parts = [f"{min(done, 1.0):4.0%}", self._label, f"{duration(seconds)} so far"]
        if done > 0:
            parts.append(f"ETA {duration(seconds * max(1 / done - 1, 0.0))}")
        return "  ".join(parts)

    def _show(self) -> None:
        if self._line.is_terminal:
            self._line.draw(self.line())
        elif self._clock() - self._shown_at >= _SECONDS_BETWEEN_LINES:
            self._shown_at = self._clock()
            self._line.print(self.line())
