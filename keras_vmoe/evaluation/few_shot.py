"""Few-shot transfer: a linear classifier on frozen features, fitted in closed form.

The protocol is that of V-MoE's reference code, down to its choice of the penalty: one for each
number of shots, the best *on the test images*, in mean rank over all datasets. Accuracies are
therefore a little optimistic, for all models alike. Everything is computed in NumPy and float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe.evaluation.ridge import L2_REGS, checked_l2_regs, ridge_accuracy
from keras_vmoe.ops.validation import require, require_positive_int
from keras_vmoe.tables import aligned

SHOTS: tuple[int, ...] = (1, 5, 10, 25)
SEEDS: tuple[int, ...] = (0, 1, 2)


class FewShotData(NamedTuple):
    """The features of one dataset; n examples to take shots from, m test examples, width d.

    Attributes:
        features: `[n, d]`, or of some of the examples alone, `[r, d]`, see `rows`.
        labels: `[n]` ints.
        test_features: `[m, d]`.
        test_labels: `[m]` ints.
        class_names: a name per class, for messages; empty: the classes are those of the labels.
        rows: `[r]` sorted ints, the examples that `features` are of; `None`: of all of them.
            `rows_needed` tells which examples the shots will be.
    """

    features: np.ndarray
    labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    class_names: Sequence[str] = ()
    rows: np.ndarray | None = None

    def features_of(self, examples: np.ndarray) -> np.ndarray:
        """The features of the given examples, `[len(examples), d]`."""
        if self.rows is None:
            return np.asarray(self.features)[examples]
        places = np.searchsorted(self.rows, examples)
        require(
            bool(np.array_equal(np.take(self.rows, places, mode="clip"), examples)),
            "rows must hold every example that is a shot; make them by rows_needed",
        )
        return np.asarray(self.features)[places]


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotResult:
    """Accuracies on one dataset. The properties are of the penalty that was chosen.

    Attributes:
        shots: numbers of training examples per class.
        seeds: of the draws of these examples.
        l2_regs: the penalties that were tried.
        accuracies: `[shots, seeds, l2_regs]`, on the test examples.
        chosen: for each number of shots the index of its penalty.
    """

    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    l2_regs: tuple[float, ...]
    accuracies: np.ndarray
    chosen: tuple[int, ...]

    @property
    def l2_reg(self) -> dict[int, float]:
        """Number of shots to the penalty that was chosen."""
        return {n: self.l2_regs[i] for n, i in zip(self.shots, self.chosen, strict=True)}

    @property
    def accuracy(self) -> dict[int, np.ndarray]:
        """Number of shots to the accuracy of each seed, `[seeds]`."""
        rows = zip(self.shots, self.accuracies, self.chosen, strict=True)
        return {n: row[:, i] for n, row, i in rows}

    @property
    def mean(self) -> dict[int, float]:
        """Number of shots to the mean accuracy over the seeds."""
        return {n: float(values.mean()) for n, values in self.accuracy.items()}

    @property
    def std(self) -> dict[int, float | None]:
        """Number of shots to the sample standard deviation over seeds; of one seed `None`."""
        if len(self.seeds) < 2:
            return dict.fromkeys(self.shots)
        return {n: float(values.std(ddof=1)) for n, values in self.accuracy.items()}

    def table(self, name: str = "accuracy") -> str:
        """The means as text, see `few_shot_table`."""
        return few_shot_table({name: self})

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers, ready for JSON; a row for each number of shots."""
        rows = [
            {
                "shots": n,
                "mean": self.mean[n],
                "std": self.std[n],
                "l2_reg": self.l2_reg[n],
                "accuracies": self.accuracy[n].tolist(),
            }
            for n in self.shots
        ]
        return {"seeds": list(self.seeds), "rows": rows}


def sample_shots(
    labels: np.ndarray, shots: int, seed: int = 0, class_names: Sequence[str] = ()
) -> np.ndarray:
    """Draws the same number of examples of each class, or all of a class that has fewer.

    The same labels and seed always give the same examples, and the draw of few shots is the
    beginning of that of many.

    Args:
        labels: `[n]` ints.
        shots: examples per class.
        seed: which of the draws.
        class_names: a name per class; without, the classes are 0 to the largest label.

    Returns:
        Indices, class by class; `[classes * shots]` where no class has fewer.

    Raises:
        ValueError: a class without examples; the message names it.

    Example:

    >>> from keras_vmoe import evaluation
    >>> evaluation.sample_shots([0, 1, 0, 1, 0], shots=2).shape
    (4,)
    """
    require_positive_int("shots", shots)
    labels = np.asarray(labels)
    classes = max(len(class_names), int(labels.max()) + 1)
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    names = [f"{label} ({class_names[label]})" if class_names else str(label) for label in empty]
    require(
        not names,
        f"every class must have an example to draw. Received: none of class {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
    )
    # RandomState, because its stream of numbers never changes.
    random = np.random.RandomState(seed)
    drawn = [random.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    return np.concatenate([indices[:shots] for indices in drawn])


def rows_needed(
    labels: np.ndarray,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """The examples that the draws of all seeds take: no others need features.

    Args:
        labels: `[n]` ints.
        shots: numbers of examples per class.
        seeds: of the draws.
        class_names: as for `sample_shots`.

    Returns:
        Sorted indices, without repetition; `FewShotData.rows`.

    Raises:
        ValueError: see `sample_shots`; empty or repeated `shots` or `seeds`.

    Example:

    >>> from keras_vmoe import evaluation
    >>> len(evaluation.rows_needed([0, 1] * 50, shots=(1, 5), seeds=(0,)))
    10
    """
    shots, seeds = checked_draws(shots, seeds)
    return np.unique([sample_shots(labels, max(shots), seed, class_names) for seed in seeds])


def few_shot_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2_regs: Sequence[float] = L2_REGS,
) -> FewShotResult:
    """Few-shot accuracy on one dataset; see `few_shot_transfer` for several.

    Args:
        features: `[n, d]`, frozen features of the examples that shots are drawn from.
        labels: `[n]` ints.
        test_features: `[m, d]`.
        test_labels: `[m]` ints.
        shots: numbers of training examples per class.
        seeds: of the draws.
        l2_regs: penalties; the best on the test examples is taken, for each number of shots.

    Returns:
        A `FewShotResult`.

    Raises:
        ValueError: see `few_shot_transfer`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> labels = np.arange(40) % 2
    >>> features = labels[:, None] + 0.01 * np.random.default_rng(0).normal(size=(40, 3))
    >>> result = evaluation.few_shot_accuracy(features, labels, features, labels, shots=(1, 5))
    >>> result.mean
    {1: 1.0, 5: 1.0}
    """
    data = FewShotData(features, labels, test_features, test_labels)
    return few_shot_transfer({"": data}, shots, seeds, l2_regs)[""]


def few_shot_transfer(
    datasets: Mapping[str, FewShotData],
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2_regs: Sequence[float] = L2_REGS,
    on_fit: Callable[[], None] = lambda: None,
) -> dict[str, FewShotResult]:
    """Few-shot accuracy on several datasets, with one penalty for each number of shots.

    That penalty has the best mean rank over the datasets, ranked by the accuracy on the test
    examples (mean of the seeds); of penalties that are equally accurate the larger ranks higher.
    With one dataset it is that dataset's best.

    Args:
        datasets: name to features.
        shots: numbers of training examples per class.
        seeds: of the draws.
        l2_regs: penalties.
        on_fit: called after each fit; there are `datasets * shots * seeds`.

    Returns:
        Name to `FewShotResult`.

    Raises:
        ValueError: no datasets, features that do not fit their labels, a class without
            examples, empty or repeated `shots`, `seeds`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> x, y = np.eye(4)[[0, 1] * 8], np.arange(16) % 2
    >>> data = {"one": evaluation.FewShotData(x, y, x, y)}
    >>> evaluation.few_shot_transfer(data, shots=(2,), seeds=(0,))["one"].mean
    {2: 1.0}

    Reference: the reference code of Riquelme et al. 2021, arXiv 2106.05974 (few-shot evaluation).
    """
    shots, seeds = checked_draws(shots, seeds)
    l2_regs = checked_l2_regs(l2_regs)
    require(bool(datasets), "datasets must hold at least one. Received: none")
    tables = {
        name: _accuracies(name, data, shots, seeds, l2_regs, on_fit)
        for name, data in datasets.items()
    }
    chosen = tuple(
        _best_in_mean_rank([table[i].mean(axis=0) for table in tables.values()])
        for i in range(len(shots))
    )
    return {
        name: FewShotResult(shots, seeds, l2_regs, table, chosen) for name, table in tables.items()
    }


def checked_draws(
    shots: Sequence[int], seeds: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two as tuples.

    Raises:
        ValueError: one that is empty, repeats a number, or holds one out of range.
    """
    shots, seeds = tuple(shots), tuple(seeds)
    for name, values, least in (("shots", shots, 1), ("seeds", seeds, 0)):
        whole = all(isinstance(n, (int, np.integer)) and n >= least for n in values)
        require(
            bool(values) and whole and len(set(values)) == len(values),
            f"{name} must hold different whole numbers of {least} or more. "
            f"Received: {name}={values}",
        )
    return shots, seeds


def _accuracies(
    name: str,
    data: FewShotData,
    shots: tuple[int, ...],
    seeds: tuple[int, ...],
    l2_regs: tuple[float, ...],
    on_fit: Callable[[], None],
) -> np.ndarray:
    """`[shots, seeds, l2_regs]`."""
    labels, test_labels = np.asarray(data.labels), np.asarray(data.test_labels)
    classes = max(len(data.class_names), int(labels.max()) + 1)
    require(
        int(test_labels.max()) < classes,
        f"test_labels of {name!r} must be among the {classes} classes of labels. "
        f"Received: label {int(test_labels.max())}",
    )
    table = np.zeros((len(shots), len(seeds), len(l2_regs)))
    for i, j in np.ndindex(len(shots), len(seeds)):
        drawn = sample_shots(labels, shots[i], seeds[j], data.class_names)
        x, y = data.features_of(drawn), labels[drawn]
        table[i, j] = ridge_accuracy(x, y, data.test_features, test_labels, l2_regs, classes)
        on_fit()
    return table


def _best_in_mean_rank(accuracies: Sequence[np.ndarray]) -> int:
    """The index of the penalty; `accuracies` holds `[l2_regs]` of each dataset."""
    ranks = [np.argsort(np.argsort(row, kind="stable"), kind="stable") for row in accuracies]
    return int(np.argmax(np.mean(ranks, axis=0)))


def few_shot_table(results: Mapping[str, FewShotResult]) -> str:
    """Results as text: a line per dataset, a column for each number of shots.

    Args:
        results: name to result, of the same shots and seeds.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> accuracies = np.array([[[0.5, 0.6], [0.5, 0.7]]])
    >>> result = evaluation.FewShotResult((5,), (0, 1), (0.5, 2.0), accuracies, (1,))
    >>> print(evaluation.few_shot_table({"digits": result}))
    dataset        5-shot
    digits   65.0 ± 7.1 %
    penalty           2^1
    """
    first = next(iter(results.values()))
    penalties = [_power_of_two(first.l2_reg[n]) for n in first.shots]
    lines = [("dataset", *(f"{n}-shot" for n in first.shots))]
    for name, result in results.items():
        lines.append((name, *(_share(result.mean[n], result.std[n]) for n in first.shots)))
    lines.append(("penalty", *penalties))
    return "\n".join(aligned(lines, num_left=1))


def _share(mean: float, std: float | None) -> str:
    return f"{100 * mean:.1f} %" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f} %"


def _power_of_two(value: float) -> str:
    power = np.log2(value)
    return f"2^{power:.0f}" if power == round(power) else f"{value:g}"
