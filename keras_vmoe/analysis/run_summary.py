"""What a finished training run reached, at which cost: the data of the figures over runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LETTERS = {"num_selected": "k", "num_experts": "E"}
# Follow from others, or say nothing of the model.
_NOT_COMPARED = frozenset(("sparse_blocks", "name"))


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Attributes:
        name: what figures call it.
        sparse: whether its model holds experts.
        accuracy: on held-out images at the end, 0 to 1.
        train_flops: of the whole training.
        train_seconds: measured, of the whole training without its evaluations.
        seed: of the run.
        params: of the model.
        few_shot: accuracies of few-shot transfer by name, where they were logged.
        arguments: of the model, with its defaults filled in; of one with top-k routing at least
            `num_experts`, `num_selected`, `placement`, `sparse_blocks` (how many there are) and
            `renormalise_gates`.
    """

    name: str
    sparse: bool
    accuracy: float
    train_flops: float
    train_seconds: float
    seed: int = 0
    params: int = 0
    few_shot: Mapping[str, float] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def varying(runs: Sequence[RunSummary]) -> list[str]:
    """Returns the arguments in which some runs differ, in alphabetical order.

    Args:
        runs: the runs; an argument that only some of them have is not compared.

    Example:
        >>> runs = [RunSummary(str(k), True, 0.9, 1, 1, arguments={"k": k, "e": 8}) for k in (1, 2)]
        >>> varying(runs)
        ['k']
    """
    shared = set.intersection(*(set(run.arguments) for run in runs)) if runs else set()
    shared -= _NOT_COMPARED
    return sorted(name for name in shared if len({repr(run.arguments[name]) for run in runs}) > 1)


def label_of(run: RunSummary, names: Sequence[str]) -> str:
    """Returns some arguments of a run as words.

    Args:
        run: the run.
        names: the arguments; the usual ones get their letters.

    Example:
        >>> run = RunSummary("a", True, 0.9, 1, 1, arguments={"num_selected": 2, "width": 64})
        >>> label_of(run, ["num_selected", "width"])
        'k=2, width=64'
    """
    words = [f"{_LETTERS.get(name, name)}={run.arguments[name]}" for name in names]
    return ", ".join(words)


def in_order(runs: Sequence[RunSummary], names: Sequence[str]) -> list[RunSummary]:
    """Returns runs sorted by some arguments, numbers by their size.

    Args:
        runs: the runs.
        names: the arguments, the most important first.

    Example:
        >>> runs = [RunSummary(str(e), True, 0.9, 1, 1, arguments={"e": e}) for e in (16, 4)]
        >>> [run.name for run in in_order(runs, ["e"])]
        ['4', '16']
    """

    def place(run: RunSummary) -> list[tuple[int, float, str]]:
        values = [run.arguments[name] for name in names]
        return [(0, v, "") if isinstance(v, (int, float)) else (1, 0, str(v)) for v in values]

    return sorted(runs, key=place)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error; of one value the error is NaN.

    Example:
        >>> mean_and_error([0.5, 0.75])
        (0.625, 0.125)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values)))
