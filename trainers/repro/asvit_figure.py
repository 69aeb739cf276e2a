"""The pictures of `keras-vmoe repro asvit`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.asvit import Measured, agreements
from keras_vmoe.trainers.repro.paired import estimate

_STYLES = (
    ("random", slice(None, -1), {"marker": "o", "color": canvas.EIGHT_COLOURS[4]}),
    ("searched", slice(-1, None), {"marker": "*", "color": canvas.SPARSE, "markersize": 13}),
)


def plot_asvit(found: Measured, path: str | Path) -> None:
    """Draws accuracy against each measure, one point a topology.

    Args:
        found: what was measured.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(13.5, 3.9)
    axes = figure.subplots(1, len(found.measures), sharey=True)
    accuracy = 100 * found.means
    errors = 100 * np.nan_to_num([estimate(values).error for values in found.accuracy])
    for axis, (name, one) in zip(axes, agreements(found).items(), strict=True):
        values = found.measures[name]
        for kind, part, style in _STYLES:
            bars = values[part], accuracy[part], errors[part]
            axis.errorbar(*bars, linestyle="", elinewidth=0.7, label=kind, **style)
        canvas.plain_axes(axis)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(name, fontsize=9)
        words = "not measured"
        if one.is_measured:
            words = f"tau {one.tau:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
        axis.set_title(words, fontsize=10)
    axes[0].set_ylabel("held-out accuracy (%)", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, loc="lower left")
    figure.suptitle(
        f"Measures of untrained networks against accuracy after training, {len(found.seeds)} seeds "
        "and standard errors; Kendall's tau with 95% interval, better first",
        fontsize=11,
    )
    rows = [
        {
            "genotype": topology,
            "searched": int(number == len(found.topologies) - 1),
            "accuracy": found.means[number],
            **{name: values[number] for name, values in found.measures.items()},
        }
        for number, topology in enumerate(found.topologies)
    ]
    canvas.save(figure, path, rows)
