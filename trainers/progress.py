"""The progress of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from keras_vmoe.trainers.status_line import StatusLine

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_REDRAWS = 0.1
_BAR_WIDTH = 20


class Progress:
    """Shows step, loss, accuracy, images a second and the time that is left.

    On a terminal one line is drawn over and over; anywhere else a line is printed every 15
    seconds, so that a log file stays readable.

    Args:
        total_steps: where the run ends.
        first_step: where it begins; not 0 when it resumes.
        images_per_step: the global batch size.
        stream: where to write; standard error by default.
        clock: seconds; tests hand in their own.

    Example:
        >>> progress = Progress(total_steps=100, images_per_step=32)
        >>> progress.update(1)
        >>> progress.close()
    """

    def __init__(
        self,
        total_steps: int,
        images_per_step: int,
        first_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._images_per_step = total_steps, images_per_step
        self._line = StatusLine(stream)
        self._clock = clock
        self._step = first_step
        self._metrics: dict[str, float] = {}
        self._shown_at = clock()
        # The first step traces the graph: time counts from its end.
        self._timed_from: tuple[int, float] | None = None
        self._paused = 0.0

    def update(self, step: int) -> None:
        """Tells that a step is done."""
        self._step = step
        if self._timed_from is None:
            self._timed_from = (step, self._clock())
            self._paused = 0.0
        if self._is_time():
            self._show(self.line())

    def set_metrics(self, metrics: Mapping[str, float]) -> None:
        """Hands in the latest `loss` and `accuracy` of training."""
        self._metrics = {name: float(metrics[name]) for name in ("loss", "accuracy")}

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        self._line.print(text)

    def aside(self, label: str, step: int, steps: int) -> None:
        """Tells how far work between training steps is, such as an evaluation."""
        if self._is_time():
            text = f"{label} {step}/{steps}"
            self._show(f"{self.line()}  {text}" if self._line.is_terminal else text)

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent on training, such as an evaluation's."""
        self._paused += seconds

    def close(self) -> None:
        """Ends the bar's line."""
        if self._line.is_terminal:
            self._show(self.line())
            print(file=self._line.stream, flush=True)

    def images_per_second(self) -> float | None:
        """Returns the speed since the first step, or None before there is one."""
        if self._timed_from is None or self._step == self._timed_from[0]:
            return None
        seconds = self._clock() - self._timed_from[1] - self._paused
        return (self._step - self._timed_from[0]) * self._images_per_step / max(seconds, 1e-9)

    def line(self) -> str:
        """Returns the line that is shown."""
        share = self._step / self._total
        parts = [f"step {self._step}/{self._total}"]
        if self._line.is_terminal:
            filled = int(_BAR_WIDTH * share)
            parts.append(f"{share:4.0%} |{'#' * filled}{'.' * (_BAR_WIDTH - filled)}|")
        parts += [
            f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.3f}"
            for name, value in self._metrics.items()
        ]
        speed = self.images_per_second()
        if speed:
            left = (self._total - self._step) * self._images_per_step / speed
            parts += [f"{speed:,.0f} images/s", f"ETA {duration(left)}"]
        return "  ".join(parts)

    def _is_time(self) -> bool:
        redraws = self._line.is_terminal
        interval = _SECONDS_BETWEEN_REDRAWS if redraws else _SECONDS_BETWEEN_LINES
        return self._clock() - self._shown_at >= interval

    def _show(self, text: str) -> None:
        self._shown_at = self._clock()
        if self._line.is_terminal:
            self._line.draw(text)
        else:
            self._line.print(text)


def duration(seconds: float) -> str:
    """Returns a time span as people write it.

    Example:
        >>> duration(75), duration(3725)
        ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
