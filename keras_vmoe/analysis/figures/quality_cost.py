"""Quality against the cost of training, dense and sparse."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.run_summary import RunSummary, mean_and_error
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {False: ("dense", canvas.DENSE, "o"), True: ("sparse", canvas.SPARSE, "s")}
_FLOPS = ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"), (1, "FLOPs"))
_SECONDS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_MAX_NAMED = 8
_LONGEST_NAME = 24

# Runs that are seeds of one another.
_Seeds = Sequence[RunSummary]


def plot_quality_cost(runs: Sequence[RunSummary], path: str | Path) -> Figure:
    """Draws accuracy over the FLOPs and over the measured time of training.

    Points are means over runs that are seeds of one another, with their standard error. The line
    of each kind is its frontier: the points that no cheaper or equal one of that kind beats.
    Few-shot accuracies that all runs have get panels of their own.

    Args:
        runs: finished runs, dense and sparse; those of the same arguments, parameters and FLOPs
            are seeds of one another.
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
        'a,dense,1,0,0,1e+12,60,0.9,'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, figures 2 and 3.
    """
    require(len(runs) >= 2, f"runs must be at least two. Received: {len(runs)}")
    shared = [name for name in runs[0].few_shot if all(name in run.few_shot for run in runs)]
    qualities: dict[str, Callable[[RunSummary], float]] = {"accuracy": lambda run: run.accuracy}
    for name in shared:
        qualities[_few_shot(name)] = lambda run, n=name: run.few_shot[n]
    points = _seeds(runs)
    flops = _scale([run.train_flops for run in runs], _FLOPS)
    seconds = _scale([_seconds(point) for point in points], _SECONDS)
    costs: dict[str, Callable[[_Seeds], float]] = {
        f"training compute ({flops[1]})": lambda point: point[0].train_flops / flops[0],
        f"measured training time ({seconds[1]})": lambda point: _seconds(point) / seconds[0],
    }
    figure = canvas.new_figure(8.4, 1.2 + 3.1 * len(qualities))
    axes = figure.subplots(len(qualities), 2, squeeze=False, sharey="row", sharex="col")
    entries: dict[str, Any] = {}
    for line, (quality, value) in enumerate(qualities.items()):
        for axis, cost in zip(axes[line], costs.values(), strict=True):
            entries |= _draw(axis, points, cost, value)
        axes[line, 0].set_ylabel(f"{quality} (%)", fontsize=9)
    for axis, label in zip(axes[-1], costs, strict=True):
        axis.set_xlabel(label, fontsize=9)
    place = {"loc": "outside lower center", "ncols": 2, "fontsize": 8, "frameon": False}
    figure.legend([entries[label] for label in sorted(entries)], sorted(entries), **place)
    figure.suptitle("Quality against the cost of training", fontsize=11)
    canvas.save(figure, path, _rows(points))
    return figure


def _seeds(runs: Sequence[RunSummary]) -> list[list[RunSummary]]:
    """Runs by what was trained, in the order of the first of each."""
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        arguments = sorted((n, repr(v)) for n, v in run.arguments.items() if n != "name")
        key = repr((run.sparse, run.params, run.train_flops, arguments))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _seconds(point: _Seeds) -> float:
    return float(np.mean([run.train_seconds for run in point]))


def _name(point: _Seeds) -> str:
    """What runs are called together: `run-seed (n=2)` for run-seed0 and run-seed1."""
    names = [run.name for run in point]
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    stem = "".join(letters[0] for letters in shared)
    if len(names) > 1:
        stem = stem.rstrip("0123456789").rstrip("-_.") or names[0]
    if len(stem) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        stem = f"{stem[: half - 1]}…{stem[-half:]}"
    return f"{stem} (n={len(names)})" if len(names) > 1 else stem


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
    points: Sequence[_Seeds],
    cost: Callable[[_Seeds], float],
    value: Callable[[RunSummary], float],
) -> dict[str, Any]:
    """Draws a panel, and returns what its legend names."""
    entries: dict[str, Any] = {}
    every = [cost(point) for point in points]
    if max(every) > 5 * min(every):
        axis.set_xscale("log")
    spread = "" if all(len(point) == 1 for point in points) else ", mean ± standard error of seeds"
    for sparse, (name, colour, marker) in _KINDS.items():
        group = [point for point in points if point[0].sparse == sparse]
        if not group:
            continue
        x = np.array([cost(point) for point in group])
        found = [mean_and_error([value(run) for run in point]) for point in group]
        y, error = 100 * np.array(found).T
        style = {"color": colour, "markersize": 6, "alpha": 0.85, "capsize": 3}
        label = f"{name}{spread}"
        entries[label] = axis.errorbar(x, y, error, fmt=marker, label=label, **style)
        front = _frontier(x, y)
        if len(front) > 1:
            label = f"{name}: none as cheap is better"
            (entries[label],) = axis.plot(x[front], y[front], color=colour, label=label)
        if len(points) <= _MAX_NAMED:
            for point, place in zip(group, zip(x, y, strict=True), strict=True):
                _annotate(axis, _name(point), place, colour, right=place[0] > np.median(every))
    canvas.plain_axes(axis)
    axis.margins(0.18)
    return entries


def _annotate(axis: Axes, name: str, place: tuple[float, float], colour: str, right: bool) -> None:
    """Names a point towards the middle of the panel, on the side where no frontier runs."""
    style = {"textcoords": "offset points", "fontsize": 7, "color": colour}
    side = {"xytext": (-6, 5), "ha": "right"} if right else {"xytext": (6, -10)}
    axis.annotate(name, place, **side, **style)


def _rows(points: Sequence[_Seeds]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for point in points for run in point for name in run.few_shot))
    rows = []
    for point in points:
        mean, error = mean_and_error([run.accuracy for run in point])
        row = {
            "run": ", ".join(run.name for run in point),
            "kind": _KINDS[point[0].sparse][0],
            "runs": len(point),
            "seed": ", ".join(str(run.seed) for run in point),
            "params": point[0].params,
            "train_flops": point[0].train_flops,
            "train_seconds": _seconds(point),
            "accuracy": mean,
            "standard_error": error,
        }
        for name in names:
            logged = [run.few_shot[name] for run in point if name in run.few_shot]
            row[name], row[f"{name}/standard_error"] = (
                mean_and_error(logged) if logged else (None, None)
            )
        rows.append(row)
    return rows
