"""AdamW as the gin files ask for it."""

import keras
import numpy as np
import pytest

from keras_vmoe.trainers import optimizers
from keras_vmoe.trainers.averaging import averaged_weights


def model():
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2, bias_initializer="ones")(inputs)
    return keras.Model(inputs, outputs)


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_warmup_and_cosine():
    schedule = optimizers.warmup_cosine(1.0, 100, 10, final_fraction=0.1)
    np.testing.assert_allclose(
        rates(schedule, (0, 5, 10, 55, 100)), [0.0, 0.5, 1.0, 0.55, 0.1], atol=1e-6
    )


def test_no_warmup():
    schedule = optimizers.warmup_cosine(2.0, 100, 0)
    np.testing.assert_allclose(rates(schedule, (0, 50, 100)), [2.0, 1.0, 0.0], atol=1e-6)


def test_warmup_fits_into_a_short_run():
    optimizer = optimizers.adamw(total_steps=4, steps_per_epoch=100, warmup_epochs=5.0)
    assert float(optimizer.learning_rate) == 0.0
    assert optimizer.get_config()["learning_rate"]["config"]["warmup_steps"] == 2


def test_excluded_variables_do_not_decay():
    net = model()
    optimizer = optimizers.adamw(10, 10, learning_rate=0.1, weight_decay=0.5, clipnorm=None)
    variables = net.trainable_variables
    optimizers.exclude_from_weight_decay(optimizer, variables, ["bias"])
    optimizer.build(variables)
    kernel = variables[0].numpy()
    optimizer.apply([np.zeros(v.shape, "float32") for v in variables], variables)
    np.testing.assert_allclose(variables[0].numpy(), kernel * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(variables[1].numpy(), [1.0, 1.0])


@pytest.mark.parametrize("ema", [None, 0.5])
def test_averaged_weights_are_seen_inside_the_block_only(ema):
    net = model()
    optimizer = optimizers.adamw(10, 10, learning_rate=0.1, weight_decay=0.0, ema_momentum=ema)
    optimizer.build(net.trainable_variables)
    start = net.get_weights()
    for _ in range(3):
        optimizer.apply([np.ones(v.shape, "float32") for v in net.trainable_variables])
    last = net.get_weights()
    with averaged_weights(net, optimizer):
        inside = net.get_weights()
    for before, now, then in zip(last, net.get_weights(), inside, strict=True):
        np.testing.assert_array_equal(before, now)
        assert np.array_equal(then, now) == (ema is None)
    assert not np.array_equal(start[0], last[0])
