"""Routing of whole images, against loops in NumPy."""

import numpy as np
import pytest

from keras_vmoe import ops
from tests.support.gradients import value_and_gradients


def logits(images=7, experts=5, seed=0):
    return np.random.default_rng(seed).normal(size=(images, experts)).astype("float32")


def softmax(x):
    gates = np.exp(x - x.max(-1, keepdims=True))
    return gates / gates.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("renormalise", [False, True])
def test_an_image_goes_to_its_largest_gates(k, renormalise):
    values = logits()
    plan = ops.image_routing(values, k, renormalise)
    gates = softmax(values)
    for i, own in enumerate(gates):
        best = sorted(range(len(own)), key=lambda e: -own[e])[:k]
        assert np.array(plan.expert)[i].tolist() == best
        weight = own[best] / own[best].sum() if renormalise else own[best]
        np.testing.assert_allclose(np.array(plan.weight)[i], weight, rtol=1e-5)
    np.testing.assert_allclose(np.array(plan.gates), gates, rtol=1e-5)
    np.testing.assert_array_equal(np.array(plan.logits), values)


def test_ties_go_to_the_lower_expert():
    assert np.array(ops.image_routing(np.zeros((2, 4)), 2).expert).tolist() == [[0, 1]] * 2


def weights_of(gate, renormalise=False, k=2):
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=(7, k)).astype("float32")

    def total(x):
        import keras

        return keras.ops.sum(ops.image_routing(x, k, renormalise, gate).weight * cotangent)

    return value_and_gradients(total, logits())


@pytest.mark.parametrize("k", [1, 2])
def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other(k):
    value, (gradient,) = weights_of("straight_through", k=k)
    renormalised, (flat,) = weights_of("softmax", renormalise=True, k=k)
    _, (of_gates,) = weights_of("softmax", k=k)
    assert value == pytest.approx(renormalised, rel=1e-5)
    np.testing.assert_allclose(gradient, of_gates, atol=1e-6)
    assert np.abs(gradient - flat).max() > 1e-3
    if k == 1:
        assert np.abs(flat).max() < 1e-6  # a weight of one teaches nothing


def test_as_token_choice_keeps_all():
    plan = ops.image_routing(logits(), 2)
    tokens = ops.as_token_choice(plan)
    assert np.array(tokens.kept).all()
    assert tokens.kept.shape == (1, 7, 2)
    slots = {}
    # First choices of all images stand before second ones.
    for choice in range(2):
        for image in range(7):
            expert = int(plan.expert[image, choice])
            assert int(tokens.slot[0, image, choice]) == slots.get(expert, 0)
            slots[expert] = slots.get(expert, 0) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_selected": 6},
            "num_selected must be at most num_experts=5. Received: num_selected=6",
        ),
        ({"num_selected": 0}, "num_selected must be an integer of at least 1"),
        ({"gate": "hard"}, "gate must be one of 'softmax', 'straight_through'"),
        ({"gate": "straight_through", "renormalise": True}, "leave one of them out"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.image_routing(logits(), **arguments)


def test_bad_logits():
    with pytest.raises(ValueError, match="logits must have shape"):
        ops.image_routing(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="logits must be finite"):
        ops.image_routing(np.full((2, 3), np.nan, "float32"))
