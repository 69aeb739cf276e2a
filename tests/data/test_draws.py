"""Random numbers by their place."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data.draws import table_rows

SEED = tf.constant([3, 5], tf.int64)


@pytest.mark.parametrize("width", [1, 4, 5, 11])
@pytest.mark.parametrize(("first", "count"), [(0, 4), (3, 1), (17, 5), (2**33, 2)])
def test_rows_are_those_of_the_table(first, count, width):
    found = table_rows(SEED, tf.constant(first, tf.int64), count, width).numpy()
    if first < 100:
        table = tf.random.stateless_uniform((100, width), SEED).numpy()
        np.testing.assert_array_equal(found, table[first : first + count])
    assert found.shape == (count, width)
    assert len(np.unique(found)) == count * width
    assert found.min() >= 0
    assert found.max() < 1


def test_rows_without_numbers():
    assert table_rows(SEED, tf.constant(3, tf.int64), 4, 0).shape == (4, 0)


def test_other_seeds_give_other_numbers():
    rows = [table_rows(SEED + i, tf.constant(0, tf.int64), 1, 4).numpy() for i in range(2)]
    assert not np.array_equal(*rows)
