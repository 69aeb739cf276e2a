"""Speed of a model at inference against the capacity of its experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = tuple(canvas.EIGHT_COLOURS[i] for i in (5, 4, 2, 6, 0, 1, 3, 7))
_COLUMNS = (
    *("threads", "batch", "capacity_factor", "slots", "kept_share"),
    *("images_per_second", "cpu_ms_per_image", "dense_images_per_second"),
)


def plot_inference_speed(
    rows: Sequence[Mapping[str, Any]], path: str | Path, subtitle: str = ""
) -> Figure:
    """Draws images a second, and the time of the MoE layers alone, against the capacity factor.

    A column of panels for each number of threads, a line for each batch size. Above, the dense
    twin is a dotted line in the colour of its batch. Below, the layers' time is a share of that at
    C = 1, and a dashed line is a time that follows the capacity.

    Args:
        rows: of `keras-vmoe benchmark inference`: mappings with `threads`, `batch`,
            `capacity_factor`, `slots`, `kept_share`, `images_per_second`, `cpu_ms_per_image`,
            `dense_images_per_second`, and `relative` with `wall` and `cpu`.
        path: the picture's file; the data goes beside it as CSV.
        subtitle: below the title, such as the model.

    Returns:
        The figure.

    Raises:
        ValueError: no rows.

    Example:

    >>> import tempfile
    >>> numbers = [(0.5, 130.0, 0.5), (1.0, 100.0, 1.0)]
    >>> common = {"threads": 1, "batch": 8, "slots": 52, "kept_share": 0.9}
    >>> common |= {"cpu_ms_per_image": 9.0, "dense_images_per_second": 120.0}
    >>> rows = [
    ...     {
    ...         **common,
    ...         "capacity_factor": c,
    ...         "images_per_second": speed,
    ...         "relative": {"wall": share},
    ...     }
    ...     for c, speed, share in numbers
    ... ]
    >>> path = Path(tempfile.mkdtemp()) / "speed.png"
    >>> len(plot_inference_speed(rows, path).axes), path.exists()
    (2, True)

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4.3.
    """
    require(bool(rows), "rows must hold at least one row. Received: none")
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    figure = canvas.new_figure(2.6 + 3.4 * len(threads), 6.2)
    axes = figure.subplots(2, len(threads), squeeze=False, sharex=True, sharey="row")
    for column, number in zip(axes.T, threads, strict=True):
        for index, batch in enumerate(batches):
            line = [row for row in rows if (row["threads"], row["batch"]) == (number, batch)]
            _draw(column, sorted(line, key=lambda row: row["capacity_factor"]), batch, index)
        column[0].set_title(f"{number} thread{'s' if number > 1 else ''}", fontsize=10)
        column[1].set_xlabel("slots per choice (capacity factor C)", fontsize=9)
        most = max(row["capacity_factor"] for row in rows)
        style = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 1}
        column[1].plot([0, most], [0, most], **style, label="time that follows C")
    # Once all is drawn: a limit that is set does not follow what comes later.
    for line in axes:
        line[0].set_ylim(bottom=0)
    axes[0, 0].set_xlim(left=0)
    axes[0, 0].set_ylabel("images a second", fontsize=9)
    axes[1, 0].set_ylabel("MoE layers: time / time at C = 1", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    extra, words = axes[1, 0].get_legend_handles_labels()
    place = {"loc": "outside right center", "fontsize": 8, "frameon": False}
    figure.legend([*handles, extra[-1]], [*labels, words[-1]], **place)
    title = "Speed at inference, with batch priority"
    figure.suptitle(f"{title}\n{subtitle}" if subtitle else title, fontsize=11)
    canvas.save(figure, path, [_flat(row) for row in rows])
    return figure


def _draw(axes: Sequence[Axes], line: list[Mapping[str, Any]], batch: int, index: int) -> None:
    capacities = [row["capacity_factor"] for row in line]
    style = {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": canvas.MARKERS[index % len(canvas.MARKERS)],
        "markersize": 5,
        "linewidth": 1.4,
    }
    axes[0].plot(
        capacities,
        [row["images_per_second"] for row in line],
        label=f"batch {batch}",
        **style,
    )
    if line:
        axes[0].axhline(
            line[0]["dense_images_per_second"],
            color=style["color"],
            linestyle=":",
            linewidth=1.2,
            label=f"batch {batch}, dense twin",
        )
    axes[1].plot(capacities, [row["relative"]["wall"] for row in line], **style)
    for axis in axes:
        canvas.plain_axes(axis)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for CSV."""
    ratios = {f"moe_over_c1_{clock}": row["relative"].get(clock) for clock in ("wall", "cpu")}
    return {name: row[name] for name in _COLUMNS} | ratios
