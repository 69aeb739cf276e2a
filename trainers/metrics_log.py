"""`metrics.jsonl`: what a run measured, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """The measurements of a run, in a file that is consistent after any kind of stop.

    Every row is one line, written by one call and flushed. A row holds at least `step` (int),
    `split` ("train" or "eval"), `loss` and `accuracy`; the routing metrics of each MoE layer
    follow under the layer's name, as in `fit`. Numbers that JSON lacks (NaN, infinity) are null.

    Args:
        path: the file; it need not exist yet.

    Example:
        >>> import tempfile
        >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> log.append({"step": 10, "split": "train", "loss": 0.5, "accuracy": 0.75})
        >>> log.append({"step": 20, "split": "train", "loss": 0.25, "accuracy": 1.0})
        >>> log.keep_until(10)
        >>> [row["step"] for row in log.rows()]
        [10]
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row.

        Args:
            row: names to numbers, strings or None.

        Raises:
            OSError: if the file cannot be written; the rows before stay readable.
        """
        line = json.dumps({name: _plain(value) for name, value in row.items()}) + "\n"
        try:
            # Unbuffered: the line goes out in one write; a part of one is cut off at the resume.
            with open(self.path, "ab", buffering=0) as file:
                whole = file.write(line.encode()) == len(line.encode())
        except OSError as error:
            raise OSError(
                f"cannot write to {self.path} ({error.strerror}); free some space"
            ) from error
        if not whole:
            raise OSError(f"no space left for a row of {self.path}; free some space")

    def rows(self) -> list[dict[str, Any]]:
        """Returns the complete rows of the file; a line that was cut short ends them."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            row = _read(line)
            if row is None:
                break
            rows.append(row)
        return rows

    def keep_until(self, step: int) -> None:
        """Drops the rows after a step, as a run does that resumes from it.

        Args:
            step: the last step whose rows stay.
        """
        if not self.path.exists():
            return
        kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(kept, encoding="utf-8")
        os.replace(temporary, self.path)

    def last(self, split: str, step: int | None = None) -> dict[str, Any] | None:
        """Returns the last row of a split, or None.

        Args:
            split: "train" or "eval".
            step: only a row of this step counts.
        """
        rows = [row for row in self.rows() if row["split"] == split]
        rows = [row for row in rows if step is None or row["step"] == step]
        return rows[-1] if rows else None


def _read(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and {"step", "split"} <= row.keys() else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    return float(f"{number:.7g}") if math.isfinite(number) else None
