"""Members within a group: told apart, and their plans as one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import ops
from tests.support.oracles import random_gates


def by_loop(values, members, length):
    """The tokens of each member of each group, one by one."""
    groups, tokens = values.shape[:2]
    found = [[[] for _ in range(members)] for _ in range(groups)]
    for g in range(groups):
        for token in range(tokens):
            found[g][token // length % members].append(values[g, token])
    return np.array([part for group in found for part in group])


@pytest.mark.parametrize("rest", [(), (3,)])
def test_split_is_the_loop(rest):
    values = np.random.default_rng(0).normal(size=(2, 5 * 3 * 4, *rest))
    found = np.asarray(ops.split_members(values, 3, 4))
    np.testing.assert_array_equal(found, by_loop(values, 3, 4))


def member_plan(rng, groups, images, members, length, experts, k, capacity):
    gates = random_gates(rng, groups * members, images * length, experts)
    return ops.top_k_routing(gates, k, capacity, batch_priority=True)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_merged_plans_are_those_of_the_members(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, images, members, length = draw(1, 2), draw(1, 3), draw(1, 4), draw(1, 3)
    experts, capacity = draw(1, 4), draw(1, 5)
    k = draw(1, experts)
    rng = np.random.default_rng(draw(0, 99))
    plan = member_plan(rng, groups, images, members, length, experts, k, capacity)
    merged = ops.merge_members(plan, members, length)
    back = [np.asarray(ops.split_members(np.asarray(x), members, length)) for x in merged]
    expert, slot, weight, kept, gates = back
    member = np.arange(groups * members) % members
    np.testing.assert_array_equal(expert - member[:, None, None] * experts, plan.expert)
    for found, wanted in ((slot, plan.slot), (weight, plan.weight), (kept, plan.kept)):
        np.testing.assert_array_equal(found, np.asarray(wanted))
    for i, m in enumerate(member):
        own = slice(m * experts, (m + 1) * experts)
        np.testing.assert_array_equal(gates[i, :, own], np.asarray(plan.gates)[i])
        assert gates[i].sum() == pytest.approx(gates[i, :, own].sum())
    # Two choices never share a slot of an expert, in a group of all members.
    for g in range(groups):
        taken = [np.asarray(part)[g][np.asarray(merged.kept)[g]] for part in merged[:2]]
        pairs = list(zip(*taken, strict=True))
        assert len(set(pairs)) == len(pairs)
        assert max(taken[1], default=0) < capacity


def test_a_number_of_members_that_is_none_is_named():
    with pytest.raises(ValueError, match="num_members=0"):
        ops.split_members(np.zeros((1, 4)), 0, 1)
