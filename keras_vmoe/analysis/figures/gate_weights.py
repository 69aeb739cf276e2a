"""How decided the routers are: the distribution of the two largest gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.routing_statistics import LayerStatistics

_RANKS = ("largest", "second")
_COLOURS = (canvas.EIGHT_COLOURS[4], canvas.EIGHT_COLOURS[0])
_LINES = ("-", "--")


def plot_gate_weights(
    statistics: Mapping[str, LayerStatistics],
    path: str | Path,
    max_layers: int = canvas.MAX_LAYERS,
) -> Figure:
    """Draws, for some MoE layers, how large the two largest gates of a token are.

    A router that does not tell experts apart gives every gate 1/E (the dotted line); one that is
    decided gives one near 1 and one near 0. Gates are those of the softmax over all experts,
    before any renormalisation.

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
        >>> path = Path(tempfile.mkdtemp()) / "gate_weights.png"
        >>> figure = plot_gate_weights(statistics.layers, path)
        >>> path.with_suffix(".csv").exists()
        True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on the routing weights.
    """
    require(bool(statistics), "statistics must hold at least one MoE layer. Received: none")
    names = canvas.spread(list(statistics), max_layers)
    figure = canvas.new_figure(0.8 + 2.7 * len(names), 3.0)
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        _draw(axis, statistics[name])
        axis.set_title(canvas.layer_title(name), fontsize=9)
        axis.set_xlabel("gate (0 to 1)", fontsize=8)
    axes[0].set_ylabel("% of tokens", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle("How large the two largest gates of a token are", fontsize=11)
    canvas.save(figure, path, list(_rows(statistics)))
    return figure


def _draw(axis: Axes, layer: LayerStatistics) -> None:
    bins = layer.gate_histogram.shape[1]
    edges = np.linspace(0, 1, bins + 1)
    for rank, counts in enumerate(layer.gate_histogram):
        label = f"{_RANKS[rank]} gate"
        style = {"color": _COLOURS[rank], "linestyle": _LINES[rank], "linewidth": 1.4}
        axis.stairs(100 * counts / layer.num_tokens, edges, label=label, **style)
    uniform = 1 / layer.num_experts
    axis.axvline(uniform, color="#606060", linestyle=":", linewidth=1.2, label="1/E")
    canvas.plain_axes(axis)
    axis.set_xlim(0, 1)


def _rows(statistics: Mapping[str, LayerStatistics]) -> Iterator[dict[str, Any]]:
    for name, layer in statistics.items():
        bins = layer.gate_histogram.shape[1]
        for rank, counts in enumerate(layer.gate_histogram):
            for index, count in enumerate(counts):
                yield {
                    "layer": name,
                    "rank": rank + 1,
                    "gate_from": index / bins,
                    "gate_to": (index + 1) / bins,
                    "tokens": int(count),
                    "share": count / layer.num_tokens,
                    "mean_gate": layer.mean_gates[rank],
                }
