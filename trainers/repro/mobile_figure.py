"""The pictures of `keras-vmoe repro mobile`, after the paper's figures 1 and 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.trainers.repro.mobile_runs import (
    ABLATED,
    DENSE,
    EXPERTS,
    IMAGE,
    MOBILE,
    MOBILE_ABLATED,
    MOE_LAYERS,
    PAIRED,
    RANDOM,
    SCALES,
    SELECTED,
    TOKEN,
    twin,
    with_experts,
    with_layers,
    with_selected,
)
from keras_vmoe.trainers.repro.paired import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_vmoe.trainers.repro.mobile import Measured

_NAMES = {DENSE: "dense", MOBILE: "Mobile V-MoE"}
_STYLES = {
    DENSE: {"color": canvas.DENSE, "marker": "s", "linestyle": "--"},
    MOBILE: {"color": canvas.SPARSE, "marker": "o", "linestyle": "-"},
}
_ROUTER = {"color": canvas.EIGHT_COLOURS[2], "marker": "^", "linestyle": ":"}
_ROUTINGS = {
    twin(ABLATED, DENSE): "dense",
    RANDOM: "random\nsuper-classes",
    IMAGE: "learned\nper image",
    MOBILE_ABLATED: "super-classes",
    TOKEN: "learned\nper token",
}


def plot_mobile(found: Measured, path: str | Path) -> None:
    """Draws accuracy against FLOPs, and on another page the ablations.

    Args:
        found: what was measured.
        path: the first page's file, `..._ablations` the second's; the data goes beside each as CSV.
    """
    path = Path(path)
    figure = canvas.new_figure(6.5, 4.6)
    axis = figure.subplots()
    rows = _draw_scales(axis, found)
    canvas.plain_axes(axis)
    count = len(found.seeds)
    few = " and ".join(scale.name for scale in PAIRED)
    seeds = f"{count} seeds for {few}, with standard errors" if count > 1 else "one seed"
    figure.suptitle(
        f"Mobile V-MoE in miniature: {found.steps} steps on 100 classes\n{seeds}", fontsize=10
    )
    canvas.save(figure, path, rows)
    _plot_ablations(found, path.with_name(f"{path.stem}_ablations{path.suffix}"))


def _row(panel: str, series: str, x: Any, mflops: float, values: Sequence[float]) -> dict[str, Any]:
    mean = estimate(values)
    return {
        "panel": panel,
        "series": series,
        "x": x,
        "mflops": mflops,
        "value": mean.mean,
        "standard_error": mean.error,
        "seeds": mean.count,
    }


def _line(axis: Axes, rows: Sequence[dict[str, Any]], x: str, **style: Any) -> None:
    axis.errorbar(
        [row[x] for row in rows],
        [100 * row["value"] for row in rows],
        [100 * np.nan_to_num(row["standard_error"]) for row in rows],
        capsize=3,
        **style,
    )


def _draw_scales(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for kind, label in _NAMES.items():
        line = [
            _row("scales", label, scale.name, found.mflops[name], found.accuracy[name])
            for scale in SCALES
            for name in [twin(scale, kind)]
        ]
        line.sort(key=lambda row: row["mflops"])
        _line(axis, line, "mflops", label=label, **_STYLES[kind])
        rows += line
    for dense in rows[: len(SCALES)]:
        sparse = next(row for row in rows[len(SCALES) :] if row["x"] == dense["x"])
        gain = 100 * (sparse["value"] - dense["value"])
        upper = max(sparse, dense, key=_top)
        _label(axis, upper, f"{dense['x']}\n{gain:+.2f}")
    _log_flops(axis, [row["mflops"] for row in rows[: len(SCALES)]])
    axis.margins(x=0.1, y=0.2)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return rows


def _top(row: dict[str, Any]) -> float:
    """The upper end of the error bar."""
    return row["value"] + float(np.nan_to_num(row["standard_error"]))


def _label(axis: Axes, row: dict[str, Any], words: str) -> None:
    """Writes above a point and its error bar."""
    style = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 8}
    axis.annotate(words, (row["mflops"], 100 * _top(row)), **style)


def _log_flops(axis: Axes, ticks: Sequence[float]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("MFLOPs an image, as the paper counts them (log scale)", fontsize=9)


def _plot_ablations(found: Measured, path: Path) -> None:
    figure = canvas.new_figure(11.0, 8.0)
    (experts, layers), (selected, routing) = figure.subplots(2, 2)
    rows = [
        *_draw_router(experts, found, "experts E", {n: with_experts(n) for n in EXPERTS}),
        *_draw_router(layers, found, "MoE layers L", {n: with_layers(n) for n in MOE_LAYERS}),
        *_draw_selected(selected, found),
        *_draw_routing(routing, found),
    ]
    for axis in (experts, layers, selected, routing):
        canvas.plain_axes(axis)
    count = len(found.seeds)
    seeds = f": E, L and k with one seed, routing with {count}, and standard errors"
    figure.suptitle(f"Ablations of Mobile V-MoE {ABLATED.name}{seeds if count > 1 else ''}")
    canvas.save(figure, path, rows)


def _draw_router(
    axis: Axes, found: Measured, what: str, kinds: dict[int, str]
) -> list[dict[str, Any]]:
    """Accuracy against one number, with the dense twin, and the router's on a twin axis.

    Of the first seed alone, which is all that most of the kinds have.
    """
    dense = twin(ABLATED, DENSE)
    level = _row(what, _NAMES[DENSE], "", found.mflops[dense], found.accuracy[dense][:1])
    own, router = (
        [_row(what, series, x, found.mflops[kind], values[kind][:1]) for x, kind in kinds.items()]
        for series, values in ((_NAMES[MOBILE], found.accuracy), ("router", found.router))
    )
    axis.axhline(100 * level["value"], color=canvas.DENSE, linestyle="--", label="dense twin")
    _line(axis, own, "x", label=_NAMES[MOBILE], **_STYLES[MOBILE])
    other = _twin_axis(axis)
    _line(other, router, "x", label="router", **_ROUTER)
    axis.set_xticks(list(kinds))
    axis.set_xlabel(what, fontsize=9)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    _legend(axis, other)
    return [level, *own, *router]


def _twin_axis(axis: Axes) -> Axes:
    other = axis.twinx()
    other.spines[["top", "left"]].set_visible(False)
    other.tick_params(labelsize=8, colors=_ROUTER["color"])
    other.set_ylabel("router accuracy (%)", fontsize=9, color=_ROUTER["color"])
    return other


def _legend(axis: Axes, other: Axes) -> None:
    handles = [
        part for one in (axis, other) for part in zip(*one.get_legend_handles_labels(), strict=True)
    ]
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    axis.legend(*zip(*handles, strict=True), fontsize=8, frameon=False, **place)


def _draw_selected(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    rows = []
    for kind, label in ((DENSE, "dense, MLPs k times wider"), (MOBILE, _NAMES[MOBILE])):
        line = [
            _row("choices k", label, k, found.mflops[name], found.accuracy[name][:1])
            for k in SELECTED
            for name in [with_selected(k, kind)]
        ]
        _line(axis, line, "mflops", label=label, **_STYLES[kind])
        rows += line
    for row in rows[len(SELECTED) :]:
        _label(axis, row, f"k={row['x']}")
    _log_flops(axis, [row["mflops"] for row in rows[: len(SELECTED)]])
    axis.margins(x=0.1, y=0.2)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    axis.legend(fontsize=8, frameon=False, **place)
    return rows


def _draw_routing(axis: Axes, found: Measured) -> list[dict[str, Any]]:
    own = [
        _row("routing", label.replace("\n", " "), "", found.mflops[kind], found.accuracy[kind])
        for kind, label in _ROUTINGS.items()
    ]
    places = np.arange(len(own))
    # Points, not bars: what is compared lies within a few percent.
    for place, row in zip(places, own, strict=True):
        style = _STYLES[DENSE if place == 0 else MOBILE]
        _line(axis, [{**row, "x": place}], "x", color=style["color"], marker=style["marker"])
    other = _twin_axis(axis)
    router = []
    for place, (kind, label) in enumerate(_ROUTINGS.items()):
        if kind in found.router:
            mflops = found.mflops[kind]
            series = f"router, {label}".replace("\n", " ")
            router.append(_row("routing", series, "", mflops, found.router[kind]))
            _line(other, [{**router[-1], "x": place + 0.2}], "x", **_ROUTER)
    axis.set_xticks(places, _ROUTINGS.values(), fontsize=8)
    axis.set_xlim(-0.5, len(own) - 0.5)
    axis.set_ylabel("held-out accuracy (%)", fontsize=9)
    axis.set_title("routing, k=1 (triangles: router accuracy)", fontsize=10)
    return [*own, *router]
