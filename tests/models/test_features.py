"""What the head is given, for every way in which a model can end in one."""

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import layers, models
from tests.models import tiny

X = tiny.images(4)


def vit(**overrides):
    return tiny.vit(**{"num_layers": 1, **overrides})


def vmoe(**overrides):
    return tiny.vmoe(**{"num_layers": 1, "placement": (0,), **overrides})


def head_of(features, layer):
    """What a dense head makes of features, in NumPy."""
    kernel, bias = (np.asarray(weight) for weight in layer.weights)
    return features @ kernel + bias


@pytest.mark.parametrize(
    ("make", "overrides", "width"),
    [
        (vit, {}, 8),
        (vit, {"representation_size": 5}, 5),
        (vit, {"pooling": "map"}, 8),
        (vmoe, {}, 8),
        (vmoe, {"representation_size": 5, "pooling": "gap"}, 5),
    ],
)
def test_the_head_on_the_features_gives_the_logits(make, overrides, width):
    model = make(**overrides)
    extractor = models.feature_extractor(model)
    features = np.asarray(extractor(X))
    assert extractor.output_shape == (None, width)
    wanted = np.asarray(model(X))
    np.testing.assert_allclose(head_of(features, model.get_layer("head")), wanted, atol=1e-5)


def test_it_equals_the_model_made_without_a_head():
    model = vmoe(representation_size=5)
    without = vmoe(representation_size=5, num_classes=None)
    without.set_weights(model.get_weights()[:-2])
    wanted = np.asarray(without(X))
    np.testing.assert_allclose(models.feature_extractor(model)(X), wanted, atol=1e-6)


def test_weights_are_shared_and_followed():
    model = vit()
    extractor = models.feature_extractor(model)
    before = extractor.predict(X, verbose=0)
    assert {id(v) for v in extractor.weights} < {id(v) for v in model.weights}
    model.get_layer("encoder_norm").gamma.assign(np.full(8, 3.0))
    assert np.abs(extractor.predict(X, verbose=0) - before).max() > 1e-3


def test_a_classifier_keeps_its_preprocessing():
    model = vit()
    classifier = models.Classifier(model, ["a", "b", "c"])
    raw = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype("uint8")
    features = models.feature_extractor(classifier).predict(raw, verbose=0)
    wanted = models.feature_extractor(model)(raw / np.float32(127.5) - 1)
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    assert models.feature_extractor(classifier).input_shape == (None, None, None, 3)


def test_after_and_before_other_routing():
    model = vmoe()
    routed = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=4.0)
    first = np.asarray(models.feature_extractor(routed)(X))
    second = keras_vmoe.with_routing(
        models.feature_extractor(model), num_selected=1, capacity_factor=4.0
    )(X)
    np.testing.assert_allclose(first, second, atol=1e-6)
    wanted = np.asarray(routed(X))
    np.testing.assert_allclose(head_of(first, model.get_layer("head")), wanted, atol=1e-5)


def test_models_of_ones_own():
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(6, activation="relu")(inputs)
    functional = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(hidden))
    sequential = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(2)])
    x = np.ones((3, 8), "float32")
    for model in (functional, sequential):
        wanted = keras.Model(model.inputs[0], model.layers[-2].output)(x)
        np.testing.assert_allclose(models.feature_extractor(model)(x), wanted, atol=1e-6)


def test_a_head_that_is_used_twice():
    head = keras.layers.Dense(2)
    one, two = keras.Input((4,)), keras.Input((4,))
    keras.Model(one, head(one))
    model = keras.Model(two, head(keras.layers.Rescaling(2.0)(two)))
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(models.feature_extractor(model)(x), 2 * x)


class Subclassed(keras.Model):
    def call(self, x):
        return x


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)])


def ends_in(layer):
    x = keras.Input((16, 8))
    return keras.Model(x, layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Subclassed, "functional or sequential"),
        (lambda: "vit_b16", "functional or sequential"),
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "functional or sequential"),
        (two_outputs, "one output"),
        (lambda: vit(num_classes=None), "ends in 'pooling', a TokenPooling;"),
        (lambda: vit(num_classes=None, representation_size=4), "activation 'tanh'"),
        (lambda: ends_in(layers.TokenPooling("mean")), "TokenPooling"),
        (lambda: ends_in(keras.layers.Flatten()), "Flatten"),
    ],
)
def test_no_head(make, message):
    with pytest.raises(ValueError, match=message):
        models.feature_extractor(make())
