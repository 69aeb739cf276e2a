"""Schedules that a training refuses are not counted either."""

import pytest

from keras_vmoe import analysis


@pytest.mark.parametrize("phases", [((10, 6, 2),), ((10, 2, 1),), ((10, 0, 1),), ((10, 16),), 16])
def test_no_cost_is_given_of_what_does_not_train(phases):
    with pytest.raises(ValueError, match=r"phases=.*such as \(\(40, 16, 5\), \(70, 8, 2\)\)"):
        analysis.retokenization_cost("asvit_s", phases, epochs=40)
