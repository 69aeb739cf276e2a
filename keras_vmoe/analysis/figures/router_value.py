"""What the routers are worth, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.router_values import RouterValue

_SERIES = {False: "this router alone", True: "this router and all below"}
_COLOURS = {False: canvas.EIGHT_COLOURS[4], True: canvas.EIGHT_COLOURS[5]}


def plot_router_value(value: RouterValue, path: str | Path) -> Figure:
    """Draws the accuracy that is left when routers are replaced by random ones.

    Args:
        value: what `analysis.router_value` measured.
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure: means over the random draws, and each draw as a dot.

    Raises:
        ValueError: no measurement.

    Example:
        >>> import tempfile
        >>> from keras_vmoe import analysis
        >>> draws = [analysis.RouterDraw("block_1", below, 0, 0.8) for below in (False, True)]
        >>> path = Path(tempfile.mkdtemp()) / "router_value.png"
        >>> figure = plot_router_value(analysis.RouterValue(0.9, draws), path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'block_1,alone,0,0.8,0.1,0.9'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on the value of the routers.
    """
    require(bool(value.draws), "value must hold at least one draw. Received: none")
    names = list(dict.fromkeys(draw.layer for draw in value.draws))
    figure = canvas.new_figure(max(5.0, 2.0 + 0.5 * len(names)), 3.6)
    axis = figure.subplots()
    whole = f"trained routers: {value.accuracy:.1%}"
    axis.axhline(100 * value.accuracy, color="black", linestyle=":", linewidth=1.2, label=whole)
    for index, (below, label) in enumerate(_SERIES.items()):
        found = [
            [d.accuracy for d in value.draws if (d.layer, d.below) == (n, below)] for n in names
        ]
        places = np.arange(len(names)) + (index - 0.5) * 0.12
        style = {"color": _COLOURS[below], "marker": canvas.MARKERS[index]}
        for place, accuracies in zip(places, found, strict=True):
            dots = [place] * len(accuracies)
            axis.plot(dots, 100 * np.array(accuracies), ".", color=_COLOURS[below], alpha=0.5)
        means = [100 * np.mean(accuracies) for accuracies in found]
        axis.plot(places, means, label=label, markersize=6, linewidth=1.2, **style)
    titles = [canvas.layer_title(name) for name in names]
    slanted = {"rotation": 45, "ha": "right"} if len(titles) > 6 else {}
    axis.set_xticks(range(len(names)), titles, **slanted)
    axis.set_xlim(-0.5, len(names) - 0.5)
    canvas.plain_axes(axis)
    axis.set_xlabel("MoE layer whose router is made random", fontsize=9)
    axis.set_ylabel("accuracy (%)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title("What the routers are worth", fontsize=11)
    rows = [
        {
            "layer": draw.layer,
            "replaced": "and_below" if draw.below else "alone",
            "draw": draw.draw,
            "accuracy": draw.accuracy,
            "drop": value.accuracy - draw.accuracy,
            "trained_accuracy": value.accuracy,
        }
        for draw in value.draws
    ]
    canvas.save(figure, path, rows)
    return figure
