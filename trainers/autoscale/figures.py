"""The pictures of `keras-vmoe autoscale`: how a search went, what it sampled, how sizes grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_vmoe.autoscale import Grown, Step

_COLOUR, _BESIDE = canvas.EIGHT_COLOURS[4], canvas.EIGHT_COLOURS[5]
_SMOOTHED = 20


def plot_trace(trace: Sequence[Step], path: str | Path) -> None:
    """Draws reward, entropy, NTK condition number and L^E against the step.

    Args:
        trace: the steps of a search, at least one.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(10, 6.2)
    panels = (
        ("reward", "reward", False),
        ("entropy", "entropy of the policy (nats)", False),
        ("condition_number", "condition number of the NTK", True),
        ("length", "manifold length $L^E$", True),
    )
    for axis, (name, label, is_log) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        values = np.array([getattr(step, name) for step in trace], float)
        _draw_series(axis, values, smooth=name != "entropy")
        finite = values[np.isfinite(values)]
        if is_log and finite.size and finite.max() > 10 * finite.min() > 0:
            axis.set_yscale("log")
        canvas.plain_axes(axis)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel(label, fontsize=9)
    figure.suptitle(
        f"A search of {len(trace)} steps; lines are means over up to {_SMOOTHED} steps before"
    )
    shown = [{**step._asdict(), "action": " ".join(map(str, step.action))} for step in trace]
    canvas.save(figure, path, shown)


def _draw_series(axis: Axes, values: np.ndarray, smooth: bool) -> None:
    steps = np.arange(len(values))
    if not smooth:
        axis.plot(steps, values, color=_COLOUR)
        return
    axis.plot(steps, values, ".", color="#909090", markersize=3)
    # A step's mean is of the steps up to it.
    windows = [values[max(0, i + 1 - _SMOOTHED) : i + 1] for i in steps]
    finite = [window[np.isfinite(window)] for window in windows]
    axis.plot(steps, [w.mean() if w.size else np.nan for w in finite], color=_COLOUR)


def plot_marginals(marginals: Mapping[str, Mapping[int, int]], path: str | Path) -> None:
    """Draws how often each choice of each gene was sampled (the paper's table 3).

    Args:
        marginals: name of a gene to the count of each of its choices.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(11, 7.0)
    axes = figure.subplots(3, 4, sharey=True)
    # Kernels on top, MLP ratios in the middle, splits and heads below: a column is a stage.
    order = [name for kind in ("kernel", "ratio") for name in marginals if kind in name]
    order += [name for name in marginals if name not in order]
    rows = []
    for place, (axis, name) in enumerate(zip(axes.flat, order, strict=True)):
        counts = marginals[name]
        total = max(sum(counts.values()), 1)
        shares = [count / total for count in counts.values()]
        axis.bar([str(choice) for choice in counts], shares, color=_COLOUR)
        axis.axhline(1 / len(counts), color=_BESIDE, linestyle="--", linewidth=1)
        axis.set_title(_title(name), fontsize=10)
        axis.set_ylim(0, 1)
        canvas.plain_axes(axis)
        if place % 4 == 0:
            axis.set_ylabel("share of samples", fontsize=9)
        for choice, share in zip(counts, shares, strict=True):
            row = {"gene": name, "choice": choice, "samples": counts[choice], "share": share}
            rows.append(row)
    samples = sum(next(iter(marginals.values())).values())
    figure.suptitle(f"Genes of the last {samples} samples; dashed: all choices equally often")
    canvas.save(figure, path, rows)


def _title(name: str) -> str:
    word, _, stage = name.partition(" ")
    full = {"kernel": "kernel K", "splits": "splits S", "ratio": "MLP ratio E"}
    return f"{full[word]}, stage {stage}" if stage else "heads H of the last stage"


def plot_growth(
    trace: Sequence[Grown], at_random: Sequence[Sequence[Grown]], path: str | Path
) -> None:
    """Draws depth, and parameters, against width on the way (the paper's figure 3).

    Args:
        trace: the sizes of a growth.
        at_random: those of growths that chose at random.
        path: the picture's file; the data goes beside it as CSV.
    """
    figure = canvas.new_figure(10, 4.2)
    depth, params = figure.subplots(1, 2)
    rows = []
    named = [("random", one) for one in at_random] + [("measured", trace)]
    for number, (kind, sizes) in enumerate(named):
        is_random = kind == "random"
        widths = [_real_width(one) for one in sizes]
        style = {
            "color": "#909090" if is_random else _COLOUR,
            "marker": "." if is_random else "o",
            "linewidth": 1 if is_random else 2,
            "label": {0: "growth at random", len(at_random): "growth by $L^E$ and NTK"}.get(number),
        }
        depth.plot(widths, [sum(one.depths) for one in sizes], **style)
        params.plot(widths, [one.params / 1e6 for one in sizes], **style)
        for one, width in zip(sizes, widths, strict=True):
            rows.append(
                {
                    "growth": f"{kind} {number}" if is_random else kind,
                    "step": one.step,
                    "genotype": one.genotype,
                    "depth": sum(one.depths),
                    "width": width,
                    "params": one.params,
                }
            )
    for axis, label in ((depth, "blocks of all stages"), (params, "parameters (millions)")):
        canvas.plain_axes(axis)
        axis.set_xlabel("width of the first stage C", fontsize=9)
        axis.set_ylabel(label, fontsize=9)
    depth.legend(fontsize=8, frameon=False)
    depth.yaxis.get_major_locator().set_params(integer=True)
    steps = len(trace) - 1
    figure.suptitle(f"A topology grows in {steps} step{'s' * (steps != 1)}")
    canvas.save(figure, path, rows)


def _real_width(grown: Grown) -> int:
    return int(grown.genotype.rpartition(",")[2])
