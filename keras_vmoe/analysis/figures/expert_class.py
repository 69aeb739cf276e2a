"""Heat maps of experts and classes: which expert works on what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.ordering import expert_order
from keras_vmoe.analysis.routing_statistics import VALUES
from keras_vmoe.ops.validation import require, require_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.routing_statistics import LayerStatistics

MEANINGS = {
    "weight": "mean routing weight of a token",
    "frequency": "share of the tokens that the expert took",
}
_OF_WHOLE_IMAGES = {
    "weight": "mean routing weight of an image",
    "frequency": "share of the images that the expert took",
}
_MAX_NAMES = 30
_MAX_NUMBERS = 16


def plot_expert_class(
    statistics: Mapping[str, LayerStatistics],
    path: str | Path,
    value: str = "weight",
    class_names: Sequence[str] | None = None,
    max_layers: int = canvas.MAX_LAYERS,
) -> Figure:
    """Draws, for early and late MoE layers, how much each expert works on each class.

    Rows are classes, in their order; columns are experts, by the class that they work on most
    (`ordering.expert_order`). All layers share the colours, so a diffuse layer looks diffuse.

    Args:
        statistics: MoE layer name to its statistics, in order (`RoutingStatistics.layers`).
        path: the picture's file; the data goes beside it as CSV.
        value: `"weight"` or `"frequency"`, see `LayerStatistics.by_class`.
        class_names: one a label.
        max_layers: how many layers are drawn, the first and the last among them; the CSV has all.

    Returns:
        The figure.

    Raises:
        ValueError: no layer, an unknown value, or names that are not one a class.

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
        >>> path = Path(tempfile.mkdtemp()) / "expert_class.png"
        >>> figure = plot_expert_class(statistics.layers, path)
        >>> path.with_suffix(".csv").exists()
        True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 6 and figure 7.
    """
    require(bool(statistics), "statistics must hold at least one MoE layer. Received: none")
    require_choice("value", value, VALUES)
    names = list(statistics)
    maps = {name: layer.by_class(value) for name, layer in statistics.items()}
    classes = len(maps[names[0]])
    class_names = [str(i) for i in range(classes)] if class_names is None else list(class_names)
    require(
        len(class_names) == classes,
        f"class_names must hold one name a class, {classes}. Received: {len(class_names)}",
    )
    shown = canvas.spread(names, max_layers)
    height = 1.5 + min(max(0.26 * classes, 2.2), 5.5)
    figure = canvas.new_figure(2.6 + 2.6 * len(shown), height)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    top = max(np.nanmax(maps[name]) for name in shown)
    for axis, name in zip(axes, shown, strict=True):
        image = _draw(axis, maps[name], top)
        axis.set_title(canvas.layer_title(name) + _place(name, names), fontsize=9)
    _name_classes(axes, class_names)
    whole = statistics[names[0]].tokens_per_image == 1
    canvas.colour_bar(figure, image, axes, (_OF_WHOLE_IMAGES if whole else MEANINGS)[value])
    routed = "images" if whole else "patches"
    figure.suptitle(f"Which experts the {routed} of each class go to", fontsize=11)
    canvas.save(figure, path, list(_rows(statistics, maps, class_names)))
    return figure


def _place(name: str, names: list[str]) -> str:
    if len(names) == 1:
        return ""
    return {names[0]: " (first)", names[-1]: " (last)"}.get(name, "")


def _draw(axis: Axes, values: np.ndarray, top: float) -> Any:
    order = expert_order(values)
    image = axis.imshow(
        values[:, order], cmap="viridis", vmin=0, vmax=top, aspect="auto", interpolation="nearest"
    )
    step = -(-len(order) // _MAX_NUMBERS)
    axis.set_xticks(range(0, len(order), step), order[::step])
    axis.tick_params(labelsize=7)
    axis.set_xlabel("expert (ordered by favourite class)", fontsize=8)
    return image


def _name_classes(axes: Sequence[Axes], class_names: list[str]) -> None:
    for axis in axes[1:]:
        axis.set_yticks([])
    if len(class_names) <= _MAX_NAMES:
        axes[0].set_yticks(range(len(class_names)), class_names)
    axes[0].set_ylabel("class", fontsize=9)


def _rows(
    statistics: Mapping[str, LayerStatistics],
    maps: Mapping[str, np.ndarray],
    class_names: list[str],
) -> Iterator[dict[str, Any]]:
    for name, layer in statistics.items():
        place = np.argsort(expert_order(maps[name]))
        weight, frequency = layer.by_class("weight"), layer.by_class("frequency")
        for label, expert in np.ndindex(weight.shape):
            yield {
                "layer": name,
                "class": label,
                "class_name": class_names[label],
                "expert": expert,
                "column": int(place[expert]),
                "weight": weight[label, expert],
                "frequency": frequency[label, expert],
                "images": int(layer.images_per_class[label]),
            }
