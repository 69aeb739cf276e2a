"""The pictures of `keras-vmoe repro asvit`."""

from __future__ import annotations

from pathlib import Path

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.asvit import Measured, agreements


def plot_asvit(found: Measured, path: str | Path) -> None:
    """Draws accuracy against each measure, one point a topology.

    Args:
        found: what was measured.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(13.5, 3.9)
    axes = figure.subplots(1, len(found.measures), sharey=True)
    accuracy = 100 * found.means
    for axis, (name, one) in zip(axes, agreements(found).items(), strict=True):
        values = found.measures[name]
        axis.plot(values[:-1], accuracy[:-1], "o", color=canvas.EIGHT_COLOURS[4], label="random")
        style = {"color": canvas.EIGHT_COLOURS[5], "markersize": 13}
        axis.plot(values[-1:], accuracy[-1:], "*", label="searched", **style)
        canvas.plain_axes(axis)
        axis.set_xlabel(name, fontsize=9)
        words = "not measured"
        if one.is_measured:
            words = f"tau {one.tau:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
        axis.set_title(words, fontsize=10)
    axes[0].set_ylabel("held-out accuracy (%)", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        "Measures of untrained networks against accuracy after training; Kendall's tau with 95% "
        "interval, better first",
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
