"""MoE layers are found, and their capacity made exact for a while."""

import keras
import pytest

from keras_vmoe import layers, models
from tests.models import tiny


def test_layers_are_found_once_and_in_order():
    model = tiny.vmoe(num_layers=4, placement=(0, 1, 3))
    names = [f"encoder_block_{i}_moe" for i in (0, 1, 3)]
    assert [layer.name for layer in models.moe_layers(model)] == names
    inputs = keras.Input((16, 16, 3))
    twice = keras.Model(inputs, [model(inputs), model(-inputs)])
    assert [layer.name for layer in models.moe_layers(twice)] == names
    classifier = models.Classifier(model, list("abc"))
    assert [layer.name for layer in models.moe_layers(classifier)] == names
    assert models.moe_layers(tiny.vit()) == []


def test_a_layer_in_two_models_is_found_once():
    moe = layers.MoEMLP(layers.TopKRouter(num_experts=2, num_selected=1), hidden_dim=4)
    inputs = keras.Input((4, 8))
    inner = [keras.Model(inputs, moe(keras.layers.Dense(8)(inputs))) for _ in range(2)]
    outer = keras.Model(inputs, inner[1](inner[0](inputs)))
    assert models.moe_layers(outer) == [moe]


def test_slots_are_exact_within_the_block_alone():
    model = tiny.vmoe(capacity_multiple_of=4)
    routers = [layer.router for layer in models.moe_layers(model)]

    def slots():
        return [router.capacity(40, capacity_factor=0.3) for router in routers]

    def fails():
        with models.exact_capacity(model):
            assert slots() == [6, 6]
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert slots() == [8, 8]
