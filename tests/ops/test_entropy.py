"""Entropy losses of modalities: numbers by hand, loops in NumPy, gradients, thresholds."""

import math

import numpy as np
import pytest
from keras import ops as kops

from keras_vmoe import ops
from tests.ops.test_losses import LOGITS, softmax
from tests.support.gradients import value_and_gradients

GATES = softmax(LOGITS)
IMAGE = np.arange(6)[None] < 4
MASKS = {"image": IMAGE, "text": ~IMAGE}


@pytest.mark.parametrize(
    ("mask", "local", "entropy", "thresholded"),
    [
        (MASKS["image"], 0.680503, 0.975163, 0.123450),
        (MASKS["text"], 0.981702, 1.062513, 0.036099),
        (None, 0.780903, None, None),
    ],
    ids=["image", "text", "all"],
)
def test_hand_computed_numbers(mask, local, entropy, thresholded):
    assert float(ops.local_entropy_loss(GATES, mask)) == pytest.approx(local, abs=1e-6)
    if entropy is None:
        return
    assert float(ops.global_entropy_loss(GATES, mask)) == pytest.approx(-entropy, abs=1e-6)
    for minimum, wanted in ((2, 0.0), (3, thresholded)):
        found = ops.global_entropy_loss(GATES, mask, math.log(minimum))
        assert float(found) == pytest.approx(wanted, abs=1e-6)


def entropy_of(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def by_loops(gates, mask):
    """Mean entropy, and entropy of the mean, of the tokens of all groups."""
    rows = [gates[i, j] for i in range(len(gates)) for j in range(len(gates[i])) if mask[i, j]]
    local = sum(entropy_of(row) for row in rows) / len(rows)
    return local, entropy_of([sum(column) / len(rows) for column in zip(*rows, strict=True)])


def test_tokens_of_all_groups_are_one_mean():
    """Not the mean of the groups' means: these groups hold 1, 5 and no tokens."""
    rng = np.random.default_rng(0)
    gates = softmax(rng.normal(size=(3, 7, 4)))
    mask = np.zeros((3, 7), bool)
    mask[0, 3] = mask[1, 2:] = True
    local, entropy = by_loops(gates, mask)
    assert float(ops.local_entropy_loss(gates, mask)) == pytest.approx(local, rel=1e-9)
    assert float(ops.global_entropy_loss(gates, mask)) == pytest.approx(-entropy, rel=1e-9)
    np.testing.assert_allclose(np.asarray(ops.mean_gates(gates, mask)), gates[mask].mean(0))
    # What the others hold is seen by nobody.
    other = np.where(mask[..., None], gates, softmax(9 * rng.normal(size=gates.shape)))
    assert float(ops.local_entropy_loss(other, mask)) == pytest.approx(local, rel=1e-9)
    assert float(ops.global_entropy_loss(other, mask)) == pytest.approx(-entropy, rel=1e-9)


LOSSES = {
    "local": lambda gates, mask: ops.local_entropy_loss(gates, mask),
    "global": lambda gates, mask: ops.global_entropy_loss(gates, mask),
    "threshold": lambda gates, mask: ops.global_entropy_loss(gates, mask, math.log(3)),
    "importance": lambda gates, mask: ops.balanced_importance_loss(gates, [mask, ~mask])[0],
}


def gradient_of(name, logits, mask):
    _, (gradient,) = value_and_gradients(
        lambda x: LOSSES[name](kops.softmax(x, axis=-1), mask), logits
    )
    return gradient


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences(name):
    rng = np.random.default_rng(1)
    logits, step = LOGITS.astype("float64"), 1e-6
    gradient = gradient_of(name, logits, IMAGE)
    assert gradient.any()
    for _ in range(3):
        direction = rng.normal(size=logits.shape)
        ends = [
            float(LOSSES[name](softmax(logits + sign * step * direction), IMAGE))
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_threshold_that_is_reached_asks_for_nothing():
    for name, wanted in (("image", 0.0), ("text", 0.0)):
        value, (gradient,) = value_and_gradients(
            lambda x, mask=MASKS[name]: ops.global_entropy_loss(kops.softmax(x), mask, math.log(2)),
            LOGITS,
        )
        assert value == wanted
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_no_tokens_no_loss(name):
    nobody = np.zeros((1, 6), bool)
    value, (gradient,) = value_and_gradients(
        lambda x: {
            **LOSSES,
            "importance": lambda gates, mask: ops.balanced_importance_loss(gates, [mask, mask])[0],
        }[name](kops.softmax(x), nobody),
        LOGITS,
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_certain_gates_have_no_entropy_and_a_finite_gradient():
    certain = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    for loss in (ops.local_entropy_loss, ops.global_entropy_loss):
        _, (gradient,) = value_and_gradients(loss, certain)
        assert np.isfinite(gradient).all()
    assert float(ops.local_entropy_loss(certain)) == 0
    # Far apart logits underflow to gates of exactly 0.
    apart = np.array([[[200.0, 0.0, -200.0]]], "float32")
    value, (gradient,) = value_and_gradients(
        lambda x: ops.local_entropy_loss(kops.softmax(x)), apart
    )
    assert value == 0
    assert np.isfinite(gradient).all()


def test_equal_gates_are_the_largest_entropy():
    equal = np.full((2, 3, 5), 0.2)
    assert float(ops.local_entropy_loss(equal)) == pytest.approx(math.log(5))
    assert float(ops.global_entropy_loss(equal)) == pytest.approx(-math.log(5))
    assert float(ops.global_entropy_loss(equal, threshold=math.log(5))) == pytest.approx(0)


def test_tokens_of_a_modality():
    modality = np.array([[0, 1, 1], [2, 1, 0]])
    mask = np.array([[True, True, False], [True, True, True]])
    for index, wanted in ((0, [0, 5]), (1, [1, 4]), (2, [3])):
        found = np.asarray(ops.of_modality(modality, index, mask))
        assert np.flatnonzero(found).tolist() == wanted
    assert np.flatnonzero(np.asarray(ops.of_modality(modality, 1))).tolist() == [1, 2, 4]


def test_balanced_importance_is_the_formula():
    """The sum of the modalities' means, by group; a modality that a group lacks adds nothing."""
    gates = softmax(np.random.default_rng(2).normal(size=(2, 6, 3)))
    masks = [np.stack([IMAGE[0], np.ones(6, bool)]), np.stack([~IMAGE[0], np.zeros(6, bool)])]
    found = np.asarray(ops.balanced_importance_loss(gates, masks))
    importance = np.stack([gates[0, :4].mean(0) + gates[0, 4:].mean(0), gates[1].mean(0)])
    wanted = importance.var(-1) / importance.mean(-1) ** 2
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    # Two images more of the same kind change nothing, as they do in the plain importance loss.
    more = np.concatenate([gates[:1], gates[:1, :4]], axis=1)
    masks = [np.concatenate([m[:1], np.full((1, 4), m is masks[0])], 1) for m in masks]
    np.testing.assert_allclose(
        np.asarray(ops.balanced_importance_loss(more, masks)), wanted[:1], rtol=1e-9
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.mean_gates(GATES[0]), "gates must have shape"),
        (lambda: ops.local_entropy_loss(GATES[0]), "gates must have shape"),
        (lambda: ops.local_entropy_loss(GATES, IMAGE[:, :5]), r"mask must begin.*\(1, 5\)"),
        (lambda: ops.global_entropy_loss(GATES, threshold=1.2), r"log\(3\) = 1.0986.*=1.2"),
        (lambda: ops.global_entropy_loss(GATES, threshold=-0.1), "threshold=-0.1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
