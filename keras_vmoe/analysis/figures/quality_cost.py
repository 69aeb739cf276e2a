"""Quality against the cost of training, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.run_summary import RunSummary
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {False: ("dense", canvas.DENSE, "o"), True: ("sparse", canvas.SPARSE, "s")}
_FLOPS = ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"), (1, "FLOPs"))
_SECONDS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_MAX_NAMED = 8


def plot_quality_cost(runs: Sequence[RunSummary], path: str | Path) -> Figure:
    """Draws accuracy over the FLOPs and over the measured time of training.

    The line of each kind is its frontier: the runs that no cheaper or equal one of that kind
    beats. Few-shot accuracies that all runs have get panels of their own.

    Args:
        runs: finished runs, dense and sparse.
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure.

    Raises:
        ValueError: fewer than two runs.

    Example:
        >>> import tempfile
        >>> runs = [RunSummary(kind, kind == "sparse", 0.9, 1e12, 60.0) for kind in ("a", "sparse")]
        >>> path = Path(tempfile.mkdtemp()) / "quality_cost.png"
        >>> figure = plot_quality_cost(runs, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'a,dense,0,0,1e+12,60,0.9'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, figures 2 and 3.
    """
    require(len(runs) >= 2, f"runs must be at least two. Received: {len(runs)}")
    shared = [name for name in runs[0].few_shot if all(name in run.few_shot for run in runs)]
    qualities: dict[str, Callable[[RunSummary], float]] = {"accuracy": lambda run: run.accuracy}
    for name in shared:
        qualities[_few_shot(name)] = lambda run, n=name: run.few_shot[n]
    flops = _scale([run.train_flops for run in runs], _FLOPS)
    seconds = _scale([run.train_seconds for run in runs], _SECONDS)
    costs = {
        f"training compute ({flops[1]})": lambda run: run.train_flops / flops[0],
        f"measured training time ({seconds[1]})": lambda run: run.train_seconds / seconds[0],
    }
    figure = canvas.new_figure(8.4, 0.7 + 3.1 * len(qualities))
    axes = figure.subplots(len(qualities), 2, squeeze=False, sharey="row", sharex="col")
    for line, (quality, value) in enumerate(qualities.items()):
        for axis, cost in zip(axes[line], costs.values(), strict=True):
            _draw(axis, runs, cost, value)
        axes[line, 0].set_ylabel(f"{quality} (%)", fontsize=9)
    for axis, label in zip(axes[-1], costs, strict=True):
        axis.set_xlabel(label, fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle("Quality against the cost of training", fontsize=11)
    canvas.save(figure, path, _rows(runs))
    return figure


def _few_shot(name: str) -> str:
    """`fewshot/digits/5shot` in words."""
    *dataset, shots = name.removeprefix("fewshot/").split("/")
    return " ".join([*dataset, f"{shots.removesuffix('shot')}-shot accuracy"])


def _scale(values: list[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit that no value is below."""
    return next((unit for unit in units if min(values) >= unit[0]), units[-1])


def _frontier(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Indices of the points that no cheaper or equal one beats, by cost."""
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    first = np.concatenate([[True], best[1:] > best[:-1]])
    return order[first]


def _draw(
    axis: Axes,
    runs: Sequence[RunSummary],
    cost: Callable[[RunSummary], float],
    value: Callable[[RunSummary], float],
) -> None:
    for sparse, (name, colour, marker) in _KINDS.items():
        group = [run for run in runs if run.sparse == sparse]
        if not group:
            continue
        x = np.array([cost(run) for run in group])
        y = 100 * np.array([value(run) for run in group])
        axis.plot(x, y, marker, color=colour, markersize=6, alpha=0.85, label=name)
        front = _frontier(x, y)
        axis.plot(x[front], y[front], "-", color=colour, linewidth=1.0)
        for run, point in zip(group, zip(x, y, strict=True), strict=True):
            if len(runs) <= _MAX_NAMED:
                style = {"textcoords": "offset points", "xytext": (6, -10), "fontsize": 7}
                axis.annotate(run.name, point, color=colour, **style)
    canvas.plain_axes(axis)
    axis.margins(0.18)
    every = [cost(run) for run in runs]
    if max(every) > 5 * min(every):
        axis.set_xscale("log")


def _rows(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for run in runs for name in run.few_shot))
    return [
        {
            "run": run.name,
            "kind": _KINDS[run.sparse][0],
            "seed": run.seed,
            "params": run.params,
            "train_flops": run.train_flops,
            "train_seconds": run.train_seconds,
            "accuracy": run.accuracy,
            **{name: run.few_shot.get(name) for name in names},
        }
        for run in runs
    ]
