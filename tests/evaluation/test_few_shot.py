"""Few-shot transfer against the reference, an explicit solution, and its own rules."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import evaluation
from tests.support import golden

EXTRAS = golden.load("07_extras")


def clusters(count, classes=3, width=6, seed=0, spread=1.0):
    """Labels in turn, and features that scatter around one point per class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return centres[labels] + spread * rng.normal(size=(count, width)), labels


def data_of(count=90, tests=60, seed=0, spread=1.0, **options):
    x, y = clusters(count, seed=seed, spread=spread)
    return evaluation.FewShotData(x, y, *clusters(tests, seed=seed + 1, spread=spread), **options)


# The linear classifier.


@pytest.mark.parametrize("case", ["n_lt_d", "n_gt_d"])
def test_the_reference(case):
    arrays = EXTRAS.under(f"fewshot/{case}")
    found = evaluation.ridge_accuracy(
        arrays["x"], arrays["y"], arrays["x_test"], arrays["y_test"], arrays["l2_regs"]
    )
    # Shares of 50 examples; the reference's are rounded to float32.
    np.testing.assert_array_equal(np.round(50 * found, 4), np.round(50 * arrays["acc"], 4))
    np.testing.assert_array_equal(np.float32(evaluation.L2_REGS), arrays["l2_regs"])


def ridge_by_solving(x, y, x_test, y_test, l2, classes):
    """The normal equations, one penalty at a time."""
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, x_test = (np.c_[(v - mean) / std, np.full(len(v), 100.0)] for v in (x, x_test))
    targets = np.where(np.arange(classes) == y[:, None], 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return np.mean((x_test @ weights).argmax(1) == y_test)


@pytest.mark.parametrize("count", [4, 6, 7, 8, 30])
def test_both_gram_matrices_solve_the_normal_equations(count):
    x, y = clusters(count)
    x_test, y_test = clusters(500, seed=1)
    l2_regs = (0.25, 8.0, 1024.0)
    found = evaluation.ridge_accuracy(x, y, x_test, y_test, l2_regs, num_classes=5)
    wanted = [ridge_by_solving(x, y, x_test, y_test, l2, 5) for l2 in l2_regs]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert len(set(wanted)) > 1


@given(st.permutations(range(12)), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_order_scale_and_shift_change_nothing(order, scale, shift):
    x, y = clusters(12)
    x_test, y_test = clusters(40, seed=1)
    l2_regs = (1.0, 64.0)
    order = np.array(order)
    before = evaluation.ridge_accuracy(x, y, x_test, y_test, l2_regs)
    after = evaluation.ridge_accuracy(
        scale * x[order] + shift, y[order], scale * x_test + shift, y_test, l2_regs
    )
    np.testing.assert_allclose(after, before, atol=1 / 40 + 1e-9)


# Shots.


def test_shots_are_of_every_class_and_nested():
    labels = np.array([0, 1, 2] * 10 + [0] * 20)
    many = evaluation.sample_shots(labels, 5, seed=3)
    few = evaluation.sample_shots(labels, 2, seed=3)
    assert np.bincount(labels[many]).tolist() == [5, 5, 5]
    assert len(set(many)) == 15
    for label in range(3):
        assert many[labels[many] == label][:2].tolist() == few[labels[few] == label].tolist()
    assert many.tolist() == evaluation.sample_shots(labels, 5, seed=3).tolist()
    assert many.tolist() != evaluation.sample_shots(labels, 5, seed=4).tolist()


def test_the_draw_never_changes():
    assert evaluation.sample_shots([0, 1] * 5, 2, seed=0).tolist() == [4, 0, 1, 5]


def test_of_a_small_class_all_examples_are_taken():
    labels = np.array([0, 1, 1, 0, 0, 0, 0])
    drawn = evaluation.sample_shots(labels, 3, seed=1)
    assert labels[drawn].tolist() == [0, 0, 0, 1, 1]
    assert set(drawn[3:]) == {1, 2}
    assert evaluation.rows_needed(labels, (1, 9), seeds=(0, 4)).tolist() == list(range(7))
    whole = data_of()
    every = evaluation.few_shot_transfer({"a": whole}, shots=(len(whole.labels),), seeds=(0,))
    more = evaluation.few_shot_transfer({"a": whole}, shots=(len(whole.labels) + 5,), seeds=(0,))
    np.testing.assert_array_equal(every["a"].accuracies, more["a"].accuracies)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 0, 2, 2, 2], {}, "none of class 1$"),
        ([0, 0, 0], {"class_names": ["cat", "dog"]}, r"none of class 1 \(dog\)$"),
        ([6], {}, "none of class 0, 1, 2 and 3 more$"),
    ],
)
def test_a_class_without_examples_is_named(labels, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.sample_shots(labels, 3, **options)


def test_features_of_the_rows_needed_are_enough():
    whole = data_of()
    shots, seeds = (1, 4), (0, 5)
    rows = evaluation.rows_needed(whole.labels, shots, seeds)
    assert len(rows) < len(whole.labels)
    part = whole._replace(features=whole.features[rows], rows=rows)
    one, two = (
        evaluation.few_shot_transfer({"a": data}, shots, seeds)["a"].accuracies
        for data in (whole, part)
    )
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="rows_needed"):
        evaluation.few_shot_transfer({"a": part}, shots, seeds=(7,))


# Transfer.


def test_the_numbers_are_those_of_each_fit():
    data = data_of(spread=2.0)
    calls = []
    results = evaluation.few_shot_transfer(
        {"a": data}, shots=(1, 10), seeds=(0, 1), on_fit=lambda: calls.append(1)
    )
    result = results["a"]
    assert len(calls) == 4
    for i, shots in enumerate((1, 10)):
        for j, seed in enumerate((0, 1)):
            drawn = evaluation.sample_shots(data.labels, shots, seed)
            wanted = evaluation.ridge_accuracy(
                data.features[drawn], data.labels[drawn], data.test_features, data.test_labels
            )
            np.testing.assert_array_equal(result.accuracies[i, j], wanted)
        means = result.accuracies[i].mean(axis=0)
        assert result.mean[shots] == means.max()
        assert result.std[shots] == pytest.approx(np.std(result.accuracy[shots], ddof=1))
        assert means[result.l2_regs.index(result.l2_reg[shots])] == means.max()
    assert result.mean[10] > result.mean[1] > 0.4


def test_one_penalty_for_all_datasets_by_mean_rank(monkeypatch):
    tables = {
        "a": [0.1, 0.2, 0.3, 0.4],  # ranks 0 1 2 3
        "b": [0.9, 0.3, 0.2, 0.1],  # ranks 3 2 1 0
        "c": [0.5, 0.6, 0.7, 0.4],  # ranks 1 2 3 0; sums 4 5 6 3
    }
    rows = iter(tables.values())
    monkeypatch.setattr(
        "keras_vmoe.evaluation.few_shot.ridge_accuracy", lambda *_: np.array(next(rows))
    )
    data = dict.fromkeys(tables, data_of())
    l2_regs = (1.0, 2.0, 4.0, 8.0)
    results = evaluation.few_shot_transfer(data, shots=(1,), seeds=(0,), l2_regs=l2_regs)
    assert [result.l2_reg for result in results.values()] == [{1: 4.0}] * 3
    assert [result.mean[1] for result in results.values()] == [0.3, 0.2, 0.7]


def test_of_equal_penalties_the_largest_is_taken(monkeypatch):
    monkeypatch.setattr(
        "keras_vmoe.evaluation.few_shot.ridge_accuracy", lambda *_: np.array([0.5, 0.7, 0.7, 0.6])
    )
    result = evaluation.few_shot_transfer({"a": data_of()}, (1,), (0,), (1.0, 2.0, 4.0, 8.0))["a"]
    assert result.l2_reg == {1: 4.0}


def test_one_seed_has_no_deviation():
    x, y = clusters(30)
    result = evaluation.few_shot_accuracy(x, y, x, y, shots=(2,), seeds=(1,))
    assert result.std == {2: None}
    assert "±" not in result.table()
    assert json.loads(json.dumps(result.to_dict()))["rows"][0]["std"] is None


def test_the_table_has_a_line_per_dataset():
    data = {"digits": data_of(), "pets": data_of(seed=5)}
    text = evaluation.few_shot_table(evaluation.few_shot_transfer(data, shots=(1, 5)))
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ["dataset", "digits", "pets", "penalty"]
    assert lines[0].split()[1:] == ["1-shot", "5-shot"]
    assert all(len(line) == len(lines[0]) for line in lines)


X, Y = clusters(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": ()}, r"shots must hold.*Received: shots=\(\)"),
        ({"shots": (5, 5)}, "shots must hold different"),
        ({"shots": (0,)}, "shots must hold"),
        ({"shots": (1.5,)}, "shots must hold"),
        ({"seeds": ()}, "seeds must hold"),
        ({"seeds": (-1,)}, "seeds must hold"),
        ({"l2_regs": ()}, "l2_regs must hold"),
        ({"l2_regs": (1.0, 0.0)}, "l2_regs must hold"),
        ({"features": X[:, 0]}, r"features must have shape.*\(3,\)"),
        ({"test_features": X[:, :3]}, "as wide as features, 6. Received: 3"),
        ({"test_features": X[:-1]}, "test_features must have shape"),
        ({"test_labels": Y + 1}, "test_labels of '' must be among the 3 classes"),
        ({"test_features": X * np.nan}, "test_features must be finite"),
    ],
)
def test_wrong_arguments(arguments, message):
    given = {"features": X, "labels": Y, "test_features": X, "test_labels": Y}
    with pytest.raises(ValueError, match=message):
        evaluation.few_shot_accuracy(**{**given, "shots": (1,), **arguments})


def test_no_datasets():
    with pytest.raises(ValueError, match="datasets must hold"):
        evaluation.few_shot_transfer({})
