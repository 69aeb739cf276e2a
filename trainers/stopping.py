"""Ctrl-C and SIGTERM end a run between two steps, so that its state can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class StopRequested(Exception):
    """Raised between two steps after a signal.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopSignal:
    """Remembers SIGINT and SIGTERM while a `with` block runs.

    The first signal only sets a mark, which the training loop reads by `check`; it also puts the
    former handlers back, so that a second one ends the process at once.

    Example:
        >>> with StopSignal() as stop:
        ...     stop.check()  # raises StopRequested once a signal has come
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._received: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        # Python lets only the main thread set handlers; elsewhere the caller's own stay.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def listen_again(self) -> None:
        """Takes the signals back from TensorFlow, which takes SIGTERM to itself in a cluster."""
        for number in self._former:
            signal.signal(number, self._handle)

    @property
    def received(self) -> int:
        """The number of the signal that has come; 0 before one has."""
        return self._received or 0

    def check(self) -> None:
        """Raises StopRequested if a signal has come."""
        if self._received is not None:
            raise StopRequested(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()
        print("\nstopping after this step (once more: at once)", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
