"""Handed noise, records, and switches that end with their block."""

import numpy as np
import pytest

from keras_vmoe import layers
from keras_vmoe.layers import effects

X = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")


def router(**arguments):
    return layers.TopKRouter(**{"num_experts": 4, "num_selected": 1, **arguments})


def test_handed_noise_goes_to_routers_in_the_order_of_calls():
    first, second = router(), router()
    noise = np.random.default_rng(1).normal(size=(2, 2, 6, 4)).astype("float32")
    with layers.handed_noise(noise):
        found = [np.asarray(r(X, training=True).gates) for r in (first, second)]
    wanted = [np.asarray(r(X, noise=n).gates) for r, n in zip((first, second), noise, strict=True)]
    np.testing.assert_array_equal(found, wanted)
    assert not effects.noise_is_handed()


def test_routers_without_noise_take_none():
    with layers.handed_noise([]):
        router(noise_std=0.0)(X, training=True)
        router()(X)


def hand(count, calls):
    with layers.handed_noise([np.zeros((2, 6, 4), "float32")] * count):
        for _ in range(calls):
            router()(X, training=True)


@pytest.mark.parametrize(
    ("count", "calls", "message"), [(2, 1, "1 of them unused"), (1, 2, "fewer arrays")]
)
def test_noise_and_routers_must_match(count, calls, message):
    with pytest.raises(ValueError, match=message):
        hand(count, calls)
    assert not effects.noise_is_handed()


def test_records_of_the_innermost_block():
    moe = layers.MoEMLP(router(), 4, name="own")
    with layers.record_routing() as outer:
        with layers.record_routing() as inner:
            moe(X)
        moe(X)
        moe(X)
    moe(X)
    assert [len(inner), len(outer)] == [1, 2]
    call = inner[0]
    assert (call.layer, int(call.batch), int(call.tokens_per_image)) == ("own", 2, 6)
    assert call.capacity == moe.router.capacity(12)
    assert not effects.recording()


def test_metrics_are_switched_back_on():
    moe = layers.MoEMLP(router(), 4)
    with pytest.raises(RuntimeError), layers.routing_metrics(False):
        raise RuntimeError
    moe(X)
    assert float(moe.metrics[0].count) == 1
