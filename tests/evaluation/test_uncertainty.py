"""Likelihood, Brier score and calibration error against loops over images and bins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import evaluation
from keras_vmoe.evaluation.uncertainty import RunningCalibration


def by_loop(probabilities, labels, num_bins):
    nll = brier = 0.0
    bins = [[] for _ in range(num_bins)]
    for p, label in zip(probabilities, labels, strict=True):
        nll -= np.log(p[label])
        brier += sum((p[i] - (i == label)) ** 2 for i in range(len(p)))
        confidence = p.max()
        place = next(i for i in range(num_bins) if confidence <= (i + 1) / num_bins + 1e-15)
        bins[place].append((confidence, p.argmax() == label))
    n = len(labels)
    ece = 0.0
    for entries in bins:
        if entries:
            confidence, hits = np.mean([e[0] for e in entries]), np.mean([e[1] for e in entries])
            ece += len(entries) / n * abs(confidence - hits)
    return nll / n, brier / n, ece


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 20), st.integers(0, 99))
def test_all_is_the_loops(images, classes, num_bins, seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(images, classes))
    labels = rng.integers(0, classes, images)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = by_loop(probabilities, labels, num_bins)
    assert evaluation.calibration(logits, labels, num_bins) == pytest.approx(wanted, abs=1e-9)
    found = (
        evaluation.negative_log_likelihood(logits, labels),
        evaluation.brier_score(logits, labels),
        evaluation.expected_calibration_error(logits, labels, num_bins),
    )
    assert found == pytest.approx(wanted, abs=1e-9)
    one_hot = np.eye(classes)[labels]
    assert evaluation.calibration(logits, one_hot, num_bins) == pytest.approx(wanted, abs=1e-9)


def test_batches_add_up():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    running = RunningCalibration()
    for cut in np.split(np.arange(50), (7, 7, 30)):
        running.add(logits[cut], labels[cut])
    assert running.result() == pytest.approx(evaluation.calibration(logits, labels))


def test_a_calibrated_model_has_no_error_and_a_sure_one_has_that_of_its_mistakes():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 200_000)
    labels = (rng.random(200_000) > confidence).astype(int)
    logits = np.log(np.stack([confidence, 1 - confidence], -1))
    assert evaluation.expected_calibration_error(logits, labels) < 0.01
    sure = np.tile([50.0, 0.0], (10, 1))
    wrong = np.array([0] * 7 + [1] * 3)
    assert evaluation.expected_calibration_error(sure, wrong) == pytest.approx(0.3)


def test_members_count_with_their_mean_probability():
    rng = np.random.default_rng(0)
    members, labels = rng.normal(size=(20, 3, 4)).astype("float32"), rng.integers(0, 4, 20)
    mean = (np.exp(members) / np.exp(members).sum(-1, keepdims=True)).mean(1)
    found = evaluation.calibration(members, labels)
    assert found == pytest.approx(evaluation.calibration(np.log(mean), labels), abs=1e-5)


def test_classes_that_cannot_be_right_may_have_no_probability():
    with np.errstate(divide="ignore"):
        found = evaluation.calibration(np.log([[1.0, 0.0]]), np.array([0]))
    assert found == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("logits", "labels", "bins", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), 15, "at least one image"),
        (np.zeros((2, 3)), np.zeros(3, int), 15, r"labels of shape \(3,\)"),
        (np.zeros(3), np.zeros(3, int), 15, r"logits of shape \(3,\)"),
        (np.zeros((2, 3)), np.zeros(2, int), 0, "num_bins=0"),
        (np.zeros((2, 3)), np.array([0, -1]), 15, "labels must be class ids from 0 to 2.*with -1"),
        (np.zeros((2, 3)), np.array([3, 9]), 15, "labels must be class ids from 0 to 2.*with 3, 9"),
        (np.zeros((2, 3)), np.zeros(2), 15, "integer class ids.*dtype float64"),
    ],
)
def test_bad_input_is_named(logits, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        evaluation.calibration(logits, labels, bins)
