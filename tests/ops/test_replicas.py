"""On one device there is one replica; tests/trainers runs several."""

import numpy as np
import pytest

from keras_vmoe import ops


@pytest.mark.parametrize("function", [ops.sum_over_replicas, ops.gather_from_replicas])
def test_one_replica_keeps_its_values(function):
    values = np.arange(6.0).reshape(3, 2)
    assert function(values) is values


@pytest.mark.parametrize("function", [ops.sum_over_replicas, ops.gather_from_replicas])
def test_a_strategy_of_one_replica_keeps_its_values(function):
    import tensorflow as tf

    values = tf.constant([[1.0, 2.0]])

    def step():
        found = function(values)
        assert found is values
        return found

    found = tf.distribute.OneDeviceStrategy("/cpu:0").run(step)
    np.testing.assert_array_equal(found.numpy(), values.numpy())
