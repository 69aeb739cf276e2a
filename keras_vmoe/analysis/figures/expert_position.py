"""Heat maps of experts and places in the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.expert_class import MEANINGS
from keras_vmoe.analysis.figures.ordering import expert_order
from keras_vmoe.analysis.routing_statistics import VALUES
from keras_vmoe.ops.validation import require, require_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.routing_statistics import LayerStatistics

_MOST_TILES_A_LINE = 16
# The side of a tile, in inches, of which there are few or many.
_WIDE, _NARROW, _MANY = 0.85, 0.55, 8


def plot_expert_position(
    statistics: Mapping[str, LayerStatistics],
    path: str | Path,
    value: str = "weight",
    image_shape: tuple[int, int] = (1, 1),
    max_layers: int = canvas.MAX_LAYERS,
) -> Figure:
    """Draws, for each expert of some MoE layers, from where in the image its patches come.

    Each tile is the image, one cell a patch; the number above it is the expert's. Experts stand by
    the patch that they take most of, left to right and top to bottom (`ordering.expert_order`).

    Args:
        statistics: MoE layer name to its statistics, in order (`RoutingStatistics.layers`).
        path: the picture's file; the data goes beside it as CSV.
        value: `"weight"` or `"frequency"`, see `LayerStatistics.by_position`.
        image_shape: height and width of the images, in any unit.
        max_layers: how many layers are drawn, the first and the last among them; the CSV has all.

    Returns:
        The figure.

    Raises:
        ValueError: no layer, an unknown value, or tokens that are no grid of patches.

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
        >>> path = Path(tempfile.mkdtemp()) / "expert_position.png"
        >>> figure = plot_expert_position(statistics.layers, path)
        >>> path.with_suffix(".csv").exists()
        True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on routing by position.
    """
    require(bool(statistics), "statistics must hold at least one MoE layer. Received: none")
    require_choice("value", value, VALUES)
    names = canvas.spread(list(statistics), max_layers)
    maps = {name: _maps(statistics[name], value, image_shape) for name in statistics}
    experts = max(len(maps[name]) for name in names)
    columns = min(experts, _MOST_TILES_A_LINE)
    lines = -(-experts // columns)
    side = _WIDE if columns <= _MANY else _NARROW
    tall = 0.3 + image_shape[0] / image_shape[1]
    height = 0.5 + len(names) * (0.25 + tall * side * lines)
    figure = canvas.new_figure(max(1.3 + 1.12 * side * columns, 5.0), height)
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    top = max(maps[name].max() for name in names)
    for axis, name in zip(axes, names, strict=True):
        image = _draw(axis, maps[name], columns, top)
        axis.set_title(canvas.layer_title(name), fontsize=9, loc="left")
    canvas.colour_bar(figure, image, axes, MEANINGS[value])
    figure.suptitle("Where in the image each expert's patches lie", fontsize=11)
    canvas.save(figure, path, list(_rows(statistics, maps)))
    return figure


def _maps(layer: LayerStatistics, value: str, image_shape: tuple[int, int]) -> np.ndarray:
    """`[e, rows, columns]`, patches alone."""
    front, rows, columns = canvas.patch_grid(layer.tokens_per_image, *image_shape)
    return layer.by_position(value)[front:].T.reshape(layer.num_experts, rows, columns)


def _order(maps: np.ndarray) -> np.ndarray:
    return expert_order(maps.reshape(len(maps), -1).T)


def _draw(axis: Axes, maps: np.ndarray, columns: int, top: float) -> Any:
    """Lays the tiles side by side, with a line above them for the numbers."""
    _, height, width = maps.shape
    head, gap = max(1, round(0.3 * height)), max(1, round(0.12 * width))
    lines = -(-len(maps) // columns)
    sheet = np.full((lines * (height + head), columns * (width + gap) - gap), np.nan)
    for place, expert in enumerate(_order(maps)):
        line, column = divmod(place, columns)
        y, x = line * (height + head) + head, column * (width + gap)
        sheet[y : y + height, x : x + width] = maps[expert]
        middle = (x + (width - 1) / 2, y - 0.5 - 0.15 * head)
        axis.text(*middle, str(expert), ha="center", va="bottom", fontsize=8)
    image = axis.imshow(sheet, cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    axis.set_axis_off()
    return image


def _rows(
    statistics: Mapping[str, LayerStatistics], maps: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for name, layer in statistics.items():
        place = np.argsort(_order(maps[name]))
        _, height, width = maps[name].shape
        front = layer.tokens_per_image - height * width
        weight, frequency = layer.by_position("weight"), layer.by_position("frequency")
        for token, expert in np.ndindex(weight.shape):
            patch = token - front
            yield {
                "layer": name,
                "token": token,
                # Tokens in front of the patches, such as the class token, have no place.
                "row": patch // width if patch >= 0 else None,
                "column": patch % width if patch >= 0 else None,
                "expert": expert,
                "tile": int(place[expert]),
                "weight": weight[token, expert],
                "frequency": frequency[token, expert],
            }
