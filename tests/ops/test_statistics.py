"""Statistics of a routing, counted by hand."""

import numpy as np
import pytest

from keras_vmoe import ops
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
    statistics = ops.routing_statistics(ops.top_k_routing(gates, 1, 1))
    assert float(statistics["entropy"]) == 0


def test_soft_routing_has_shares_of_weight_and_drops_nothing():
    combine = np.array([[[[0.5, 0.1], [0.2, 0.2]], [[0.7, 0.1], [0.1, 0.1]]]], "float32")
    statistics = ops.routing_statistics(ops.SoftPlan(combine, combine))
    assert "dropped" not in statistics
    assert float(statistics["expert_load_max"]) == pytest.approx(0.7)
    assert float(statistics["expert_load_min"]) == pytest.approx(0.3)
    assert float(statistics["confidence"]) == pytest.approx(0.6)
