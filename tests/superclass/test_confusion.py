"""Confusion matrices, and how much of one stays inside of super-classes."""

import numpy as np
import pytest

from keras_vmoe import superclass
from tests.superclass import made


def predictions(n=60, classes=5, seed=0):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), n)
    return random.integers(0, classes, n), probabilities


def test_probabilities_are_summed():
    labels, probabilities = predictions()
    wanted = np.zeros((5, 5))
    for label, row in zip(labels, probabilities, strict=True):
        for predicted in range(5):
            wanted[label, predicted] += row[predicted]
    found = superclass.confusion_matrix(labels, probabilities, 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert found.dtype == np.float64
    assert found.sum() == pytest.approx(60)


def test_predicted_classes_are_counted():
    labels, probabilities = predictions()
    wanted = np.zeros((5, 5))
    for label, row in zip(labels, probabilities, strict=True):
        wanted[label, max(range(5), key=lambda j: row[j])] += 1
    np.testing.assert_array_equal(
        superclass.confusion_matrix(labels, probabilities, 5, counts=True), wanted
    )
    likeliest = probabilities.argmax(1)
    np.testing.assert_array_equal(superclass.confusion_matrix(labels, likeliest, 5), wanted)


def test_parts_add_up():
    labels, probabilities = predictions()
    whole = superclass.confusion_matrix(labels, probabilities, 5)
    parts = [
        superclass.confusion_matrix(labels[part], probabilities[part], 5)
        for part in (slice(0, 20), slice(20, 20), slice(20, None))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 5], [0, 1], 5), r"labels must be from 0 to num_classes - 1 = 4. Received: \[5\]"),
        (([0, -1], [0, 1], 5), r"Received: \[-1\] among labels"),
        (([0.5], [0], 5), "labels must be whole numbers"),
        (([0], [7], 5), "predictions must be from 0"),
        (([0, 1], [0], 5), "predictions must hold one entry a label, 2. Received: 1"),
        (([0], [[0.5, 0.5]], 3), r"predictions must have shape \[n, num_classes\] = \[1, 3\]"),
        (([0], [[4.0, -3.0]], 2), "rows that sum to 1; give logits through a softmax"),
        (([0, 1], [[1.0, 0.0], [3.0, 2.0]], 2), "1 other rows, the first with the sum 5"),
        (([0], [[np.nan, 1.0]], 2), "predictions must be finite"),
        (([0], [0], 0), "num_classes must be an integer of at least 1"),
    ],
)
def test_wrong_predictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        superclass.confusion_matrix(*arguments)


def test_rows_are_scaled():
    confusion, _ = made.planted(7, 2)
    shares = superclass.row_shares(confusion)
    for i in range(7):
        np.testing.assert_allclose(shares[i], confusion[i] / sum(confusion[i]))


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        ([[1, 2]], r"shape \[classes, classes\]. Received: shape \[1, 2\]"),
        ([[1, -1], [0, 1]], "confusion must be 0 or more"),
        ([[1, np.inf], [0, 1]], "confusion must be finite"),
        ([[1, 1, 0], [0, 0, 0], [0, 0, 0]], "none of 2 of 3 classes, class 1, 2; take a larger"),
    ],
)
def test_wrong_matrices(confusion, message):
    with pytest.raises(ValueError, match=message):
        superclass.row_shares(confusion)


def test_classes_without_images_are_named():
    with pytest.raises(ValueError, match=r"class 1 \(dog\)"):
        superclass.row_shares([[1, 1], [0, 0]], ["cat", "dog"])


def test_the_share_inside():
    confusion, ids = made.planted(9, 3)
    inside = total = 0.0
    for i in range(9):
        for j in range(9):
            if i != j:
                share = confusion[i, j] / confusion[i].sum()
                total += share
                inside += share if ids[i] == ids[j] else 0
    assert superclass.inside_confusion(confusion, ids) == pytest.approx(inside / total, rel=1e-12)
    assert superclass.inside_confusion(confusion, np.zeros(9, int)) == 1.0
    assert superclass.inside_confusion(confusion, np.arange(9)) == 0.0
    assert np.isnan(superclass.inside_confusion(np.eye(3), [0, 0, 1]))
    with pytest.raises(ValueError, match="one entry a class, 9"):
        superclass.inside_confusion(confusion, [0, 1])


def test_the_share_inside_of_random_ones_is_the_mean_of_many():
    confusion, _ = made.planted(12, 3)
    ids = np.array([0] * 6 + [1] * 4 + [2] * 2)
    random = np.random.default_rng(0)
    many = [superclass.inside_confusion(confusion, random.permutation(ids)) for _ in range(3000)]
    wanted = superclass.random_inside_confusion(ids)
    assert np.mean(many) == pytest.approx(wanted, abs=5 * np.std(many) / np.sqrt(3000))
    assert wanted == pytest.approx((6 * 5 + 4 * 3 + 2 * 1) / (12 * 11))
    with pytest.raises(ValueError, match="at least two classes"):
        superclass.random_inside_confusion([0])
