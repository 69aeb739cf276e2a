"""A sparse layer makes nothing that grows with the square of the tokens or of the experts."""

import math

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from keras_vmoe import layers

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="reads what TensorFlow computes"
)


def largest_tensor(tokens, num_experts, dispatch):
    """Values in the largest tensor of a training step of a narrow layer, forward and backward."""
    router = layers.TopKRouter(num_experts, num_selected=2, batch_priority=True)
    moe = layers.MoEMLP(router, hidden_dim=2, dispatch=dispatch)
    x, sizes = tf.ones([1, tokens, 2]), []
    moe.build(x.shape)

    def note(op_type, inputs, attributes, outputs, op_name=None, graph=None):
        sizes.extend(math.prod(output.shape) for output in outputs)

    op_callbacks.add_op_callback(note)
    try:
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(moe(x, training=True)) + tf.add_n(moe.losses)
        tape.gradient(total, [v.value for v in moe.trainable_variables])
    finally:
        op_callbacks.remove_op_callback(note)
    return max(sizes)


@pytest.mark.parametrize("dispatch", ["auto", "gather"])
@pytest.mark.parametrize(
    ("once", "twice"), [((512, 128), (1024, 128)), ((8, 128), (8, 256))], ids=["tokens", "experts"]
)
def test_twice_as_many_need_at_most_twice_the_memory(dispatch, once, twice):
    assert largest_tensor(*twice, dispatch) <= 2 * largest_tensor(*once, dispatch)


def test_what_grows_with_the_square_is_seen():
    """A one-hot mask of all slots, which `"einsum"` makes, is `[s, e, c]`, and `e c` is `k s`."""
    assert largest_tensor(1024, 4, "einsum") > 3 * largest_tensor(512, 4, "einsum")
