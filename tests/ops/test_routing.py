"""Plans against the reference's, against loops in NumPy, and against what must always hold."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import ops
from tests.support import oracles
from tests.support.golden import case_name, load

# Problems may hold a single token or expert.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax")

DISPATCH = load("02_dispatch")
# The six tokens of the hand-computed example.
HAND_LOGITS = np.array(
    [[2, 1, 0], [0.5, 0.4, 0.3], [3, -1, 0], [0, 2.5, 0.1], [1.2, 1.1, -0.5], [0.9, 0, 0.8]],
    "float32",
)[None]
HAND_GATES = np.exp(HAND_LOGITS) / np.exp(HAND_LOGITS).sum(-1, keepdims=True)


def arrays(plan):
    return type(plan)(*(np.asarray(part) for part in plan))


def assigned(plan):
    """(token, expert) of the kept choices of group 0, by rank and then by slot."""
    found = []
    for rank in range(plan.expert.shape[-1]):
        queue = [
            (int(plan.slot[0, t, rank]), t, int(plan.expert[0, t, rank]))
            for t in range(plan.expert.shape[1])
            if plan.kept[0, t, rank]
        ]
        found += [(t, e) for _, t, e in sorted(queue)]
    return found


@pytest.mark.parametrize("case", DISPATCH.cases(), ids=case_name)
def test_plan_of_the_reference(case):
    config, wanted = case.config, case["indices"]
    plan = arrays(
        ops.top_k_routing(
            DISPATCH[config["gates"]],
            config["num_selected_experts"],
            int(case["capacity"]),
            batch_priority=config["batch_priority"],
        )
    )
    np.testing.assert_array_equal(plan.expert, wanted[..., 0])
    np.testing.assert_array_equal(plan.slot, wanted[..., 1])
    np.testing.assert_array_equal(plan.kept, wanted[..., 1] < case["capacity"])
    np.testing.assert_array_equal(plan.weight, case["topk_weights"])


def test_there_are_140_cases():
    assert len(DISPATCH.cases()) == 140


@pytest.mark.parametrize(
    ("num_selected", "batch_priority", "wanted"),
    [
        (1, False, [(0, 0), (1, 0), (3, 1)]),
        (1, True, [(2, 0), (0, 0), (3, 1)]),
        (2, False, [(0, 0), (1, 0), (3, 1), (0, 1), (2, 2), (3, 2)]),
        (2, True, [(2, 0), (3, 1), (0, 0), (2, 2), (3, 2), (0, 1)]),
    ],
)
def test_hand_computed_assignments(num_selected, batch_priority, wanted):
    plan = arrays(ops.top_k_routing(HAND_GATES, num_selected, 2, batch_priority=batch_priority))
    assert sorted(assigned(plan)) == sorted(wanted)


@pytest.mark.parametrize(
    ("score", "wanted"), [("max", [2, 3, 0, 4, 5, 1]), ("sum", [2, 3, 4, 0, 5, 1])]
)
def test_hand_computed_priorities(score, wanted):
    order = ops.priority_order(HAND_GATES, num_selected=2, score=score)
    assert np.asarray(order)[0].tolist() == wanted


def test_all_first_choices_before_second_ones_with_priority():
    """16 tokens, 4 experts, k=2, C=.75: six slots hold all first choices and the 8 best seconds."""
    assert ops.compute_capacity(16, 4, 0.75, 2, multiple_of=1) == 6
    first = np.arange(16) % 4
    gates = np.full((1, 16, 4), 0.01, "float32")
    gates[0, np.arange(16), first] = np.linspace(0.9, 0.6, 16)
    gates[0, np.arange(16), (first + 1) % 4] = 0.05
    kept = np.asarray(ops.top_k_routing(gates, 2, 6, batch_priority=True).kept)[0]
    assert kept[:, 0].all()
    assert kept[:, 1].tolist() == [True] * 8 + [False] * 8


shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5))


@st.composite
def problems(draw):
    g, s, e = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    mask = None
    if draw(st.booleans()):
        mask = rng.random((g, s)) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    capacity = draw(st.integers(1, 2 * s))
    if draw(st.booleans()):
        capacity = rng.integers(0, s + 1, g).astype("int32")
    gates = oracles.random_gates(rng, g, s, e, ties=draw(st.booleans()))
    return gates, draw(st.integers(1, min(3, e))), capacity, mask, rng


@settings(max_examples=120, deadline=None)
@given(problems(), st.booleans(), st.sampled_from(["max", "sum"]))
def test_token_choice_is_the_loop(problem, batch_priority, score):
    gates, k, capacity, mask, _ = problem
    if score == "sum" and batch_priority:
        # Sums of several gates round apart, so ties would be decided by the order of adding.
        gates = np.round(gates * 1024) / 1024
    plan = arrays(
        ops.top_k_routing(
            gates, k, capacity, mask, batch_priority=batch_priority, priority_score=score
        )
    )
    wanted = oracles.token_choice(gates, k, capacity, mask, batch_priority, score)
    np.testing.assert_array_equal(plan.expert, wanted.expert)
    np.testing.assert_array_equal(plan.weight, wanted.weight)
    np.testing.assert_array_equal(plan.kept, wanted.kept)
    real = np.ones(gates.shape[:2], bool) if mask is None else mask
    np.testing.assert_array_equal(plan.slot[real], wanted.slot[real])


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_capacity_holds_and_slots_are_taken_once(problem, batch_priority):
    gates, k, capacity, mask, _ = problem
    plan = arrays(ops.top_k_routing(gates, k, capacity, mask, batch_priority=batch_priority))
    limits = np.broadcast_to(capacity, gates.shape[:1])
    for i, limit in enumerate(limits):
        kept = plan.kept[i]
        pairs = list(zip(plan.expert[i][kept], plan.slot[i][kept], strict=True))
        assert len(set(pairs)) == len(pairs)
        assert all(0 <= slot < limit for _, slot in pairs)
        if mask is not None:
            assert not kept[~mask[i]].any()


@settings(max_examples=40, deadline=None)
@given(problems())
def test_priority_makes_routing_blind_to_the_order_of_tokens(problem):
    gates, k, capacity, mask, rng = problem
    g, s, e = gates.shape
    # Distinct maxima: with ties the earlier token wins, and order does matter.
    gates = oracles.random_gates(rng, g, s, e)
    if e == 1 or len(np.unique(gates.max(-1))) < g * s:
        return
    shuffle = rng.permutation(s)
    own = arrays(ops.top_k_routing(gates, k, capacity, mask, batch_priority=True))
    moved = arrays(
        ops.top_k_routing(
            gates[:, shuffle],
            k,
            capacity,
            None if mask is None else mask[:, shuffle],
            batch_priority=True,
        )
    )
    for name in ("expert", "weight", "kept"):
        np.testing.assert_array_equal(getattr(own, name)[:, shuffle], getattr(moved, name))


@settings(max_examples=80, deadline=None)
@given(problems(), st.data())
def test_expert_choice_is_the_loop(problem, data):
    gates, _, _, mask, rng = problem
    g, s, _ = gates.shape
    capacity = data.draw(st.integers(1, s))
    limits = rng.integers(0, capacity + 1, g).astype("int32") if data.draw(st.booleans()) else None
    plan = arrays(ops.expert_choice_routing(gates, capacity, mask, limits))
    wanted = oracles.expert_choice(gates, capacity if limits is None else limits, mask)
    for i in range(g):
        for j in range(gates.shape[-1]):
            kept = plan.kept[i, j]
            assert plan.token[i, j][kept].tolist() == wanted[i][j]
            np.testing.assert_array_equal(
                plan.weight[i, j], np.where(kept, gates[i, plan.token[i, j], j], 0)
            )
    shared = arrays(ops.expert_choice_routing(gates, capacity, mask, limits, renormalise=True))
    for i in range(g):
        total = np.zeros(s)
        for j, tokens in enumerate(wanted[i]):
            total[tokens] += gates[i, tokens, j]
        for j, tokens in enumerate(wanted[i]):
            found = shared.weight[i, j][shared.kept[i, j]]
            np.testing.assert_allclose(found, gates[i, tokens, j] / total[tokens], rtol=1e-5)
            assert not shared.weight[i, j][~shared.kept[i, j]].any()


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 3))
def test_soft_routing_is_the_loop(problem, slots):
    gates, _, _, mask, rng = problem
    logits = rng.normal(size=(*gates.shape, slots)).astype("float32") * 3
    plan = arrays(ops.soft_routing(logits, mask))
    dispatch, combine = oracles.soft_weights(logits, mask)
    np.testing.assert_allclose(plan.dispatch, dispatch, atol=1e-6)
    np.testing.assert_allclose(plan.combine, combine, atol=1e-6)


def test_soft_routing_survives_huge_logits():
    plan = arrays(ops.soft_routing(np.array([1e30, -1e30]).reshape(1, 2, 1, 1).astype("float32")))
    np.testing.assert_array_equal(plan.dispatch.ravel(), [1, 0])
    mask = np.array([[False, True]])
    logits = np.full((1, 2, 1, 1), -2e9, "float32")
    masked = arrays(ops.soft_routing(logits, mask))
    np.testing.assert_array_equal(masked.dispatch.ravel(), [0, 1])


def test_renormalised_weights_sum_to_one():
    plan = ops.top_k_routing(HAND_GATES, 2, 6, renormalise=True)
    np.testing.assert_allclose(np.asarray(plan.weight).sum(-1), 1, rtol=1e-6)
    raw = np.asarray(ops.top_k_routing(HAND_GATES, 2, 6).weight)
    assert (raw.sum(-1) < 1).all()


def test_uniform_choices_load_experts_alike():
    choice = np.asarray(ops.uniform_choices(2, 12, num_experts=4, num_selected=3))
    assert choice.shape == (2, 12, 3)
    assert np.bincount(choice[0].ravel()).tolist() == [9] * 4
    assert all(len(set(row)) == 3 for row in choice[0].tolist())


def test_hash_choices_depend_on_ids_alone():
    ids = np.arange(4096).reshape(2, -1)
    choice = np.asarray(ops.hash_choices(ids, num_experts=8, num_selected=3, seed=1))
    again = np.asarray(ops.hash_choices(ids[:, ::-1].copy(), 8, 3, seed=1))
    np.testing.assert_array_equal(choice, again[:, ::-1])
    assert all(len(set(row)) == 3 for row in choice.reshape(-1, 3).tolist())
    counts = np.bincount(choice[..., 0].ravel(), minlength=8)
    assert counts.min() > 0.7 * 4096 / 8
    assert (np.asarray(ops.hash_choices(ids, 8, 3, seed=2)) != choice).any()


def test_hash_and_uniform_choices_can_be_routed():
    choice = ops.hash_choices(np.arange(6)[None], num_experts=3)
    plan = ops.assign_slots(choice, np.ones((1, 6, 1), "float32"), HAND_GATES, capacity=1)
    assert np.asarray(plan.kept).sum() == len(np.unique(np.asarray(choice)))


GATES = np.full((2, 4, 3), 1 / 3, "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.top_k_routing(GATES, 1, 0), "capacity=0"),
        (lambda: ops.top_k_routing(GATES, 1, np.int64(0)), "capacity=0"),
        (lambda: ops.top_k_routing(GATES, 1, -3), "capacity=-3"),
        (lambda: ops.top_k_routing(GATES, 1, 2.5), "capacity"),
        (lambda: ops.top_k_routing(GATES, 4, 2), "at most the number of experts, 3.*=4"),
        (lambda: ops.top_k_routing(GATES, 0, 2), "num_selected=0"),
        (lambda: ops.top_k_routing(GATES[0], 1, 2), r"\[groups, tokens, experts\].*\(4, 3\)"),
        (lambda: ops.top_k_routing(GATES, 1, 2, np.ones(4, bool)), "mask"),
        (lambda: ops.top_k_routing(GATES, 1, 2, np.ones((2, 5), bool)), r"mask.*\(2, 5\)"),
        (lambda: ops.top_k_routing(GATES, 1, 2, priority_score="mean"), "'max', 'sum'.*'mean'"),
        (lambda: ops.top_k_routing(GATES * np.nan, 1, 2), "gates must be finite.*24 non-finite"),
        (lambda: ops.top_k_routing(GATES / 0, 1, 2), "gates must be finite"),
        (lambda: ops.priority_order(GATES, 1, score="mean"), "score='mean'"),
        (lambda: ops.expert_choice_routing(GATES, 0), "capacity=0"),
        (lambda: ops.expert_choice_routing(GATES, 5), "at most the tokens of a group, 4.*=5"),
        (lambda: ops.expert_choice_routing(GATES[0], 1), "gates"),
        (lambda: ops.expert_choice_routing(GATES * np.inf, 1), "gates must be finite"),
        (lambda: ops.expert_choice_routing(GATES, 1, np.ones((2, 3), bool)), r"mask.*\(2, 3\)"),
        (lambda: ops.soft_routing(GATES), r"logits must have shape.*\(2, 4, 3\)"),
        (lambda: ops.soft_routing(GATES[..., None] * np.nan), "logits must be finite"),
        (lambda: ops.soft_routing(GATES[..., None], np.ones((2, 3), bool)), "mask"),
        (lambda: ops.uniform_choices(1, 4, 2, 3), "num_selected=3"),
        (lambda: ops.hash_choices(np.zeros((1, 4), int), 2, 3), "num_selected=3"),
        (lambda: ops.hash_choices(np.zeros(4, int), 2), "ids must have shape"),
        (
            lambda: ops.assign_slots(np.zeros((2, 4), int), GATES[..., :1], GATES, 1),
            "expert must have shape",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_graphs_are_not_looked_into():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])])
    def route(gates):
        return ops.top_k_routing(gates, 2, 2, batch_priority=True)

    eager = arrays(ops.top_k_routing(GATES, 2, 2, batch_priority=True))
    for wanted, found in zip(eager, arrays(route(GATES)), strict=True):
        np.testing.assert_array_equal(wanted, found)
    assert keras.backend.backend() == "tensorflow"
