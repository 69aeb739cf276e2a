"""What every table of `keras-vmoe benchmark` begins and ends with."""

from __future__ import annotations

import dataclasses
import importlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from keras_vmoe.trainers.benchmark import against, environment
from keras_vmoe.trainers.errors import UsageError

_PICTURES = (".png", ".pdf", ".svg")


class Earlier(NamedTuple):
    """The run that this one is held against.

    Attributes:
        file: where it was read from.
        report: what was read.
    """

    file: str
    report: dict[str, Any]


def define_flags(values: flags.FlagValues, plot: bool = False) -> None:
    """Adds the flags that every table has.

    Args:
        values: the flags of the table.
        plot: whether it can be drawn.
    """
    texts = {
        "json": "A file to write the results to, as JSON.",
        "against": "The JSON file of an earlier run, to compare this one with.",
    }
    if plot:
        texts["plot"] = "A picture to draw, such as speed.png; its data goes beside it as CSV."
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)


def check(table: str, values: flags.FlagValues) -> Earlier | None:
    """Finds before the long work what would make it useless.

    Args:
        table: its name.
        values: the flags that `define_flags` added.

    Returns:
        The earlier run, if one is given.

    Raises:
        UsageError: no file can be written where one is wanted, or the earlier run is none of this
            table.
        ImportError: a picture is wanted and matplotlib is not installed.
        ValueError: another backend than TensorFlow.
    """
    _require_writable("json", values.json)
    if "plot" in values and values.plot is not None:
        _require_plot(values.plot)
    earlier = None
    if values.against is not None:
        earlier = Earlier(values.against, against.read(table, values.against))
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "keras-vmoe benchmark measures TensorFlow. Received: "
            f"KERAS_BACKEND={keras.backend.backend()!r}; run it with KERAS_BACKEND=tensorflow"
        )
    return earlier


def _require_plot(file: str) -> None:
    if Path(file).suffix not in _PICTURES:
        raise UsageError(f"--plot={file}: a picture's name ends in {', '.join(_PICTURES)}")
    _require_writable("plot", file)
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; --plot needs: pip install 'keras-vmoe[train]'"
        ) from None


def _require_writable(flag: str, file: str | None) -> None:
    if file is None:
        return
    path = Path(file).absolute()
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            can_be = not path.is_dir()
    except OSError:
        can_be = False
    if not can_be:
        raise UsageError(f"--{flag}={file}: no file can be written there; name another")


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


def end(report: dict[str, Any], json_file: str | None, earlier: Earlier | None = None) -> int:
    """Says how busy the machine was and how the run compares, and writes the report.

    Args:
        report: begun by `begin`.
        json_file: where to, if anywhere.
        earlier: the run that it is held against.

    Returns:
        The exit code.
    """
    report["load_average"]["after"] = environment.load_average()
    before, after = (report["load_average"][when][0] for when in ("before", "after"))
    print(
        f"\nload average {before:.2f} before, {after:.2f} after; this run itself adds to the latter"
    )
    if earlier is not None:
        report["against"] = against.compare(report, earlier.report, earlier.file)
        print("\n".join(["", *against.lines(report, report["against"])]))
    if json_file is not None:
        Path(json_file).write_text(json.dumps(report, indent=1) + "\n")
        print(f"written: {json_file}")
    return 0
