"""Unit length and the scale of the logits."""

import math

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import harness
from tests.support.gradients import layer_gradients, value_and_gradients

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
NORMALIZATION = harness.LayerCase(layers.L2Normalization, {"epsilon": 1e-6}, (3, 4))
SCALES = {
    "scale": harness.LayerCase(layers.LogitScale, {"scale_init": 5.0}, (3, 4)),
    "bias": harness.LayerCase(layers.LogitScale, {"scale_init": 5.0, "bias_init": -3.0}, (3, 4)),
}


@pytest.mark.parametrize(
    "check",
    ["config_round_trip", "saved_model_round_trip", "symbolic_shape_is_eager_shape"],
)
@pytest.mark.parametrize("case", [NORMALIZATION, *SCALES.values()], ids=["normalization", *SCALES])
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def test_unit_length():
    found = np.asarray(layers.L2Normalization()(X))
    np.testing.assert_allclose(found, X / np.linalg.norm(X, axis=-1, keepdims=True), rtol=1e-6)
    half = layers.L2Normalization(dtype="mixed_bfloat16")(keras.ops.cast(X, "bfloat16"))
    assert half.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(np.asarray(half), axis=-1), 1, rtol=1e-6)


def test_a_zero_vector_has_a_finite_gradient():
    x = np.concatenate([X, np.zeros((1, 4), "float32")])
    layer = layers.L2Normalization()
    np.testing.assert_array_equal(np.asarray(layer(x))[3], 0)
    _, (gradient,) = value_and_gradients(lambda x: keras.ops.sum(layer(x) * x[:1]), x)
    assert np.isfinite(gradient).all()


def scale(value, **arguments):
    layer = layers.LogitScale(**arguments)
    layer.build((None, 4))
    layer.log_scale.assign(math.log(value))
    return layer


def test_every_row_has_the_scale_and_the_bias():
    np.testing.assert_allclose(np.asarray(layers.LogitScale(7.0)(X)), [7.0] * 3, rtol=1e-6)
    scales, biases = layers.LogitScale(7.0, -10.0)(X)
    np.testing.assert_allclose(np.asarray(scales), [7.0] * 3, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(biases), [-10.0] * 3)
    half = layers.LogitScale(7.0, -10.0, dtype="mixed_bfloat16")(X)
    assert [part.dtype for part in half] == ["float32"] * 2


def test_the_scale_is_held_and_comes_back():
    """At the limit the gradient is that of the scale itself: it can fall again."""
    for value, shown in ((99.0, 99.0), (100.0, 100.0), (250.0, 100.0)):
        layer = scale(value)
        y, gradients, _ = layer_gradients(layer, lambda y, _: keras.ops.sum(y), X)
        np.testing.assert_allclose(np.asarray(y), [shown] * 3, rtol=1e-5)
        assert list(gradients.values()) == [pytest.approx(3 * shown, rel=1e-5)]


def test_steps_beyond_the_limit_are_not_kept():
    """So that one step back is enough, however many went up."""
    layer = scale(90.0)
    optimizer = keras.optimizers.SGD(1.0)
    shown = []
    for gradient in (-1.0, -1.0, -1.0, 0.1):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], layer.trainable_variables)
        shown.append(float(np.asarray(layer(X))[0]))
    assert shown == pytest.approx([100.0] * 3 + [100.0 * math.exp(-0.1)], rel=1e-5)


def test_the_bias_learns():
    layer = scale(2.0, bias_init=-1.0)
    _, gradients, _ = layer_gradients(layer, lambda y, _: keras.ops.sum(y[1]), X)
    assert sorted(float(g) for g in gradients.values()) == [0, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.L2Normalization(0.0), "epsilon=0.0"),
        (lambda: layers.LogitScale(0.0), "scale_init=0.0"),
        (lambda: layers.LogitScale(101.0), "maximum=100.0.*scale_init=101.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
