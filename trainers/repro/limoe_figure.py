"""The pictures of `keras-vmoe repro limoe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.limoe import (
    CLASSIC,
    DENSE,
    ENTROPY,
    KEPT,
    LIMOE,
    MEASURES,
    MODALITIES,
    NAMES,
    PRIORITY,
    SPARSE,
    TWO_TOWER,
    Measured,
    lowest,
)
from keras_vmoe.trainers.repro.paired import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {
    LIMOE: {"color": canvas.SPARSE, "linestyle": "-"},
    ENTROPY: {"color": canvas.EIGHT_COLOURS[0], "linestyle": "--"},
    PRIORITY: {"color": canvas.EIGHT_COLOURS[6], "linestyle": "-."},
    CLASSIC: {"color": canvas.EIGHT_COLOURS[2], "linestyle": ":"},
    DENSE: {"color": canvas.DENSE},
    TWO_TOWER: {"color": canvas.EIGHT_COLOURS[1]},
}
_BAR = 0.13


def plot_limoe(found: Measured, path: str | Path) -> None:
    """Draws a page of success rates, scores and soft minima; and beside it who goes where.

    Args:
        found: what was measured.
        path: the page's file; the data goes beside it as CSV. `..._modalities`, `..._patches` and
            `..._tokens` are of the first seed's LIMoE, the latter two of its last MoE layer.
    """
    path = Path(path)
    figure = canvas.new_figure(11.0, 8.0)
    above, below = figure.subplots(2, 2)
    rows = []
    for axis, modality in zip(above, MODALITIES, strict=True):
        rows += _draw_success(axis, found, modality)
    rows += _draw_scores(below[0], found)
    rows += _draw_soft_minima(below[1], found)
    for axis in (*above, *below):
        canvas.plain_axes(axis)
    count = len(found.seeds)
    _draw_legend(figure, found)
    figure.suptitle(
        f"LIMoE in miniature: {found.steps} steps on scenes of digits with captions, {count} "
        f"seed{'s' * (count > 1)}, standard errors"
    )
    canvas.save(figure, path, rows)
    _plot_routing(found, path)


def _plot_routing(found: Measured, path: Path) -> None:
    routed = found.routed

    def beside(name: str) -> Path:
        return path.with_name(f"{path.stem}_{name}{path.suffix}")

    counts = {layer: analysis.modality_counts(record) for layer, record in routed.records.items()}
    figures.plot_expert_modality(counts, beside("modalities"))
    last = list(routed.records.values())[-1]
    figures.plot_patches_of_experts(routed.images, last.of_modality("image"), beside("patches"))
    figures.plot_tokens_of_experts(
        routed.tokens, last.of_modality("text"), routed.piece, beside("tokens")
    )


def _draw_legend(figure: Figure, found: Measured) -> None:
    """One legend for lines and bars, which have the same colours."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=3, **style) for style in _STYLES.values()]
    names = [f"{NAMES[kind]} ({found.macs[kind] / 1e6:.2f} MMACs a pair)" for kind in _STYLES]
    place = {"loc": "outside lower center", "ncols": 3, "fontsize": 8, "frameon": False}
    figure.legend(handles, names, **place)


def _row(panel: str, series: str, x: Any, values: list[float]) -> dict[str, Any]:
    mean = estimate(values)
    return {
        "panel": panel,
        "series": series,
        "x": x,
        "value": mean.mean,
        "standard_error": mean.error,
        "seeds": mean.count,
    }


def _draw_success(axis: Axes, found: Measured, modality: str) -> list[dict[str, Any]]:
    rows = []
    for kind in SPARSE:
        line = []
        for of_step in zip(*found.history[kind], strict=True):
            rates = [lowest(row, modality, "success_rate") for row in of_step]
            line.append(_row(f"{modality} success", NAMES[kind], of_step[0]["step"], rates))
        rows += line
        steps = [row["x"] for row in line]
        means = 100 * np.array([row["value"] for row in line])
        errors = 100 * np.nan_to_num([row["standard_error"] for row in line])
        axis.plot(steps, means, label=NAMES[kind], **_STYLES[kind])
        axis.fill_between(
            steps,
            means - errors,
            means + errors,
            alpha=0.2,
            color=_STYLES[kind]["color"],
            linewidth=0,
        )
    axis.axhline(100 * KEPT, color="#606060", linewidth=0.8)
    axis.set_ylim(min(50.0, *(100 * row["value"] - 5 for row in rows)), 101)
    axis.set_xlabel("training step", fontsize=9)
    axis.set_ylabel("tokens that get an expert (%)", fontsize=9)
    axis.set_title(f"{modality} tokens, the MoE layer with the lowest rate", fontsize=10)
    return rows


def _draw_scores(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for number, (kind, scores) in enumerate(found.scores.items()):
        bars = [_row("scores", NAMES[kind], words, scores[n]) for n, words in MEASURES.items()]
        rows += bars
        places = np.arange(len(bars)) + (number - (len(found.scores) - 1) / 2) * _BAR
        axis.bar(
            places,
            [100 * row["value"] for row in bars],
            _BAR * 0.9,
            yerr=[100 * np.nan_to_num(row["standard_error"]) for row in bars],
            error_kw={"linewidth": 1, "capsize": 2},
            color=_STYLES[kind]["color"],
        )
    axis.set_xticks(range(len(MEASURES)), MEASURES.values(), fontsize=8)
    axis.set_ylabel("accuracy, recall (%)", fontsize=9)
    axis.set_title("held-out digits and pairs, equal steps", fontsize=10)
    return rows


def _draw_soft_minima(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    asked = list(found.soft_minima)
    axis.plot(asked, asked, color="#606060", linestyle=":", label="as many as asked for")
    gates = {
        n: [lowest(row, "text", "effective_experts") for row in last]
        for n, last in found.soft_minima.items()
    }
    rows = []
    for series, values, marker, colour in (
        ("mean gates in training", gates, "o", canvas.SPARSE),
        ("held-out tokens", found.taken, "s", canvas.DENSE),
    ):
        line = [_row("soft minimum", series, n, values[n]) for n in asked]
        rows += line
        axis.errorbar(
            asked,
            [row["value"] for row in line],
            [np.nan_to_num(row["standard_error"]) for row in line],
            color=colour,
            marker=marker,
            capsize=3,
            label=f"exp(H) of {series}, lowest layer",
        )
    axis.set_xticks(asked)
    axis.set_ylim(0)
    axis.set_xlabel("soft minimum of experts for text", fontsize=9)
    axis.set_ylabel("experts that text uses", fontsize=9)
    axis.set_title(f"the threshold of text, {rows[0]['seeds']} seeds", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return rows
