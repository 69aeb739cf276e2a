"""How many experts work on one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.routing_statistics import LayerStatistics


def plot_experts_per_image(
    statistics: Mapping[str, LayerStatistics],
    path: str | Path,
    max_layers: int = canvas.MAX_LAYERS,
) -> Figure:
    """Draws, for some MoE layers, how many experts take a patch of an image.

    Args:
        statistics: MoE layer name to its statistics, in order (`RoutingStatistics.layers`).
        path: the picture's file; the data goes beside it as CSV.
        max_layers: how many layers are drawn, the first and the last among them; the CSV has all.

    Returns:
        The figure.

    Raises:
        ValueError: no layer.

    Example:
        >>> import tempfile
        >>> from keras_vmoe import analysis
        >>> expert = np.arange(64).reshape(4, 16, 1) % 8
        >>> record = analysis.RoutingRecord(
        ...     layer="block_1",
        ...     router="top_k",
        ...     expert=expert,
        ...     weight=np.full((4, 16, 1), 0.5),
        ...     kept=expert != 3,
        ...     slot=np.zeros((4, 16, 1), int),
        ...     gates=np.full((4, 16, 8), 1 / 8),
        ...     slots=10,
        ... )
        >>> statistics = analysis.RoutingStatistics(num_classes=2)
        >>> statistics.update({"block_1": record}, labels=[0, 0, 1, 1])
        >>> path = Path(tempfile.mkdtemp()) / "experts_per_image.png"
        >>> figure = plot_experts_per_image(statistics.layers, path)
        >>> path.with_suffix(".csv").exists()
        True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on the experts of an image.
    """
    require(bool(statistics), "statistics must hold at least one MoE layer. Received: none")
    names = canvas.spread(list(statistics), max_layers)
    figure = canvas.new_figure(5.2, 3.4)
    axis = figure.subplots()
    for index, name in enumerate(names):
        counts = statistics[name].experts_per_image
        numbers = np.arange(len(counts))
        label = f"{canvas.layer_title(name)}: {_mean(counts):.1f} in the mean"
        colour = canvas.EIGHT_COLOURS[(4, 0, 2, 6, 5, 1, 7, 3)[index % 8]]
        style = {"color": colour, "marker": canvas.MARKERS[index % 8], "markersize": 4}
        axis.plot(numbers, 100 * counts / counts.sum(), label=label, linewidth=1.2, **style)
    canvas.plain_axes(axis)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("experts that took a patch of the image", fontsize=9)
    axis.set_ylabel("% of images", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title("How many experts work on one image", fontsize=11)
    rows = [
        {"layer": name, "experts": number, "images": int(count), "share": count / layer.num_images}
        for name, layer in statistics.items()
        for number, count in enumerate(layer.experts_per_image)
    ]
    canvas.save(figure, path, rows)
    return figure


def _mean(counts: np.ndarray) -> float:
    return float((np.arange(len(counts)) * counts).sum() / counts.sum())
