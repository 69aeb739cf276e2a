"""Accuracy of one model against the capacity, the compute and the time of its routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the order of k; batch priority is a full line, vanilla a broken one.
_COLOURS = tuple(canvas.EIGHT_COLOURS[i] for i in (5, 4, 2, 6, 0, 1, 3))
_LINES = {"bpr": "-", "vanilla": "--"}
_NAMES = {"bpr": "batch priority", "vanilla": "vanilla", None: ""}
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def plot_capacity(
    rows: Sequence[Mapping[str, Any]], path: str | Path, subtitle: str = ""
) -> Figure:
    """Draws a sweep: accuracy against capacity factor, measured MACs and measured time.

    A line for each number of choices and each priority. The dense model, if there is one, is a
    dotted line in all panels, with a star at its own cost.

    Args:
        rows: of a sweep, `[row._asdict() for row in evaluation.routing_sweep(...)]`.
        path: the picture's file; the data goes beside it as CSV.
        subtitle: below the title, such as the data and the size of routing groups, which the
            curves depend on.

    Returns:
        The figure; without times it has two panels.

    Raises:
        ValueError: no row of a sparse model.

    Example:

    >>> import tempfile
    >>> names = ("num_selected", "priority", "capacity", "accuracy", "macs", "milliseconds")
    >>> numbers = [(2, "bpr", 0.2, 0.7, 6e6, 0.2), (2, "bpr", 1.0, 0.8, 9e6, 0.3)]
    >>> rows = [dict(zip(names, row), kept_by_layer={}) for row in numbers]
    >>> path = Path(tempfile.mkdtemp()) / "sweep.png"
    >>> len(plot_capacity(rows, path).axes), path.exists()
    (3, True)

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4.3 and its figures of accuracy
    against inference capacity.
    """
    sparse = [row for row in rows if row["priority"] != "dense"]
    require(bool(sparse), "rows must hold at least one of a sparse model. Received: none")
    dense = next((row for row in rows if row["priority"] == "dense"), None)
    timed = all(row["milliseconds"] is not None for row in rows)
    figure = canvas.new_figure(4.0 * (2 + timed), 4.1)
    axes = figure.subplots(1, 2 + timed, squeeze=False, sharey=True)[0]
    scale, prefix = next(
        unit for unit in _UNITS if max(row["macs"] for row in rows) >= unit[0] or unit[0] == 1
    )
    panels = [
        ("capacity", 1.0, "slots per choice (capacity factor C)"),
        ("macs", scale, f"measured {prefix}MACs an image"),
        ("milliseconds", 1.0, "measured milliseconds an image"),
    ]
    for axis, (name, unit, label) in zip(axes, panels, strict=False):
        _draw(axis, sparse, dense, name, unit)
        axis.set_xlabel(label, fontsize=9)
    _log_ticks(axes[0], [row["capacity"] for row in sparse])
    axes[0].set_ylabel("accuracy (%)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    title = "One checkpoint, routed in many ways"
    figure.suptitle(f"{title}\n{subtitle}" if subtitle else title, fontsize=11)
    canvas.save(figure, path, list(_flat(rows)))
    return figure


def _draw(
    axis: Axes,
    rows: Sequence[Mapping[str, Any]],
    dense: Mapping[str, Any] | None,
    name: str,
    unit: float,
) -> None:
    choices = list(dict.fromkeys(row["num_selected"] for row in rows))
    lines = list(dict.fromkeys((row["num_selected"], row["priority"]) for row in rows))
    for k, priority in lines:
        line = [row for row in rows if (row["num_selected"], row["priority"]) == (k, priority)]
        line = sorted(line, key=lambda row: row["capacity"])
        words = ([] if k is None else [f"k = {k}"]) + [_NAMES[priority]]
        axis.plot(
            [row[name] / unit for row in line],
            [100 * row["accuracy"] for row in line],
            color=_COLOURS[choices.index(k) % len(_COLOURS)],
            linestyle=_LINES.get(priority, "-"),
            marker=canvas.MARKERS[choices.index(k) % len(canvas.MARKERS)],
            markerfacecolor=None if priority != "vanilla" else "white",
            markersize=5,
            # Times scatter: the line only tells what belongs together.
            linewidth=0.6 if name == "milliseconds" else 1.4,
            label=", ".join(word for word in words if word) or "sparse",
        )
    if dense is not None:
        level = 100 * dense["accuracy"]
        axis.axhline(
            level, color="black", linestyle=":", linewidth=1.2, label="dense (star: its cost)"
        )
        if dense[name] is not None:
            axis.plot([dense[name] / unit], [level], "k*", markersize=9)
    canvas.plain_axes(axis)


def _log_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Capacities by their ratios, and written as they are."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log")
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16) if t >= min(values) / 1.6]
    axis.xaxis.set_major_locator(FixedLocator([t for t in ticks if t <= max(values) * 1.6]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _flat(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows for CSV: the kept share of each layer in a column of its own."""
    layers = dict.fromkeys(name for row in rows for name in row["kept_by_layer"])
    for row in rows:
        flat = {name: value for name, value in row.items() if name != "kept_by_layer"}
        yield flat | {f"kept:{name}": row["kept_by_layer"].get(name) for name in layers}
