"""Capacity against the reference's table and the numbers of the paper."""

import keras
import numpy as np
import pytest

from keras_vmoe import ops
from keras_vmoe.ops import capacity
from tests.support.golden import load


def test_every_row_of_the_reference_table():
    table = load("02_dispatch")["capacity_table"]
    assert len(table) == 1176
    wrong = []
    for row in table:
        tokens, experts, multiple, wanted = (int(row[i]) for i in (0, 1, 4, 5))
        rounding = ("ceil", "round")[int(row[3])]
        # The table is stored in float32, its factors were typed in decimals.
        factor = float(f"{row[2]:.6g}")
        try:
            found = ops.compute_capacity(
                tokens, experts, factor, rounding=rounding, multiple_of=multiple or None
            )
        except ValueError:
            found = -1
        if found != wanted:
            wrong.append((row.tolist(), found))
    assert not wrong


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "ceiled", "rounded"),
    [
        (400, 32, 1.05, 28, 26),
        (1576, 8, 1.05, 416, 414),
        (2056, 32, 1.05, 136, 135),
        (2056, 32, 0.5, 68, 64),
        (4616, 8, 1.5, 1732, 1731),
    ],
)
def test_numbers_of_the_paper(tokens, experts, factor, ceiled, rounded):
    arguments = (tokens, experts, factor, 2)
    assert ops.compute_capacity(*arguments) == ceiled
    assert ops.compute_capacity(*arguments, rounding="round", multiple_of=1) == rounded


@pytest.mark.parametrize("rounding", ["ceil", "round"])
def test_counts_of_a_graph_have_the_capacity_of_ints(rounding):
    tokens = np.arange(1, 3000)
    for experts, factor, k, multiple in ((8, 1.05, 2, 4), (32, 0.7, 1, 1), (6, 1.1, 1, None)):
        settings = (experts, factor, k, rounding, multiple)
        found = capacity.traced_capacity(keras.ops.convert_to_tensor(tokens), *settings)
        wanted = [ops.compute_capacity(n, *settings, at_least_one=True) for n in tokens]
        np.testing.assert_array_equal(np.asarray(found), wanted)


def test_round_is_half_to_even():
    halves = [ops.compute_capacity(n, 2, 1.0, rounding="round", multiple_of=1) for n in (3, 5, 7)]
    assert halves == [2, 2, 4]


def test_the_threshold_comes_before_the_multiple():
    with pytest.raises(ValueError, match="capacity_factor=0.1 .* gives 0"):
        ops.compute_capacity(8, 8, 0.1, rounding="round", multiple_of=4)
    assert ops.compute_capacity(8, 8, 0.1, rounding="round", at_least_one=True) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"num_experts": -1}, "num_experts=-1"),
        ({"num_selected": 1.5}, "num_selected=1.5"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0"),
        ({"capacity_factor": float("nan")}, "capacity_factor=nan"),
        ({"capacity_factor": float("inf")}, "capacity_factor=inf"),
        ({"rounding": "floor"}, "'ceil', 'round'. Received: rounding='floor'"),
        ({"multiple_of": 0}, "multiple_of=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.compute_capacity(
            **{"num_tokens": 8, "num_experts": 2, "capacity_factor": 1.0, **arguments}
        )


def test_numpy_integers_are_integers():
    assert ops.compute_capacity(np.int64(8), np.int32(2), 1.0) == 4
