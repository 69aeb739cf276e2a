"""All ways of dispatch against the reference, against loops and against each other."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.ops.dispatch import DISPATCHES
from tests.support import oracles
from tests.support.golden import case_name, load, max_error
from tests.support.gradients import value_and_gradients

# Problems may hold a single token or expert.
pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax")

DISPATCH = load("02_dispatch")
EXPERT_CHOICE = load("01b_router_top_items_per_expert")


def mixture(tokens, plan, num_experts, capacity, method, expert):
    """Dispatch, `expert(rows, ids)` on every row, combine."""
    if method != "grouped":
        inputs = ops.dispatch(tokens, plan, num_experts, capacity, method)
        ids = kops.broadcast_to(
            kops.arange(num_experts)[:, None, None], (*kops.shape(inputs)[:2], 1)
        )
        return ops.combine(expert(inputs, ids), plan, num_experts, capacity, method)
    g, s, d = kops.shape(tokens)
    where = ops.row_map(plan, num_experts, capacity, "grouped")
    rows = ops.rows_from_tokens(kops.reshape(tokens, (-1, d)), where)
    ends = kops.cumsum(where.group_sizes)
    ids = kops.searchsorted(ends, kops.arange(kops.shape(rows)[0], dtype="int32"), side="right")
    outputs = expert(rows, kops.minimum(ids, num_experts - 1)[:, None])
    return kops.reshape(ops.weighted_tokens(outputs, plan, where, g * s), (g, s, d))


def affine(rows, ids):
    """The golden file's expert. Its affine part acts on empty slots too: they must not leak."""
    ids = kops.cast(ids, rows.dtype)
    return kops.tanh(rows) * (1 + ids) + 0.1 * ids


def numpy_affine(expert, row):
    return np.tanh(row) * (1 + expert) + 0.1 * expert


def all_to_all_layout(inputs, groups, capacity):
    """The reference's order of rows: permuted where the groups are a multiple of the experts."""
    e, _, d = inputs.shape
    if groups % e:
        return inputs
    return inputs.reshape(e, e, groups // e, capacity, d).swapaxes(1, 2).reshape(inputs.shape)


def plan_of(case):
    config = case.config
    return ops.top_k_routing(
        DISPATCH[config["gates"]],
        config["num_selected_experts"],
        int(case["capacity"]),
        batch_priority=config["batch_priority"],
    )


@pytest.mark.parametrize("case", DISPATCH.cases(), ids=case_name)
def test_reference_tensors(case):
    config, capacity = case.config, int(case["capacity"])
    x, plan = DISPATCH[config["x"]], plan_of(case)
    mask = np.asarray(ops.dispatch_mask(plan, config["E"], capacity))
    np.testing.assert_array_equal(mask.astype(bool), case["dispatch_weights"])
    weights = np.asarray(ops.combine_weights(plan, config["E"], capacity))
    np.testing.assert_array_equal(weights, case["combine_weights"])
    for method in ("einsum", "gather"):
        inputs = np.asarray(ops.dispatch(x, plan, config["E"], capacity, method))
        np.testing.assert_allclose(
            all_to_all_layout(inputs, config["G"], capacity), case["dispatched"], atol=1e-6
        )
    for method in DISPATCHES:
        combined = np.asarray(mixture(x, plan, config["E"], capacity, method, affine))
        np.testing.assert_allclose(combined, case["combined"], atol=1e-5)


@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", EXPERT_CHOICE.cases(), ids=case_name)
def test_expert_choice_of_the_reference(case, mode):
    x, gates = case["in/x"], case[f"{mode}/gates"]
    wanted = case[f"{mode}/combine_weights"]
    e, capacity = wanted.shape[2:]
    plan = ops.expert_choice_routing(gates, capacity)
    np.testing.assert_array_equal(np.asarray(ops.combine_weights(plan, e, capacity)), wanted)
    np.testing.assert_array_equal(
        np.asarray(ops.dispatch_mask(plan, e, capacity)).astype(bool),
        case[f"{mode}/dispatch_weights"],
    )
    for method in ("einsum", "gather"):
        inputs = np.asarray(ops.dispatch(x, plan, e, capacity, method))
        np.testing.assert_allclose(
            all_to_all_layout(inputs, x.shape[0], capacity), case[f"{mode}/dispatched"], atol=1e-6
        )
    for method in DISPATCHES:
        combined = mixture(
            x, plan, e, capacity, method, lambda rows, ids: rows * (1 + kops.cast(ids, rows.dtype))
        )
        np.testing.assert_allclose(np.asarray(combined), case[f"{mode}/combined"], atol=1e-5)


@st.composite
def problems(draw):
    """Tokens, routing and capacity: crowded and roomy, masked and not, dropping and not."""
    g, s, e = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    mask = rng.random((g, s)) < draw(st.sampled_from([0.0, 0.7])) if draw(st.booleans()) else None
    kind = draw(st.sampled_from(["priority", "order", "expert_choice"]))
    capacity = draw(st.integers(1, s if kind == "expert_choice" else s + 2))
    return {
        "tokens": rng.normal(size=(g, s, 3)),
        "logits": rng.normal(size=(g, s, e)) * 2,
        "kernel": rng.normal(size=(e, 3, 3)),
        "cotangent": rng.normal(size=(g, s, 3)),
        "mask": mask,
        "kind": kind,
        "num_selected": draw(st.integers(1, min(3, e))),
        "capacity": capacity,
    }


def route(problem, gates):
    if problem["kind"] == "expert_choice":
        return ops.expert_choice_routing(gates, problem["capacity"], problem["mask"])
    return ops.top_k_routing(
        gates,
        problem["num_selected"],
        problem["capacity"],
        problem["mask"],
        batch_priority=problem["kind"] == "priority",
    )


def run(problem, method, dtype):
    """Output and gradients by tokens, router logits and expert kernels."""
    outputs = []
    e = problem["kernel"].shape[0]

    def loss(tokens, logits, kernel):
        def expert(rows, ids):
            own = kops.take(kernel, kops.cast(ids[..., 0], "int32"), axis=0)
            # The constant makes empty slots give something: it must not leak.
            return kops.tanh(kops.einsum("...i,...ij->...j", rows, own) + 0.5)

        plan = route(problem, kops.softmax(logits, -1))
        out = mixture(tokens, plan, e, problem["capacity"], method, expert)
        outputs.append(out)
        return kops.sum(out * kops.cast(problem["cotangent"], dtype))

    inputs = [problem[name].astype(dtype) for name in ("tokens", "logits", "kernel")]
    _, gradients = value_and_gradients(loss, *inputs)
    return [np.asarray(outputs[0]), *gradients]


def expected_output(problem):
    exponentials = np.exp(problem["logits"])
    gates = exponentials / exponentials.sum(-1, keepdims=True)

    def expert(index, row):
        return np.tanh(row @ problem["kernel"][index] + 0.5)

    tokens, mask, capacity = problem["tokens"], problem["mask"], problem["capacity"]
    if problem["kind"] == "expert_choice":
        taken = oracles.expert_choice(gates, capacity, mask)
        return oracles.expert_choice_mixture(tokens, gates, taken, expert)
    choices = oracles.token_choice(
        gates, problem["num_selected"], capacity, mask, problem["kind"] == "priority"
    )
    return oracles.token_choice_mixture(tokens, choices, expert)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_dispatches_agree_in_float64(problem):
    wanted = run(problem, "einsum", "float64")
    assert max_error(wanted[0], expected_output(problem)) < 1e-12
    for method in ("gather", "grouped"):
        for found, reference in zip(run(problem, method, "float64"), wanted, strict=True):
            assert found.dtype == np.float64
            assert max_error(found, reference) < 1e-12


@pytest.mark.parametrize("kind", ["priority", "order", "expert_choice"])
@pytest.mark.parametrize("num_selected", [1, 2, 3])
def test_dispatches_agree_in_float32(kind, num_selected):
    rng = np.random.default_rng(num_selected)
    g, s, e, d = 3, 40, 6, 16
    problem = {
        "tokens": rng.normal(size=(g, s, d)),
        "logits": rng.normal(size=(g, s, e)),
        "kernel": rng.normal(size=(e, d, d)) / 4,
        "cotangent": rng.normal(size=(g, s, d)),
        "mask": rng.random((g, s)) < 0.9,
        "kind": kind,
        "num_selected": num_selected,
        "capacity": 6 * num_selected,
    }
    wanted = run(problem, "einsum", "float32")
    for method in ("gather", "grouped"):
        for found, reference in zip(run(problem, method, "float32"), wanted, strict=True):
            assert max_error(found, reference) < 5e-6


def test_gradients_against_finite_differences():
    rng = np.random.default_rng(0)
    problem = {
        "tokens": rng.normal(size=(1, 5, 3)),
        "logits": rng.normal(size=(1, 5, 2)),
        "kernel": rng.normal(size=(2, 3, 3)),
        "cotangent": rng.normal(size=(1, 5, 3)),
        "mask": None,
        "kind": "priority",
        "num_selected": 2,
        "capacity": 2,
    }
    for method in DISPATCHES:
        gradients = run(problem, method, "float64")[1:]
        for name, gradient in zip(("tokens", "logits", "kernel"), gradients, strict=True):
            direction = rng.normal(size=gradient.shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = {**problem, name: problem[name] + step * direction}
                ends.append((expected_output(moved) * problem["cotangent"]).sum())
            slope = (ends[0] - ends[1]) / 2e-6
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("method", DISPATCHES)
def test_a_capacity_per_group(method):
    rng = np.random.default_rng(3)
    gates = oracles.random_gates(rng, 3, 7, 3)
    tokens = rng.normal(size=(3, 7, 2)).astype("float32")
    limits = np.array([3, 0, 1], "int32")
    out = mixture(tokens, ops.top_k_routing(gates, 2, limits), 3, 3, method, affine)
    choices = oracles.token_choice(gates, 2, limits)
    wanted = oracles.token_choice_mixture(tokens, choices, numpy_affine)
    np.testing.assert_allclose(np.asarray(out), wanted, atol=1e-5)
    plan = ops.expert_choice_routing(gates, 3, group_capacity=limits)
    out = mixture(tokens, plan, 3, 3, method, affine)
    taken = oracles.expert_choice(gates, limits)
    wanted = oracles.expert_choice_mixture(tokens, gates, taken, numpy_affine)
    np.testing.assert_allclose(np.asarray(out), wanted, atol=1e-5)


@pytest.mark.parametrize("method", DISPATCHES)
def test_nobody_routed(method):
    """All tokens masked: there is not a single row, and everything is zero, gradients too."""
    gates = np.full((1, 3, 2), 0.5, "float32")
    mask = np.zeros((1, 3), bool)

    def loss(tokens):
        plan = ops.top_k_routing(gates, 1, 2, mask)
        return kops.sum(kops.square(mixture(tokens, plan, 2, 2, method, affine)))

    value, (gradient,) = value_and_gradients(loss, np.ones((1, 3, 2), "float32"))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("method", DISPATCHES)
def test_shapes_of_a_graph_may_be_unknown(method):
    import tensorflow as tf

    @functools.partial(
        tf.function,
        input_signature=[tf.TensorSpec([None, None, 2]), tf.TensorSpec([None, None, 3])],
    )
    def forward(tokens, gates):
        plan = ops.top_k_routing(gates, 2, 3, batch_priority=True)
        return mixture(tokens, plan, 3, 3, method, affine)

    rng = np.random.default_rng(0)
    for g, s in ((1, 4), (3, 7)):
        gates = oracles.random_gates(rng, g, s, 3)
        tokens = rng.normal(size=(g, s, 2)).astype("float32")
        choices = oracles.token_choice(gates, 2, 3, batch_priority=True)
        wanted = oracles.token_choice_mixture(tokens, choices, numpy_affine)
        np.testing.assert_allclose(forward(tokens, gates).numpy(), wanted, atol=1e-5)


def test_soft_plans_mix_by_einsum_whatever_is_asked():
    case = load("06_soft_router").cases()[0]
    x, dispatch = case["in/x"], case["det/dispatch_weights"]
    plan = ops.SoftPlan(dispatch, case["det/combine_weights"])
    e, c = dispatch.shape[2:]
    inputs = np.asarray(ops.dispatch(x, plan, e, c))
    found = all_to_all_layout(inputs, x.shape[0], c)
    np.testing.assert_allclose(found, case["det/dispatched_f32"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((ops.SoftPlan, 8, 4096, "tensorflow", False), "einsum"),
        ((ops.TokenChoicePlan, 400, 2048, "tensorflow", False), "grouped"),
        ((ops.ExpertChoicePlan, 400, 2048, "tensorflow", False), "grouped"),
        ((ops.TokenChoicePlan, 400, 2048, "tensorflow", True), "gather"),
        ((ops.TokenChoicePlan, 64, 2048, "tensorflow", True), "einsum"),
        ((ops.TokenChoicePlan, None, 2048, "tensorflow", True), "gather"),
        ((ops.TokenChoicePlan, 400, 2048, "jax", True), "grouped"),
        ((ops.TokenChoicePlan, 400, 2048, "jax", False), "gather"),
    ],
)
def test_dispatch_is_chosen_by_arithmetic(arguments, wanted):
    assert ops.choose_dispatch(*arguments) == wanted


PLAN = ops.top_k_routing(np.full((2, 4, 3), 1 / 3, "float32"), 1, 2)
TOKENS = np.ones((2, 4, 5), "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.dispatch(TOKENS, PLAN, 3, 2, "scatter"), "'einsum', 'gather'.*'scatter'"),
        (lambda: ops.combine(TOKENS, PLAN, 3, 2, "grouped"), "method='grouped'"),
        (lambda: ops.row_map(PLAN, 3, 2, "einsum"), "method='einsum'"),
        (lambda: ops.dispatch(TOKENS[0], PLAN, 3, 2), "tokens must have shape"),
        (lambda: ops.dispatch(TOKENS[:, :3], PLAN, 3, 2), r"tokens.*\(2, 4\).*\(2, 3, 5\)"),
        (lambda: ops.dispatch(TOKENS, PLAN, 4, 2), "num_experts must be 3.*num_experts=4"),
        (lambda: ops.combine(TOKENS[0], PLAN, 3, 2), "outputs must have shape"),
        (lambda: ops.combine(TOKENS, PLAN, 3, 2), r"\[3, groups \* 2, width\].*\(2, 4, 5\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
