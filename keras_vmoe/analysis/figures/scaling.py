"""The cost of the MoE layer, and of a model, when one thing at a time changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "experts": "experts (E)",
    "selected": "choices per token (k)",
    "images_per_group": "images of a group",
    "capacity_factor": "capacity factor (C)",
    "image_size": "image size (pixels)",
    "batch": "images of a batch",
}
_COLOURS = tuple(canvas.EIGHT_COLOURS[i] for i in (5, 4, 2, 6))
_PANELS_IN_A_ROW = 3
_COLUMNS = (
    *("subject", "pass", "axis", "value", "experts", "selected", "images_per_group"),
    *("capacity_factor", "image_size", "batch", "tokens", "kept_share", "predicted"),
)


def plot_scaling(rows: Sequence[Mapping[str, Any]], path: str | Path, subtitle: str = "") -> Figure:
    """Draws measured costs against each thing that was varied, and what FLOPs predict.

    A panel for each thing; a line for the layer and for the model, in each pass. A cost is a time
    over that of the dense twin at the base of the grid; the thin line with open markers is the same
    in CPU-seconds, which other work on the machine disturbs less. The broken line is the FLOPs over
    those of that twin: nothing of it is fitted. A layer's passes share it, as a backward pass has
    twice the FLOPs of a forward pass in both. Axes are logarithmic: a straight line is a power.

    Args:
        rows: of `keras-vmoe benchmark scaling`: mappings with `subject`, `pass`, `axis`, `value`,
            `predicted`, `relative` with `wall` and `cpu`, and where each was measured.
        path: the picture's file; the data goes beside it as CSV.
        subtitle: below the title, such as the base of the grid.

    Returns:
        The figure.

    Raises:
        ValueError: no rows.

    Example:

    >>> import tempfile
    >>> line = {"subject": "layer", "pass": "forward", "axis": "batch"}
    >>> rows = [
    ...     {**line, "value": b, "batch": b, "predicted": b / 8, "relative": {"wall": b / 7}}
    ...     for b in (1, 8)
    ... ]
    >>> path = Path(tempfile.mkdtemp()) / "scaling.png"
    >>> len(plot_scaling(rows, path).axes), path.exists()
    (1, True)
    """
    require(bool(rows), "rows must hold at least one row. Received: none")
    names = list(dict.fromkeys(row["axis"] for row in rows))
    curves = list(dict.fromkeys((row["subject"], row["pass"]) for row in rows))
    columns = min(_PANELS_IN_A_ROW, len(names))
    lines = -(-len(names) // columns)
    figure = canvas.new_figure(0.9 + 3.2 * columns, 1.8 + 2.7 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    entries: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=False):
        panel = [row for row in rows if row["axis"] == name]
        for index, curve in enumerate(curves):
            line = [row for row in panel if (row["subject"], row["pass"]) == curve]
            if line:
                entries |= _draw(axis, sorted(line, key=lambda row: row["value"]), index)
        _finish(axis, name, [row["value"] for row in panel])
    for axis in axes[len(names) :]:
        axis.remove()
    for axis in axes[: len(names) : columns]:
        axis.set_ylabel("time / dense twin's at the base", fontsize=9)
    place = {"loc": "outside lower center", "ncols": 3, "fontsize": 8, "frameon": False}
    figure.legend(list(entries.values()), list(entries), **place)
    title = "What the sparse layer costs"
    figure.suptitle(f"{title}\n{subtitle}" if subtitle else title, fontsize=11)
    canvas.save(figure, path, [_flat(row) for row in rows])
    return figure


def _draw(axis: Axes, line: list[Mapping[str, Any]], index: int) -> dict[str, Any]:
    """Draws what was measured and predicted, and returns what the legend names."""
    subject, mode = line[0]["subject"], line[0]["pass"]
    values = [row["value"] for row in line]
    style = {"color": _COLOURS[index % len(_COLOURS)], "linewidth": 1.3}
    measured = axis.plot(
        values,
        [_number(row["relative"].get("wall")) for row in line],
        marker=canvas.MARKERS[index % len(canvas.MARKERS)],
        markersize=5,
        label=f"{subject}, {mode}",
        **style,
    )
    # The passes of a layer share their prediction, but for how many choices noise lets them keep.
    label = f"{subject}: FLOPs"
    colour = "black" if subject == "layer" else style["color"]
    known = [drawn.get_label() for drawn in axis.get_lines()]
    predicted = [row["predicted"] for row in line]
    found = {f"{subject}, {mode}": measured[0]}
    style = {"color": style["color"], "linewidth": 0.8, "linestyle": ":"}
    (thin,) = axis.plot(
        values,
        [_number(row["relative"].get("cpu")) for row in line],
        marker=measured[0].get_marker(),
        markersize=5,
        markerfacecolor="white",
        label=f"{subject}, {mode}, CPU-seconds",
        **style,
    )
    found[thin.get_label()] = thin
    if label not in known:
        drawn = axis.plot(values, predicted, color=colour, linestyle="--", label=label)
        found[label] = drawn[0]
    return found


def _number(ratio: float | None) -> float:
    """A gap in the line where a clock stood still."""
    return math.nan if ratio is None else ratio


def _finish(axis: Axes, name: str, values: Sequence[float]) -> None:
    """Logarithmic axes whose ticks are the values, written as they are."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.xaxis.set_minor_locator(NullLocator())
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel(_LABELS.get(name, name), fontsize=9)
    axis.tick_params(labelleft=True)
    canvas.plain_axes(axis)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for CSV."""
    flat = {name: row.get(name) for name in _COLUMNS}
    return flat | {f"relative_{clock}": row["relative"].get(clock) for clock in ("wall", "cpu")}
