"""The picture of `keras-vmoe repro retokenization`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.paired import estimate
from keras_vmoe.trainers.repro.retokenization import FULL, SCHEDULES, Measured

_COLOURS = dict(
    zip(SCHEDULES, (canvas.DENSE, *(canvas.EIGHT_COLOURS[n] for n in (5, 2, 6))), strict=True)
)


def plot_retokenization(found: Measured, path: str | Path) -> None:
    """Draws accuracy against steps and against training FLOPs, as figure 4 of the paper.

    Args:
        found: what was measured.
        path: the picture's file; the data goes beside it as CSV.
    """
    rows = curve_rows(found)
    figure = canvas.new_figure(10.5, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, words in (
        (axes[0], "step", "step"),
        (axes[1], "tflops", "training compute so far (TFLOPs)"),
    ):
        for number, schedule in enumerate(SCHEDULES):
            line = [row for row in rows if row["series"] == schedule]
            axis.errorbar(
                [row[name] for row in line],
                [100 * row["accuracy"] for row in line],
                [100 * np.nan_to_num(row["standard_error"]) for row in line],
                capsize=3,
                color=_COLOURS[schedule],
                marker=canvas.MARKERS[number],
                label=_label(found, schedule),
            )
        axis.set_xlim(0)
        axis.set_xlabel(words, fontsize=9)
        canvas.plain_axes(axis)
    axes[0].set_ylabel("held-out accuracy, on the tokens of the model (%)", fontsize=9)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        ncols=4,
        loc="outside lower center",
    )
    figure.suptitle(
        "Progressive re-tokenization in miniature on Fashion-MNIST: "
        f"{len(found.seeds)} seeds, standard errors",
        fontsize=11,
    )
    canvas.save(figure, path, rows)


def _label(found: Measured, schedule: str) -> str:
    if schedule == FULL:
        return "all tokens throughout"
    ends = " and ".join(f"{end:.0%}" for end in SCHEDULES[schedule])
    return f"coarse until {ends} (FLOPs -{found.saved[schedule]:.0%})"


def curve_rows(found: Measured) -> list[dict[str, Any]]:
    """The points of the picture: each evaluation of each schedule."""
    rows = []
    for schedule in SCHEDULES:
        for points in zip(*found.curves[schedule], strict=True):
            step = points[0][0]
            mean = estimate([accuracy for _, accuracy in points])
            rows.append(
                {
                    "series": schedule,
                    "step": step,
                    "tflops": found.flops(schedule, step) / 1e12,
                    "accuracy": mean.mean,
                    "standard_error": mean.error,
                    "seeds": mean.count,
                }
            )
    return rows
