"""Means, standard errors and verdicts over paired seeds."""

import math

import numpy as np
import pytest

from keras_vmoe.trainers.repro.paired import Estimate, difference, estimate, verdict


def test_mean_and_standard_error():
    found = estimate([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3)
    assert found.error == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert found.half_width == pytest.approx(4.303 * found.error)
    assert found.words() == "30.00 ± 15.28"


def test_one_seed_has_no_error_and_decides_nothing():
    found = estimate([0.4])
    assert math.isnan(found.error)
    assert found.words() == "40.00"
    assert verdict(found) == "leans yes"
    assert verdict(estimate([-0.4])) == "leans no"


def test_pairing_takes_what_the_seeds_share_out_of_the_error():
    left, right = [0.80, 0.85, 0.90], [0.79, 0.84, 0.89]
    assert difference(left, right).mean == pytest.approx(0.01)
    assert difference(left, right).error < 1e-9 < estimate(left).error
    with pytest.raises(ValueError, match="2 seeds and right 1"):
        difference([1, 2], [1])


@pytest.mark.parametrize(
    ("mean", "error", "margin", "words"),
    [
        (0.02, 0.001, 0.0, "holds"),
        (0.02, 0.01, 0.0, "leans yes"),
        (-0.02, 0.001, 0.0, "does not hold"),
        (-0.001, 0.01, 0.0, "leans no"),
        (-0.001, 0.0001, 0.003, "holds"),
        (-0.02, 0.001, 0.003, "does not hold"),
    ],
)
def test_a_verdict_needs_the_interval_on_one_side(mean, error, margin, words):
    assert verdict(Estimate(mean, error, 3), margin) == words
