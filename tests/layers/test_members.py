"""Images repeated for members, told apart and averaged."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness


@pytest.mark.parametrize(
    "check", [c for c in harness.CHECKS if c not in ("half_precision", "every_weight_learns")]
)
@pytest.mark.parametrize("case", cases.MEMBERS.values(), ids=cases.MEMBERS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def test_copies_stand_in_a_row_and_come_apart_again():
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    copies = np.asarray(layers.RepeatMembers(3)(x))
    np.testing.assert_array_equal(copies, np.repeat(x, 3, axis=0))
    apart = np.asarray(layers.SplitMembers(3)(copies))
    np.testing.assert_array_equal(apart, np.stack([x] * 3, axis=1))


def test_half_precision_is_kept():
    x = np.ones((2, 3), "float32")
    for layer in (layers.RepeatMembers, layers.SplitMembers):
        found = layer(2, dtype="mixed_bfloat16")(x)
        assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"


def test_rows_that_are_no_multiple_are_named():
    with pytest.raises(ValueError, match=r"each image 2 times. Received: inputs of shape \(3, 4\)"):
        layers.SplitMembers(2)(np.zeros((3, 4)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_members=0"):
        layers.RepeatMembers(0)
    with pytest.raises(ValueError, match="'softmax', 'sigmoid'.*kind='mean'"):
        layers.EnsembleAverage("mean")
    with pytest.raises(ValueError, match=r"\[images, members, classes\].*\(2, 3\)"):
        layers.EnsembleAverage()(np.zeros((2, 3)))
