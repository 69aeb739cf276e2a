"""Which classes a classifier takes for which others."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require, require_finite, require_positive_int


def confusion_matrix(
    labels: Any, predictions: Any, num_classes: int, counts: bool = False
) -> np.ndarray:
    """Sums what a classifier says of the images of each class.

    By default whole probabilities are summed: with a few images of a class, most pairs of classes
    are never mistaken outright, while their probabilities still tell which are alike. Matrices of
    parts of a dataset add up to that of the whole.

    Args:
        labels: `[n]` ints, the classes of the images.
        predictions: `[n, num_classes]` probabilities, or `[n]` ints, the classes that were
            predicted, which are counted.
        num_classes: how many classes there are.
        counts: count the likeliest class of each image in place of summing its probabilities.

    Returns:
        `[num_classes, num_classes]` float64: in row i, column j what images of class i gave to
        class j.

    Raises:
        ValueError: labels or classes outside of the range, shapes that do not fit, or rows that are
            no probabilities, such as logits.

    Example:
        >>> confusion_matrix([0, 0, 1], [[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]], num_classes=2)
        array([[1.25, 0.75],
               [0.  , 1.  ]])
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], num_classes=2)
        array([[1., 1.],
               [0., 1.]])

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section on super-classes.
    """
    require_positive_int("num_classes", num_classes)
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    _require_classes("labels", labels, num_classes)
    matrix = np.zeros((num_classes, num_classes))
    if predictions.ndim == 2:
        _require_probabilities(predictions, (len(labels), num_classes))
        if not counts:
            np.add.at(matrix, labels, predictions.astype("float64"))
            return matrix
        predictions = predictions.argmax(1)
    _require_classes("predictions", predictions, num_classes)
    require(
        len(predictions) == len(labels),
        f"predictions must hold one entry a label, {len(labels)}. Received: {len(predictions)}",
    )
    np.add.at(matrix, (labels, predictions), 1.0)
    return matrix


def _require_classes(name: str, values: np.ndarray, num_classes: int) -> None:
    require(
        values.ndim == 1 and (values.dtype.kind in "iu" or not len(values)),
        f"{name} must be whole numbers of shape [n]. Received: {name} of shape {values.shape}, "
        f"{values.dtype}",
    )
    wrong = values[(values < 0) | (values >= num_classes)]
    require(
        not len(wrong),
        f"{name} must be from 0 to num_classes - 1 = {num_classes - 1}. "
        f"Received: {wrong[:1].tolist()} among {name}",
    )


def _require_probabilities(values: np.ndarray, shape: tuple[int, int]) -> None:
    require(
        values.shape == shape,
        f"predictions must have shape [n, num_classes] = {list(shape)}. "
        f"Received: predictions of shape {list(values.shape)}",
    )
    require_finite("predictions", values)
    sums = values.sum(1, dtype="float64")
    wrong = np.flatnonzero((values < 0).any(1) | (abs(sums - 1) > 1e-2))
    require(
        not len(wrong),
        "predictions must be probabilities, rows that sum to 1; give logits through a softmax. "
        f"Received: {len(wrong)} other rows, the first with the sum {sums[wrong[:1]].sum():.4g}",
    )


def row_shares(confusion: Any, class_names: Any = None) -> np.ndarray:
    """Scales each row of a confusion matrix to a sum of 1, so that all classes count alike.

    Args:
        confusion: `[n, n]` numbers of 0 or more, as `confusion_matrix` gives them.
        class_names: `[n]` names for messages.

    Returns:
        `[n, n]` float64.

    Raises:
        ValueError: no square matrix, negative or non-finite entries, or a class without images.

    Example:
        >>> row_shares([[3, 1], [0, 2]])
        array([[0.75, 0.25],
               [0.  , 1.  ]])
    """
    matrix = np.asarray(confusion, "float64")
    require(
        matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and len(matrix) > 0,
        f"confusion must have shape [classes, classes]. Received: shape {list(matrix.shape)}",
    )
    require_finite("confusion", matrix)
    require(bool((matrix >= 0).all()), f"confusion must be 0 or more. Received: {matrix.min()}")
    sums = matrix.sum(1, keepdims=True)
    empty = np.flatnonzero(sums[:, 0] == 0)
    if len(empty):
        shown = [str(i) if class_names is None else f"{i} ({class_names[i]})" for i in empty[:5]]
        raise ValueError(
            f"confusion must hold images of every class. Received: none of {len(empty)} of "
            f"{len(matrix)} classes, class {', '.join(shown)}{', …' if len(empty) > 5 else ''}; "
            "take a larger split"
        )
    return matrix / sums


def inside_confusion(confusion: Any, superclasses: Any) -> float:
    """The share of the confusion that stays inside of super-classes.

    Args:
        confusion: `[n, n]` as `confusion_matrix` gives it; each class counts alike, and what is
            right, the diagonal, counts in nothing.
        superclasses: `[n]` ints, the super-class of each class.

    Returns:
        0 to 1; NaN where no class is ever taken for another.

    Raises:
        ValueError: what `row_shares` raises, or not one super-class a class.

    Example:
        >>> inside_confusion([[6, 3, 1], [2, 8, 0], [0, 1, 9]], superclasses=[0, 0, 1])
        0.714...
    """
    shares, ids = row_shares(confusion), np.asarray(superclasses)
    require(
        ids.shape == (len(shares),),
        f"superclasses must hold one entry a class, {len(shares)}. Received: shape {ids.shape}",
    )
    np.fill_diagonal(shares, 0.0)
    total = shares.sum()
    return float(shares[ids[:, None] == ids].sum() / total) if total else float("nan")


def random_inside_confusion(superclasses: Any) -> float:
    """The mean share of confusion that stays inside of random super-classes of the same sizes.

    Every pair of classes is as likely as any other to share a super-class, so the mean over all
    mappings with these sizes is `sum(s * (s - 1)) / (n * (n - 1))`, whatever the confusion.

    Args:
        superclasses: `[n]` ints, the super-class of each of at least two classes.

    Example:
        >>> round(random_inside_confusion([0, 0, 0, 1, 1]), 6)  # (3 * 2 + 2 * 1) / (5 * 4)
        0.4
    """
    sizes = np.unique(np.asarray(superclasses), return_counts=True)[1]
    n = sizes.sum()
    require(n > 1, f"superclasses must hold at least two classes. Received: {n}")
    return float((sizes * (sizes - 1)).sum() / (n * (n - 1)))
