"""A linear classifier in closed form, for many penalties at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_vmoe.ops.validation import require

#: The penalties that are tried, 2^-10 to 2^19.
L2_REGS: tuple[float, ...] = tuple(2.0**power for power in range(-10, 20))
# Added to the standard deviations; and the constant feature, so large that the penalty hardly
# touches its weight.
_EPSILON = 1e-5
_CONSTANT = 100.0


def ridge_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    l2_regs: Sequence[float] = L2_REGS,
    num_classes: int | None = None,
) -> np.ndarray:
    """The accuracy of a linear classifier fitted by ridge regression, for each penalty.

    Features are scaled by mean and standard deviation of the training features, and a constant one
    of 100 is added; targets are +1 for the class and -1 for the others. One eigendecomposition, of
    the smaller of the two Gram matrices, serves all penalties.

    Args:
        features: `[n, d]` to fit.
        labels: `[n]` ints.
        test_features: `[m, d]`.
        test_labels: `[m]` ints.
        l2_regs: the penalties, each above 0.
        num_classes: one more than the largest label, by default.

    Returns:
        `[l2_regs]`, the share of the test examples that are classified rightly.

    Raises:
        ValueError: shapes that do not fit each other, penalties that are not above 0.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> x, y = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
    >>> evaluation.ridge_accuracy(x, y, x, y, l2_regs=(0.1, 1.0))
    array([1., 1.])

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 3.4; the reference code's few-shot
    evaluation.
    """
    labels, test_labels = np.asarray(labels), np.asarray(test_labels)
    x, x_test = (np.asarray(values, "float64") for values in (features, test_features))
    _check_features(x, labels, x_test, test_labels)
    l2_regs = checked_l2_regs(l2_regs)
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    mean, std = x.mean(axis=0), x.std(axis=0) + _EPSILON
    x, x_test = (_with_constant((values - mean) / std) for values in (x, x_test))
    y = 2.0 * np.eye(classes)[labels] - 1.0
    # The weights are left @ diag(1 / (eigenvalues + l2)) @ right, for any l2.
    if x.shape[0] >= x.shape[1]:
        eigenvalues, left = np.linalg.eigh(x.T @ x)
        right = left.T @ (x.T @ y)
    else:
        eigenvalues, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ y
    projected = x_test @ left
    scores = ((projected / (eigenvalues + l2)) @ right for l2 in l2_regs)
    return np.array([np.mean(score.argmax(axis=1) == test_labels) for score in scores])


def _with_constant(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.full((len(x), 1), _CONSTANT)], axis=1)


def _check_features(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> None:
    for name, values, ids in (("features", x, y), ("test_features", x_test, y_test)):
        require(
            values.ndim == 2 and ids.ndim == 1 and len(values) == len(ids) > 0,
            f"{name} must have shape [examples, width] and as many labels. "
            f"Received: {name} of shape {values.shape} and labels of shape {ids.shape}",
        )
        require(
            bool(np.isfinite(values).all()), f"{name} must be finite. Received: NaN or infinity"
        )
    require(
        x.shape[1] == x_test.shape[1],
        f"test_features must be as wide as features, {x.shape[1]}. Received: {x_test.shape[1]}",
    )


def checked_l2_regs(l2_regs: Sequence[float]) -> tuple[float, ...]:
    """The penalties as floats.

    Raises:
        ValueError: none, or one that is not above 0.
    """
    values = tuple(float(value) for value in l2_regs)
    require(
        bool(values) and min(values) > 0,
        f"l2_regs must hold penalties above 0. Received: l2_regs={tuple(l2_regs)}",
    )
    return values
