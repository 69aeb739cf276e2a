"""Statistics of a routing, counted by hand."""

import numpy as np
import pytest

from keras_vmoe import ops
from keras_vmoe.ops import statistics
from tests.support.oracles import random_gates

GATES = np.array([[[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]], "float32")


def test_token_choice():
    plan = ops.top_k_routing(GATES, 1, 2, batch_priority=True)
    found = {name: float(value) for name, value in ops.routing_statistics(plan).items()}
    entropy = -(GATES * np.log(GATES)).sum(-1).mean()
    wanted = {
        "expert_load_min": 1 / 3,
        "expert_load_max": 2 / 3,
        "dropped": 1 / 4,
        "confidence": 0.75,
        "entropy": entropy,
    }
    assert found == pytest.approx(wanted, rel=1e-6)


def test_expert_choice():
    # Expert 0 takes tokens 1 and 2, expert 1 takes 3 and 0; with one slot, 1 and 3.
    plan = ops.expert_choice_routing(GATES, 2)
    assert float(ops.dropped_share(plan)) == 0
    plan = ops.expert_choice_routing(GATES, 1)
    assert float(ops.dropped_share(plan)) == 0.5
    np.testing.assert_allclose(np.asarray(ops.expert_shares(plan)), [0.5, 0.5])


@pytest.mark.parametrize("kind", ["token", "expert"])
def test_masked_tokens_count_for_nothing(kind):
    rng = np.random.default_rng(0)
    gates = random_gates(rng, 1, 12, 3)
    mask = np.arange(12)[None] % 3 > 0

    def route(gates, mask=None):
        if kind == "token":
            return ops.top_k_routing(gates, 2, 3, mask)
        return ops.expert_choice_routing(gates, 2, mask)

    masked = ops.routing_statistics(route(gates, mask), mask)
    alone = ops.routing_statistics(route(gates[:, mask[0]]))
    for name, value in alone.items():
        assert float(masked[name]) == pytest.approx(float(value), rel=1e-5), name


def test_nobody_is_routed():
    mask = np.zeros((1, 4), bool)
    plan = ops.top_k_routing(GATES, 1, 2, mask)
    assert all(float(v) == 0 for v in ops.routing_statistics(plan, mask).values())


def test_certain_gates_have_no_entropy():
    gates = np.array([[[1.0, 0.0]]], "float32")
    found = ops.routing_statistics(ops.top_k_routing(gates, 1, 1))
    assert float(found["entropy"]) == 0


def test_soft_routing_has_shares_of_weight_and_drops_nothing():
    combine = np.array([[[[0.5, 0.1], [0.2, 0.2]], [[0.7, 0.1], [0.1, 0.1]]]], "float32")
    found = ops.routing_statistics(ops.SoftPlan(combine, combine))
    assert "dropped" not in found
    assert float(found["expert_load_max"]) == pytest.approx(0.7)
    assert float(found["expert_load_min"]) == pytest.approx(0.3)
    assert float(found["confidence"]) == pytest.approx(0.6)


# ------------------------------------------------------------------------- by modality

NAMES = ("image", "text")
STATISTICS = ("success_rate", "effective_experts", "local_entropy", "tokens")


def by_hand(plan, own):
    """The statistics of the tokens `own`, `[g, s]` bool."""
    gates, kept = np.asarray(plan.gates, "float64")[own], np.asarray(plan.kept)[own]
    mean = gates.mean(0)
    return {
        "success_rate": kept.mean(),
        "effective_experts": np.exp(-(mean * np.log(mean)).sum()),
        "local_entropy": -(gates * np.log(gates)).sum(-1).mean(),
        "tokens": own.sum(),
    }


@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_modalities_are_counted_apart(num_selected, masked):
    rng = np.random.default_rng(0)
    gates, modality = random_gates(rng, 3, 9, 4), rng.integers(0, 2, (3, 9))
    mask = rng.random((3, 9)) < 0.7 if masked else None
    plan = ops.top_k_routing(gates, num_selected, 2, mask, batch_priority=True)
    found = ops.modality_statistics(plan, modality, NAMES, mask)
    assert tuple(found) == statistics.modality_metrics(NAMES)
    real = np.ones((3, 9), bool) if mask is None else mask
    for index, name in enumerate(NAMES):
        wanted = by_hand(plan, (modality == index) & real)
        assert 0 < wanted["success_rate"] < 1
        for statistic, value in wanted.items():
            assert float(found[f"{name}_{statistic}"]) == pytest.approx(value, rel=1e-5), statistic


def test_names_of_the_statistics_of_modalities():
    assert statistics.modality_metrics(NAMES) == tuple(
        f"{name}_{statistic}" for name in NAMES for statistic in STATISTICS
    )
    assert statistics.modality_metrics(()) == ()


def test_a_modality_without_tokens():
    plan = ops.top_k_routing(GATES, 1, 2)
    found = ops.modality_statistics(plan, np.zeros((1, 4), "int32"), NAMES)
    assert [float(found[f"text_{name}"]) for name in STATISTICS] == [1, 1, 0, 0]
