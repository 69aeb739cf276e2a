"""What every table of `keras-vmoe benchmark` begins and ends with."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_vmoe.trainers.benchmark import environment
from keras_vmoe.trainers.errors import UsageError


def check(json_file: str | None) -> None:
    """Finds before the long work what would make it useless.

    Args:
        json_file: where the results are to be written, if anywhere.

    Raises:
        UsageError: no file can be written there.
        ValueError: another backend than TensorFlow.
    """
    if json_file is not None:
        path = Path(json_file).absolute()
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                can_be = not path.is_dir()
        except OSError:
            can_be = False
        if not can_be:
            raise UsageError(f"--json={json_file}: no file can be written there; name another")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "keras-vmoe benchmark measures TensorFlow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()!r}; run it with KERAS_BACKEND=tensorflow"
        )


def begin(name: str, settings: Any) -> dict[str, Any]:
    """Says where the work is done, and begins the report of it.

    Args:
        name: of the table.
        settings: a dataclass.

    Returns:
        The report, to which the rows are added.
    """
    print(environment.describe())
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "versions": environment.versions(),
        "load_average": {"before": environment.load_average()},
        "settings": dataclasses.asdict(settings),
    }


def end(report: dict[str, Any], json_file: str | None) -> int:
    """Says how busy the machine was, and writes the report.

    Args:
        report: begun by `begin`.
        json_file: where to, if anywhere.

    Returns:
        The exit code.
    """
    report["load_average"]["after"] = environment.load_average()
    before, after = (report["load_average"][when][0] for when in ("before", "after"))
    print(
        f"\nload average {before:.2f} before, {after:.2f} after; this run itself adds to the latter"
    )
    if json_file is not None:
        Path(json_file).write_text(json.dumps(report, indent=1) + "\n")
        print(f"written: {json_file}")
    return 0
