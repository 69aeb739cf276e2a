"""The average of the weights, where it is seen and where it is not."""

import keras
import numpy as np
import pytest

from keras_vmoe.trainers import optimizers
from keras_vmoe.trainers.averaging import averaged_weights


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, bias_initializer="ones")])


def built(net, **options):
    optimizer = optimizers.AdamW(0.1, **options)
    optimizer.build(net.trainable_variables)
    return optimizer


def step(net, optimizer):
    optimizer.apply([np.ones(v.shape, "float32") for v in net.trainable_variables])


def seen_inside(net, optimizer):
    with averaged_weights(net, optimizer):
        return net.get_weights()


@pytest.mark.parametrize("ema", [None, 0.5])
def test_averages_are_seen_inside_the_block_only(ema):
    net = model()
    optimizer = built(net, ema_momentum=ema)
    for _ in range(3):
        step(net, optimizer)
    last = net.get_weights()
    inside = seen_inside(net, optimizer)
    for before, now, then in zip(last, net.get_weights(), inside, strict=True):
        np.testing.assert_array_equal(before, now)
        assert np.array_equal(then, now) == (ema is None)


def test_weights_come_back_after_an_error():
    net = model()
    optimizer = built(net, ema_momentum=0.5)
    for _ in range(2):
        step(net, optimizer)
    last = net.get_weights()
    with pytest.raises(KeyError), averaged_weights(net, optimizer):
        raise KeyError
    for before, now in zip(last, net.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize("make", [optimizers.AdamW, keras.optimizers.Adam])
def test_before_the_first_update_the_weights_are_their_own_average(make):
    """The averages are zeros then, also while the first update's batches are gathered."""
    net = model()
    options = {"ema_momentum": 0.5} | ({"use_ema": True} if make is keras.optimizers.Adam else {})
    optimizer = make(0.1, gradient_accumulation_steps=3, **options)
    optimizer.build(net.trainable_variables)
    start = net.get_weights()
    for _ in range(2):
        for a, b in zip(seen_inside(net, optimizer), start, strict=True):
            np.testing.assert_array_equal(a, b)
        step(net, optimizer)
    step(net, optimizer)
    first = net.get_weights()
    for a, b, before in zip(seen_inside(net, optimizer), first, start, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, before)


def test_an_average_moves_once_an_update():
    found = []
    for accumulation in (1, 3):
        net = model()
        net.set_weights([np.zeros((4, 2)), np.ones(2)])
        optimizer = built(net, ema_momentum=0.5, gradient_accumulation_steps=accumulation)
        for _ in range(4 * accumulation):
            step(net, optimizer)
        found.append(seen_inside(net, optimizer))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
