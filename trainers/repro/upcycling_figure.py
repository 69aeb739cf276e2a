"""The picture of `keras-vmoe repro upcycling`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.paired import estimate
from keras_vmoe.trainers.repro.upcycling import (
    BASE,
    CONTINUED,
    DENSE,
    NAMES,
    SCRATCH,
    UPCYCLED,
    Measured,
)

_STYLES = {
    DENSE: {"color": canvas.DENSE, "marker": "s"},
    UPCYCLED: {"color": canvas.SPARSE, "marker": "o"},
    SCRATCH: {"color": canvas.EIGHT_COLOURS[1], "marker": "^"},
}
# The curve from scratch comes from far below, where nothing is to be compared.
_POINTS_BELOW = 4.0


def plot_upcycling(found: Measured, path: str | Path) -> None:
    """Draws accuracy against extra training FLOPs.

    Args:
        found: what was measured.
        path: the picture's file; the data goes beside it as CSV.
    """
    rows = curve_rows(found)
    figure = canvas.new_figure(7.0, 4.4)
    axis = figure.subplots()
    start = 100 * rows[0]["accuracy"]
    style = {"color": "#606060", "linestyle": ":", "linewidth": 1}
    axis.axhline(start, **style)
    axis.plot(0, start, marker="*", markersize=13, label=NAMES[BASE], clip_on=False, **style)
    for kind in CONTINUED:
        line = [row for row in rows if row["series"] == NAMES[kind]]
        axis.errorbar(
            [row["extra_tflops"] for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * np.nan_to_num(row["standard_error"]) for row in line],
            capsize=3,
            label=NAMES[kind],
            **_STYLES[kind],
        )
    ends = [100 * estimate(found.accuracy(kind)).mean for kind in CONTINUED]
    axis.set_ylim(min(start, *ends) - _POINTS_BELOW, max(start, *ends) + 1)
    axis.set_xlim(0)
    share = found.lengths.flops(DENSE) / found.lengths.flops(BASE)
    cost = f"extra training compute (TFLOPs; all of it is {share:.0%} of the dense model's)"
    axis.set_xlabel(cost, fontsize=9)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    count = len(found.seeds)
    figure.suptitle(
        f"Sparse upcycling in miniature on Fashion-MNIST: {count} seeds, standard errors",
        fontsize=11,
    )
    axis.legend(fontsize=8, frameon=False, loc="lower left")
    canvas.plain_axes(axis)
    canvas.save(figure, path, rows)


def curve_rows(found: Measured) -> list[dict[str, Any]]:
    """The points of the picture: the dense model at 0, then each evaluation of each curve."""
    rows = [_row(BASE, 0, 0.0, found.accuracy(BASE))]
    for kind in CONTINUED:
        for points in zip(*found.curves[kind], strict=True):
            step = points[0][0]
            tflops = found.lengths.flops(kind, step) / 1e12
            rows.append(_row(kind, step, tflops, [accuracy for _, accuracy in points]))
    return rows


def _row(kind: str, step: int, tflops: float, values: list[float]) -> dict[str, Any]:
    mean = estimate(values)
    return {
        "series": NAMES[kind],
        "step": step,
        "extra_tflops": tflops,
        "accuracy": mean.mean,
        "standard_error": mean.error,
        "seeds": mean.count,
    }
