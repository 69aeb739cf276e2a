"""How many tokens of each modality get an expert, over training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIX = "_success_rate"
# The part of the colours from dark blue to light green that white paper does not swallow.
_DARKEST, _LIGHTEST = 0.0, 0.8

# Modality to MoE layer to its points: step and rate.
_Lines = dict[str, dict[str, list[tuple[int, float]]]]


def plot_success_rates(
    rows: Iterable[Mapping[str, Any]], path: str | Path, split: str = "train"
) -> Figure:
    """Draws the share of tokens that get an expert: a panel per modality, a line per MoE layer.

    Args:
        rows: what a run measured, as the lines of `metrics.jsonl`: "step", "split" and rates of 0
            to 1 named `<layer>/<modality>_success_rate`. Other names are left alone.
        path: the picture's file; the data goes beside it as CSV.
        split: whose rows are drawn.

    Returns:
        The figure.

    Raises:
        ValueError: no row of the split holds a success rate.

    Example:
        >>> import tempfile
        >>> name = "encoder_block_1_moe/text_success_rate"
        >>> rows = [{"step": n, "split": "train", name: n / 200} for n in (100, 200)]
        >>> path = Path(tempfile.mkdtemp()) / "success_rates.png"
        >>> figure = plot_success_rates(rows, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'text,encoder_block_1_moe,100,0.5'

    Reference: Mustafa et al. 2022, arXiv 2206.02770 (routing success rates).
    """
    lines = _by_modality(row for row in rows if row.get("split") == split)
    require(
        bool(lines),
        f"rows must hold <layer>/<modality>{_SUFFIX} of split {split!r}. Received: none; a model "
        "of images and texts measures them while it trains",
    )
    layers = list(dict.fromkeys(layer for named in lines.values() for layer in named))
    figure = canvas.new_figure(1.8 + 3.4 * len(lines), 3.4)
    axes = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
    for axis, (modality, named) in zip(axes, lines.items(), strict=True):
        _draw(axis, named, layers)
        axis.set_title(f"{modality} tokens", fontsize=9)
    axes[0].set_ylabel("tokens that get an expert (%)", fontsize=9)
    axes[0].set_ylim(0, 102)
    handles = {line.get_label(): line for axis in axes for line in axis.lines}
    place = {"loc": "outside center right", "fontsize": 8, "frameon": False, "title": "MoE layer"}
    titles = [canvas.layer_title(layer) for layer in layers]
    figure.legend([handles[title] for title in titles], titles, **place)
    figure.suptitle("Routing success over training", fontsize=11)
    table = [
        {"modality": modality, "layer": layer, "step": step, "success_rate": rate}
        for modality, named in lines.items()
        for layer, points in named.items()
        for step, rate in points
    ]
    canvas.save(figure, path, table)
    return figure


def _by_modality(rows: Iterable[Mapping[str, Any]]) -> _Lines:
    lines: _Lines = {}
    for row in rows:
        for name, rate in row.items():
            layer, slash, last = name.rpartition("/")
            modality = last.removesuffix(_SUFFIX)
            # A batch without such tokens has no rate.
            if slash and modality != last and rate is not None and math.isfinite(rate):
                points = lines.setdefault(modality, {}).setdefault(layer, [])
                points.append((int(row["step"]), float(rate)))
    return lines


def _draw(axis: Axes, named: Mapping[str, list[tuple[int, float]]], layers: list[str]) -> None:
    from matplotlib import colormaps

    # Layers have an order, and so have these colours, in any kind of colour vision.
    shades = colormaps["viridis"](np.linspace(_DARKEST, _LIGHTEST, len(layers)))
    for layer, shade in zip(layers, shades, strict=True):
        steps, rates = np.array(named.get(layer, [])).reshape(-1, 2).T
        marker = "." if len(steps) < 30 else ""
        style = {"color": shade, "marker": marker, "linewidth": 1.4}
        axis.plot(steps, 100 * rates, label=canvas.layer_title(layer), **style)
    canvas.plain_axes(axis)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("training step", fontsize=9)
