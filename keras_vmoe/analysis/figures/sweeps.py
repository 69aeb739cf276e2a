"""Accuracy over the number of experts, the choices per token and the sparse blocks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.run_summary import RunSummary, label_of, mean_and_error, varying
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEPT = {
    "num_experts": "experts of a sparse block (E)",
    "num_selected": "choices per token (k)",
    "placement": "sparse blocks",
}
# Letters of a line of the legend, and inches of one, that a panel has room for.
_LETTERS, _LINE = 44, 0.14


def swept(runs: Sequence[RunSummary]) -> list[str]:
    """Returns those of the swept arguments in which the sparse runs differ.

    Args:
        runs: finished runs.
    """
    return [name for name in SWEPT if name in varying([run for run in runs if run.sparse])]


def plot_sweeps(runs: Sequence[RunSummary], path: str | Path) -> Figure:
    """Draws accuracy over the number of experts, k and placement, whichever the runs vary.

    Points are means over runs that are alike, such as several seeds, with their standard error.
    A line joins runs that are alike in everything else. Dense runs are a dotted line.

    Args:
        runs: finished runs.
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure, a panel for each argument that varies.

    Raises:
        ValueError: sparse runs that differ in none of the arguments.

    Example:
        >>> import tempfile
        >>> runs = [
        ...     RunSummary(str(k), True, 0.9, 1e12, 60.0, arguments={"num_selected": k})
        ...     for k in (1, 2)
        ... ]
        >>> path = Path(tempfile.mkdtemp()) / "sweeps.png"
        >>> figure = plot_sweeps(runs, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'num_selected,1,,1,0.9,'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 3 and appendix on ablations.
    """
    names = swept(runs)
    require(
        bool(names),
        f"runs must hold sparse ones that differ in one of {', '.join(SWEPT)}. Received: none",
    )
    sparse = [run for run in runs if run.sparse]
    dense = [run.accuracy for run in runs if not run.sparse]
    rows = list(_rows(sparse, names))
    panels = {name: [row for row in rows if row["argument"] == name] for name in names}
    lines = max(
        sum(_wrapped(label).count("\n") + 1 for label in _settings(p)) for p in panels.values()
    )
    figure = canvas.new_figure(1.0 + 3.4 * len(names), 3.9 + _LINE * (lines + bool(dense)))
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        _draw(axis, points)
        if dense:
            label = f"dense: {np.mean(dense):.1%}"
            axis.axhline(100 * np.mean(dense), color="black", linestyle=":", label=label)
        axis.set_xlabel(SWEPT[name], fontsize=9)
    axes[0].set_ylabel("accuracy (%)", fontsize=9)
    _add_legends(figure, axes)
    figure.suptitle("Accuracy by the shape of the sparse blocks", fontsize=11)
    canvas.save(figure, path, rows)
    return figure


def _rows(runs: list[RunSummary], names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each point: an argument, its value, and the setting of all others."""
    all_varying = varying(runs)
    for name in names:
        others = [other for other in all_varying if other != name]
        groups: dict[tuple[str, str], list[RunSummary]] = {}
        for run in sorted(runs, key=lambda run: _place(run, name)):
            key = (label_of(run, others), str(run.arguments[name]))
            groups.setdefault(key, []).append(run)
        for (setting, value), group in groups.items():
            mean, error = mean_and_error([run.accuracy for run in group])
            yield {
                "argument": name,
                "value": value,
                "setting": setting,
                "runs": len(group),
                "accuracy": mean,
                "standard_error": error,
            }


def _place(run: RunSummary, name: str) -> tuple[float, str]:
    """By number; placements by the number of their sparse blocks."""
    value = run.arguments["sparse_blocks" if name == "placement" else name]
    return float(value), str(run.arguments[name])


def _settings(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["setting"] for row in rows))


def _wrapped(setting: str) -> str:
    return "\n".join(textwrap.wrap(setting, _LETTERS))


def _add_legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """Puts a legend below each panel, however low the labels of its axis reach."""
    from matplotlib.transforms import ScaledTranslation

    figure.draw_without_rendering()
    for axis in axes:
        if axis.get_legend_handles_labels()[1]:
            inches = (axis.get_tightbbox().y0 - axis.bbox.y0) / figure.dpi
            below = axis.transAxes + ScaledTranslation(0, inches, figure.dpi_scale_trans)
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
            axis.legend(fontsize=7, frameon=False, labelspacing=0.3, **place)


def _draw(axis: Axes, rows: list[dict[str, Any]]) -> None:
    values = list(dict.fromkeys(row["value"] for row in _by_place(rows)))
    for index, setting in enumerate(_settings(rows)):
        line = [row for row in rows if row["setting"] == setting]
        colour = canvas.EIGHT_COLOURS[(5, 4, 2, 6, 0, 1, 7, 3)[index % 8]]
        axis.errorbar(
            [values.index(row["value"]) for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * np.nan_to_num(row["standard_error"]) for row in line],
            color=colour,
            marker=canvas.MARKERS[index % 8],
            markersize=5,
            linewidth=1.2,
            capsize=3,
            label=_wrapped(setting) or None,
        )
    axis.set_xticks(range(len(values)), values)
    axis.set_xlim(-0.4, len(values) - 0.6)
    canvas.plain_axes(axis)


def _by_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by their value as a number where it is one; else in the order of the rows."""
    if all(row["value"].isdigit() for row in rows):
        return sorted(rows, key=lambda row: int(row["value"]))
    return rows
