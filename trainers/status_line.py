"""One line of a terminal that is drawn over and over."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO


class StatusLine:
    """The line, where the stream is a terminal.

    Args:
        stream: where to write; standard error by default.

    Attributes:
        stream: as given.
        is_terminal: whether lines can be drawn over. Elsewhere callers print lines now and then.

    Example:
        >>> StatusLine(sys.stdout).draw("half done")  # nothing, where this is no terminal
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.is_terminal = self.stream.isatty()

    def draw(self, text: str) -> None:
        """Puts a text, as much as fits, in the place of the last one."""
        if self.is_terminal:
            columns = shutil.get_terminal_size().columns
            self.stream.write("\r\x1b[2K" + text[: columns - 1])
            self.stream.flush()

    def clear(self) -> None:
        """Takes the line off the terminal."""
        self.draw("")

    def print(self, text: str) -> None:
        """Prints a line that stays."""
        self.clear()
        print(text, file=self.stream, flush=True)
