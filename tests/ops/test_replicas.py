"""On one device there is one replica; tests/trainers runs several."""

import numpy as np

from keras_vmoe import ops
from keras_vmoe.ops import replicas


def test_one_replica_keeps_its_values():
    values = np.arange(6.0).reshape(3, 2)
    assert ops.gather_from_replicas(values) is values


def test_a_strategy_of_one_replica_keeps_its_values():
    import tensorflow as tf

    values = tf.constant([[1.0, 2.0]])

    def step():
        found = ops.gather_from_replicas(values)
        assert found is values
        return found

    found = tf.distribute.OneDeviceStrategy("/cpu:0").run(step)
    np.testing.assert_array_equal(found.numpy(), values.numpy())


def test_own_rows_of_replicas_with_unequal_batches(monkeypatch):
    """The middle replica of three, whose batches have 1, 2 and 3 rows."""

    class Context:
        replica_id_in_sync_group = 1

        def all_gather(self, own, axis):
            assert (np.asarray(own).tolist(), axis) == ([1, 1], 0)
            return np.array([0, 1, 1, 2, 2, 2])

    np.testing.assert_array_equal(np.asarray(replicas.own_rows(np.ones((2, 5)))), np.eye(2))
    monkeypatch.setattr(replicas, "_context", Context)
    found = np.asarray(replicas.own_rows(np.ones((2, 5))))
    np.testing.assert_array_equal(found, [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
