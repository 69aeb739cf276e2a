"""The dense model, and what all models share: config, files, precision, fit."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers, models
from tests.models import tiny


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "gap", "position_embedding": "sincos2d", "position_temperature": 100.0},
        {"pooling": "map", "qk_norm": True, "representation_size": 5},
        {"pooling": "first", "position_embedding": "none", "num_classes": None},
        {"image_size": (16, 24), "patch_size": (8, 4), "channels": 1},
        {"dropout_rate": 0.1, "attention_dropout_rate": 0.1, "stochastic_depth_rate": 0.2},
        {"activation": "relu", "head_kernel_initializer": keras.initializers.HeNormal(3)},
        {"remat": True, "layer_norm_epsilon": 1e-5, "head_bias_init": -2.0, "name": "own"},
        {"dtype": "mixed_bfloat16"},
    ],
)
def test_config_round_trip(overrides):
    model = tiny.vit(**overrides)
    again = models.ViT.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    height, width = model.input_shape[1:3]
    x = np.random.default_rng(0).normal(size=(2, height, width, model.input_shape[3]))
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))


def test_the_policy_is_that_of_building_time():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = tiny.vit()
    finally:
        keras.config.set_dtype_policy("float32")
    again = models.ViT.from_config(model.get_config())
    assert again.get_layer("encoder_block_0").compute_dtype == "bfloat16"
    assert again.output.dtype == "float32"


def test_head_starts_where_it_is_told():
    model = models.ViT(
        **{**tiny.ARGUMENTS, "head_kernel_initializer": "zeros"}, head_bias_init=-3.0
    )
    np.testing.assert_array_equal(np.asarray(model(tiny.images(2))), -3.0)


def test_stochastic_depth_grows_with_depth():
    model = tiny.vit(num_layers=5, stochastic_depth_rate=0.4)
    rates = [model.get_layer(f"encoder_block_{i}").stochastic_depth_rate for i in range(5)]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_dropout_is_of_training_alone():
    model = tiny.vit(dropout_rate=0.5, attention_dropout_rate=0.5, stochastic_depth_rate=0.5)
    x = tiny.images(4)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(model(x)))
    assert (np.asarray(model(x, training=True)) != np.asarray(model(x))).any()


def test_a_dense_model_has_no_auxiliary_losses():
    model = tiny.vit()
    model(tiny.images(1), training=True)
    assert model.losses == []
    sparse = models.VMoE(**tiny.ARGUMENTS, placement="none")
    sparse.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        np.asarray(sparse(tiny.images(2))), np.asarray(model(tiny.images(2)))
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pooling": "cls"}, "'token', 'gap', 'map', 'first'.*'cls'"),
        ({"position_embedding": "rotary"}, "'rotary'"),
        ({"num_heads": 3}, "num_heads=3, width=8"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"image_size": 4}, "height=4"),
        ({"image_size": (1, 2, 3)}, "image_size=(1, 2, 3)"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"stochastic_depth_rate": -0.1}, "stochastic_depth_rate=-0.1"),
        ({"representation_size": 0}, "representation_size=0"),
        ({"width": 6, "position_embedding": "sincos2d"}, "width=6"),
    ],
)
def test_bad_input_is_named(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        tiny.vit(**overrides)


def test_layers_are_named_after_what_they_are():
    names = [layer.name for layer in tiny.vit(representation_size=4, pooling="map").layers]
    assert names == [
        "images",
        "embedding",
        "position_embedding",
        "encoder_block_0",
        "encoder_block_1",
        "encoder_norm",
        "pooling",
        "pre_logits",
        "head",
    ]
    assert any(isinstance(layer, layers.ClassToken) for layer in tiny.vit().layers)
