"""Losses by hand, by the reference's numbers and by its gradients."""

import numpy as np
import pytest
from keras import ops as kops

from keras_vmoe import ops
from tests.support.golden import case_name, load, max_error
from tests.support.gradients import value_and_gradients

ROUTER = load("01_router_top_experts_per_item")
LOGITS = np.array(
    [[2, 1, 0], [0.5, 0.4, 0.3], [3, -1, 0], [0, 2.5, 0.1], [1.2, 1.1, -0.5], [0.9, 0, 0.8]],
    "float32",
)[None]
NOISE = np.array(
    [
        [0.1, -0.2, 0.05],
        [0, 0.3, -0.1],
        [-0.3, 0.2, 0.1],
        [0.15, -0.05, 0],
        [-0.1, 0.25, 0.2],
        [0.05, 0, 0.12],
    ],
    "float32",
)[None]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_hand_computed_numbers():
    gates = softmax(LOGITS)
    np.testing.assert_allclose(gates.sum((0, 1)), [2.95031, 2.05611, 0.99358], atol=1e-5)
    for found, wanted in (
        (ops.importance_loss(gates), 0.159926),
        (ops.gshard_loss(gates), 1.400638),
        (ops.router_z_loss(LOGITS), 5.215431),
        (ops.load_loss(LOGITS, LOGITS + NOISE, 1 / 3, 1), 0.383351),
        (ops.load_loss(LOGITS, LOGITS + NOISE, 1 / 3, 2), 0.141711),
    ):
        np.testing.assert_allclose(np.asarray(found), [wanted], atol=1e-6)


def test_one_expert_has_no_imbalance():
    ones = np.ones((2, 4, 1), "float32")
    np.testing.assert_array_equal(np.asarray(ops.importance_loss(ones)), 0)


@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", ROUTER.cases(), ids=case_name)
def test_values_and_gradients_of_the_reference(case, mode):
    x, kernel = case["in/x"], case["in/kernel"]
    k = case.config["num_selected_experts"]
    std = float(case["in/noise_std_effective"])
    noise = case["in/noise_normal"] * std if mode == "noisy" else 0.0

    def clean(x, kernel):
        return kops.matmul(x, kernel)

    terms = {
        "importance_loss": lambda logits: ops.importance_loss(kops.softmax(logits)),
        "gshard_loss": lambda logits: ops.gshard_loss(kops.softmax(logits + noise)),
    }
    if mode == "noisy":
        terms["load_loss"] = lambda logits: ops.load_loss(logits, logits + noise, std, k)
    for name, term in terms.items():
        found = np.asarray(term(clean(x, kernel)))
        np.testing.assert_allclose(found, case[f"{mode}/{name}"], atol=1e-5)
        _, (of_x, of_kernel) = value_and_gradients(
            lambda x, kernel, term=term: kops.mean(term(clean(x, kernel))), x, kernel
        )
        wanted = case.under(f"{mode}/grad_mean_{name}")
        if kernel.shape[1] == 1:
            # The reference divides zero by zero here: one expert is always balanced.
            np.testing.assert_array_equal(of_kernel, 0)
            continue
        assert max_error(of_x, wanted["x"]) < 1e-4
        assert max_error(of_kernel, wanted["kernel"]) < 1e-4


def every_loss(logits, noisy, mask=None):
    return {
        "importance": ops.importance_loss(softmax(logits), mask),
        "load": ops.load_loss(logits, noisy, 0.3, 2, mask),
        "gshard": ops.gshard_loss(softmax(noisy), mask),
        "z": ops.router_z_loss(logits, mask),
    }


@pytest.mark.parametrize("name", ["importance", "load", "gshard", "z"])
def test_masked_tokens_count_for_nothing(name):
    """A masked group is worth the group without its masked tokens, whatever these hold."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 9, 4)).astype("float32")
    noisy = logits + 0.3 * rng.normal(size=logits.shape).astype("float32")
    mask = np.zeros((2, 9), bool)
    mask[0, [0, 3, 4, 7]] = mask[1, [1, 2, 8]] = True
    masked = np.asarray(every_loss(logits, noisy, mask)[name])
    for i in range(2):
        alone = every_loss(logits[i : i + 1, mask[i]], noisy[i : i + 1, mask[i]])[name]
        np.testing.assert_allclose(masked[i], np.asarray(alone)[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["importance", "load", "gshard", "z"])
def test_an_empty_group_gives_zero_and_zero_gradients(name):
    mask = np.array([[True, True], [False, False]])

    def loss(logits):
        return kops.sum(
            {
                "importance": lambda: ops.importance_loss(kops.softmax(logits), mask),
                "load": lambda: ops.load_loss(logits, logits, 0.3, 1, mask),
                "gshard": lambda: ops.gshard_loss(kops.softmax(logits), mask),
                "z": lambda: ops.router_z_loss(logits, mask),
            }[name]()[1]
        )

    logits = np.random.default_rng(0).normal(size=(2, 2, 3)).astype("float32")
    value, (gradient,) = value_and_gradients(loss, logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_group_mean_leaves_empty_groups_out():
    values = np.array([1.0, 3.0, 100.0], "float32")
    mask = np.array([[True, False], [True, True], [False, False]])
    assert float(ops.group_mean(values, mask)) == 2
    assert float(ops.group_mean(values[:2])) == 2
    assert float(ops.group_mean(values, np.zeros((3, 2), bool))) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.importance_loss(LOGITS[0]), "probabilities must have shape"),
        (lambda: ops.gshard_loss(LOGITS[0]), "gates must have shape"),
        (lambda: ops.router_z_loss(LOGITS[0]), "logits must have shape"),
        (lambda: ops.load_loss(LOGITS[0], LOGITS, 1.0, 1), "logits must have shape"),
        (lambda: ops.load_loss(LOGITS, LOGITS, 0.0, 1), "noise_std=0.0"),
        (lambda: ops.load_loss(LOGITS, LOGITS, 1.0, 0), "num_selected=0"),
        (lambda: ops.load_loss(LOGITS, LOGITS, 1.0, 4), "num_selected=4"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
