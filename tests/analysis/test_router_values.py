"""Routers replaced by random ones, and back."""

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, models
from tests.models import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.vmoe()


def kernels(model):
    moe = models.moe_layers(model)
    return [np.array(keras.ops.convert_to_numpy(layer.router.kernel)) for layer in moe]


def changed(before, model):
    return [bool((old != new).any()) for old, new in zip(before, kernels(model), strict=True)]


def test_a_random_router_has_the_numbers_of_the_trained_one(model):
    before = kernels(model)
    router = models.moe_layers(model)[1].router
    with analysis.random_routers([router], seed=3):
        assert changed(before, model) == [False, True]
        first = kernels(model)[1]
        np.testing.assert_array_equal(np.sort(first.ravel()), np.sort(before[1].ravel()))
    with analysis.random_routers([router], seed=3):
        np.testing.assert_array_equal(kernels(model)[1], first)
    with analysis.random_routers([router], seed=4):
        assert (kernels(model)[1] != first).any()
    assert changed(before, model) == [False, False]


def test_routers_are_back_whatever_happens(model):
    before = kernels(model)

    def fails():
        if any(changed(before, model)):
            raise KeyboardInterrupt
        return 0.9

    with pytest.raises(KeyboardInterrupt):
        analysis.router_value(model, fails)
    assert changed(before, model) == [False, False]
    assert kernels(model)[0].dtype == before[0].dtype


def test_one_layer_alone_and_all_below(model):
    before, seen = kernels(model), []

    def measure():
        seen.append(tuple(changed(before, model)))
        return 1.0 - 0.1 * len(seen)

    value = analysis.router_value(model, measure, draws=2)
    none, first, second, both = (False, False), (True, False), (False, True), (True, True)
    assert seen == [none, first, first, second, both, second, both]
    assert value.accuracy == pytest.approx(0.9)
    names = [layer.name for layer in models.moe_layers(model)]
    found = [(names.index(d.layer), d.below, d.draw, round(d.accuracy, 1)) for d in value.draws]
    assert found == [
        (0, False, 0, 0.8),
        (0, True, 0, 0.8),
        (0, False, 1, 0.7),
        (0, True, 1, 0.7),
        (1, False, 0, 0.6),
        (1, True, 0, 0.5),
        (1, False, 1, 0.4),
        (1, True, 1, 0.3),
    ]
    assert changed(before, model) == [False, False]


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_other_routers_have_a_worth_too(router):
    model = tiny.vmoe(router=router)
    before, batch = kernels(model), tiny.images(3)

    def measure():
        return float(np.asarray(model(batch)).sum())

    value = analysis.router_value(model, measure, draws=1)
    assert len({value.accuracy, *(draw.accuracy for draw in value.draws)}) == 4
    assert changed(before, model) == [False, False]


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="holds none"):
        analysis.router_value(tiny.vit(), lambda: 0.0)
    with pytest.raises(ValueError, match="draws"):
        analysis.router_value(model, lambda: 0.0, draws=0)
