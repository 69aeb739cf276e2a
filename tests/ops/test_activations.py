"""The tanh GELU and its name."""

import keras
import numpy as np

from keras_vmoe import ops

X = np.linspace(-4, 4, 41).astype("float32")


def test_gelu_is_the_tanh_one():
    wanted = 0.5 * X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)))
    np.testing.assert_allclose(np.asarray(ops.gelu_tanh(X)), wanted, atol=1e-6)
    assert np.abs(np.asarray(keras.activations.gelu(X)) - wanted).max() > 1e-4


def test_names_round_trip():
    for name in ("gelu_tanh", "relu", "gelu", "linear"):
        activation = ops.get_activation(name)
        assert ops.get_activation(ops.serialize_activation(activation)) is activation
    assert ops.serialize_activation(ops.gelu_tanh) == "gelu_tanh"
    assert ops.get_activation(ops.gelu_tanh) is ops.gelu_tanh
