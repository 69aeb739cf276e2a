"""How full the experts' buffers are, and how much is dropped."""

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

_USE, _EXPERT, _CHOICES, _TOKENS = (canvas.EIGHT_COLOURS[i] for i in (1, 4, 0, 5))


def plot_buffers(statistics: Mapping[str, LayerStatistics], path: str | Path) -> Figure:
    """Draws, for each MoE layer, the slots that are filled and the choices that are dropped.

    Args:
        statistics: MoE layer name to its statistics, in order (`RoutingStatistics.layers`).
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure.

    Raises:
        ValueError: no layer with buffers; soft routing has none.

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
        >>> path = Path(tempfile.mkdtemp()) / "buffers.png"
        >>> figure = plot_buffers(statistics.layers, path)
        >>> path.with_suffix(".csv").exists()
        True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2.4 and appendix.
    """
    statistics = {name: layer for name, layer in statistics.items() if layer.router != "soft"}
    require(
        bool(statistics),
        "statistics must hold a MoE layer with buffers; soft routing has none. Received: no other",
    )
    wide = max(3.4, 1.2 + 0.45 * len(statistics))
    figure = canvas.new_figure(2 * wide, 3.4)
    use, dropped = figure.subplots(1, 2)
    _draw_use(use, list(statistics.values()))
    _draw_dropped(dropped, list(statistics.values()))
    titles = [canvas.layer_title(name) for name in statistics]
    slanted = {"rotation": 45, "ha": "right"} if len(titles) > 4 else {}
    for axis in (use, dropped):
        axis.set_xticks(range(len(titles)), titles, **slanted)
        axis.set_xlabel("MoE layer", fontsize=9)
        axis.set_ylim(bottom=0)
    figure.suptitle("Use of the experts' buffers", fontsize=11)
    canvas.save(figure, path, list(_rows(statistics)))
    return figure


def _draw_use(axis: Axes, layers: list[LayerStatistics]) -> None:
    places = np.arange(len(layers))
    axis.bar(places, [100 * layer.buffer_use.mean() for layer in layers], 0.7, color=_USE)
    for place, layer in zip(places, layers, strict=True):
        # Side by side in the order of their numbers, so that equal experts do not hide each other.
        x = place + np.linspace(-0.25, 0.25, layer.num_experts)
        axis.plot(x, 100 * layer.buffer_use, ".", color=_EXPERT, markersize=4)
    canvas.plain_axes(axis)
    axis.set_ylabel("slots filled (%)", fontsize=9)
    axis.set_title("bar: mean over experts, dots: each expert", fontsize=8)


def _draw_dropped(axis: Axes, layers: list[LayerStatistics]) -> None:
    places = np.arange(len(layers))
    for shift, name, colour, label in (
        (-0.19, "dropped_choices", _CHOICES, "choices without a slot"),
        (0.19, "dropped_tokens", _TOKENS, "tokens without any expert"),
    ):
        shares = [100 * getattr(layer, name) for layer in layers]
        axis.bar(places + shift, shares, 0.36, color=colour, label=label)
    canvas.plain_axes(axis)
    axis.set_ylabel("dropped (%)", fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    axis.set_title("at inference", fontsize=8)
    axis.margins(y=0.25)


def _rows(statistics: Mapping[str, LayerStatistics]) -> Iterator[dict[str, Any]]:
    for name, layer in statistics.items():
        for expert, use in enumerate(layer.buffer_use):
            yield {
                "layer": name,
                "expert": expert,
                "slots": layer.slots,
                "filled": int(layer.position_count[:, expert].sum()),
                "filled_share": use,
                "layer_filled_share": layer.buffer_use.mean(),
                "layer_dropped_choices": layer.dropped_choices,
                "layer_dropped_tokens": layer.dropped_tokens,
            }
