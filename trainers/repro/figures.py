"""The pictures of `keras-vmoe repro vmoe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.paired import estimate
from keras_vmoe.trainers.repro.vmoe import (
    CAPACITY_FACTORS,
    DENSE,
    PRIORITY,
    SHOTS,
    SPARSE,
    VANILLA,
    Measured,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    DENSE: "dense",
    SPARSE: "sparse, C=2",
    VANILLA: "sparse, C=1.05",
    PRIORITY: "sparse, batch priority, C=0.8",
}
_COLOURS = {
    DENSE: canvas.DENSE,
    SPARSE: canvas.SPARSE,
    VANILLA: canvas.EIGHT_COLOURS[1],
    PRIORITY: canvas.EIGHT_COLOURS[2],
}


def plot_vmoe(found: Measured, path: str | Path) -> None:
    """Draws the three panels: the twins, accuracy against capacity, few-shot transfer.

    Args:
        found: what was measured.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(13.5, 4.0)
    twins, capacity, few_shot = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    rows = [
        *_draw_twins(twins, found),
        *_draw_capacity(capacity, found),
        *_draw_few_shot(few_shot, found),
    ]
    for axis in (twins, capacity, few_shot):
        canvas.plain_axes(axis)
    count = len(found.seeds)
    figure.suptitle(f"V-MoE in miniature on Fashion-MNIST: {count} seeds, standard errors")
    canvas.save(figure, path, rows)


def _row(panel: str, series: str, x: Any, values: list[float]) -> dict[str, Any]:
    mean = estimate(values)
    return {
        "panel": panel,
        "series": series,
        "x": x,
        "accuracy": mean.mean,
        "standard_error": mean.error,
        "seeds": mean.count,
    }


def _draw_twins(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for place, (kind, values) in enumerate(found.accuracy.items()):
        row = _row("twins", _NAMES[kind], found.macs[kind] / 1e6, values)
        rows.append(row)
        error = 100 * np.nan_to_num(row["standard_error"])
        style = {"color": _COLOURS[kind], "capsize": 4, "marker": "o", "markersize": 7}
        axis.errorbar(place, 100 * row["accuracy"], error, **style)
        axis.plot([place + 0.12] * len(values), [100 * v for v in values], "_", color="#606060")
    labels = [f"{_NAMES[kind]}\n{found.macs[kind] / 1e6:.3g} MMACs" for kind in found.accuracy]
    labels = [label.replace("sparse, ", "sparse,\n") for label in labels]
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    axis.set_title("equal steps, equal data", fontsize=10)
    return rows


def _draw_capacity(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for name, label, colour in (
        ("bpr", "batch priority", canvas.SPARSE),
        ("vanilla", "vanilla", canvas.EIGHT_COLOURS[1]),
    ):
        line = [_row("capacity", label, c, found.swept(name, c)) for c in CAPACITY_FACTORS]
        rows += line
        axis.errorbar(
            [row["x"] for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * np.nan_to_num(row["standard_error"]) for row in line],
            color=colour,
            marker="o",
            capsize=3,
            label=label,
        )
    dense = estimate(found.accuracy[DENSE])
    axis.axhline(100 * dense.mean, color=canvas.DENSE, linestyle=":", label="dense twin")
    axis.set_xlabel("capacity factor C at inference", fontsize=9)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    axis.set_title("the same weights, fewer slots", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return rows


def _draw_few_shot(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for kind in (DENSE, SPARSE):
        label = _NAMES[kind]
        line = [_row("few-shot", label, n, found.few_shot[kind, n]) for n in SHOTS]
        rows += line
        axis.errorbar(
            [row["x"] for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * np.nan_to_num(row["standard_error"]) for row in line],
            color=_COLOURS[kind],
            marker="o",
            capsize=3,
            label=label,
        )
    axis.set_xscale("log")
    axis.set_xticks(SHOTS, [str(n) for n in SHOTS])
    axis.minorticks_off()
    axis.set_xlabel(f"examples per class of {found.few_shot_data}", fontsize=9)
    axis.set_ylabel("accuracy (%)", fontsize=9)
    axis.set_title("frozen features, linear classifier", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return rows
