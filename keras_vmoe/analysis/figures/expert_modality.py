"""Which experts work on images, which on texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = tuple(canvas.EIGHT_COLOURS[i] for i in (4, 0, 2, 6))
_COLUMNS = 4
# With more experts the numbers above the bars run into each other.
_MAX_NUMBERED = 8


def plot_expert_modality(
    counts: Mapping[str, Any], path: str | Path, modalities: Sequence[str] = ("image", "text")
) -> Figure:
    """Draws what the tokens of each expert are: stacked bars, a panel per MoE layer.

    Args:
        counts: MoE layer name to the tokens that its experts took, `[experts, modalities]`.
        path: the picture's file; the data goes beside it as CSV.
        modalities: their names, up to four.

    Returns:
        The figure; an expert without tokens has no bar. Of up to eight experts the number above
        a bar is the expert's share of all tokens of the layer.

    Raises:
        ValueError: no layers, counts of another shape, negative or not finite, or a layer whose
            experts took nothing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "expert_modality.png"
        >>> figure = plot_expert_modality({"block_1": [[30, 10], [60, 0]]}, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'block_1,0,image,30,0.75,0.4'

    Reference: Mustafa et al. 2022, arXiv 2206.02770 (distribution of modalities over experts).
    """
    require(
        1 <= len(modalities) <= len(_COLOURS),
        f"modalities must be one to {len(_COLOURS)} names. Received: {tuple(modalities)}",
    )
    require(bool(counts), "counts must hold at least one MoE layer. Received: none")
    layers = {name: _checked(name, taken, len(modalities)) for name, taken in counts.items()}
    columns = min(_COLUMNS, len(layers))
    lines = math.ceil(len(layers) / columns)
    figure = canvas.new_figure(1.2 + 2.8 * columns, 1.2 + 2.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(layers) :]:
        axis.set_axis_off()
    for axis, (name, taken) in zip(axes.flat, layers.items(), strict=False):
        _draw(axis, taken, modalities)
        axis.set_title(canvas.layer_title(name), fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("% of the expert's tokens", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": len(labels), "fontsize": 8, "frameon": False}
    figure.legend(handles, labels, **place)
    numbered = any(len(taken) <= _MAX_NUMBERED for taken in layers.values())
    note = "\nabove a bar: the expert's share of all tokens" if numbered else ""
    figure.suptitle(f"Modalities of the experts' tokens{note}", fontsize=11)
    canvas.save(figure, path, _rows(layers, modalities))
    return figure


def _checked(name: str, taken: Any, modalities: int) -> np.ndarray:
    """`[experts, modalities]`, float64."""
    taken = np.asarray(taken, "float64")
    require(
        taken.ndim == 2 and taken.shape[-1] == modalities,
        f"counts of layer {name!r} must have shape [experts, {modalities}]. "
        f"Received: shape {taken.shape}",
    )
    require(
        bool(np.isfinite(taken).all() and (taken >= 0).all() and taken.any()),
        f"counts of layer {name!r} must be numbers of tokens, and some above 0. "
        f"Received: {taken.min()} to {taken.max()}",
    )
    return taken


def _shares(taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each expert the shares of the modalities, and its own share of all tokens."""
    totals = taken.sum(axis=-1)
    return taken / np.maximum(totals, 1e-30)[:, None], totals / totals.sum()


def _draw(axis: Axes, taken: np.ndarray, modalities: Sequence[str]) -> None:
    shares, weights = _shares(taken)
    experts, below = np.arange(len(taken)), np.zeros(len(taken))
    for modality, share, colour in zip(modalities, shares.T, _COLOURS, strict=False):
        axis.bar(experts, 100 * share, 0.8, 100 * below, color=colour, label=modality)
        below = below + share
    if len(taken) <= _MAX_NUMBERED:
        for expert, weight in enumerate(weights):
            place = 100 * below[expert] + 2
            axis.text(expert, place, f"{100 * weight:.0f}%", ha="center", fontsize=6)
    canvas.plain_axes(axis)
    axis.set_ylim(0, 110)
    axis.set_yticks(range(0, 101, 25))
    axis.set_xticks(experts[:: math.ceil(len(taken) / 8)])
    axis.set_xlabel("expert", fontsize=8)


def _rows(layers: Mapping[str, np.ndarray], modalities: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "layer": name,
            "expert": expert,
            "modality": modality,
            "tokens": count,
            "share_of_expert": share,
            "expert_share": weight,
        }
        for name, taken in layers.items()
        for expert, (row, shares, weight) in enumerate(zip(taken, *_shares(taken), strict=True))
        for modality, count, share in zip(modalities, row, shares, strict=True)
    ]
