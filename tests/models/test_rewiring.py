"""Other routing and image masks with the same weights, through compiled `predict`."""

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import layers, models
from tests.models import tiny

X = tiny.images(5)


def vmoe(**overrides):
    return tiny.vmoe(**{"num_layers": 1, "placement": (0,), **overrides})


def predict(model):
    """Through a compiled graph, which keeps its trace."""
    return model.predict(X, batch_size=5, verbose=0)


def same_weights(model, **routing):
    """A model of its own with the routing that was asked for."""
    other = vmoe(**routing)
    other.set_weights(model.get_weights())
    return other


def wanted_with(model, **routing):
    """What such a model gives, outside any graph."""
    return np.asarray(same_weights(model, **routing)(X))


@pytest.mark.parametrize(
    "routing",
    [
        {"num_selected": 1},
        {"num_selected": 4, "capacity_factor": 0.3},
        {"capacity_factor": 0.2},
        {"capacity_factor": 9.0},
        {"batch_priority": False},
    ],
)
def test_predict_before_and_after(routing):
    model = vmoe()
    before = predict(model)
    other = keras_vmoe.with_routing(model, **routing)
    found = predict(other)
    np.testing.assert_allclose(found, wanted_with(model, **routing), atol=1e-5)
    assert np.abs(found - before).max() > 1e-4
    np.testing.assert_array_equal(predict(model), before)


def test_weights_are_shared():
    model = vmoe()
    other = keras_vmoe.with_routing(model, num_selected=1)
    assert {id(v) for v in other.weights} == {id(v) for v in model.weights}
    other.compile("sgd", "mse")
    before = predict(model)
    other.fit(X, np.ones((5, 3)), verbose=0)
    assert (predict(model) != before).any()
    np.testing.assert_allclose(predict(other), wanted_with(model, num_selected=1), atol=1e-5)


def test_a_capacity_factor_holds_in_training_as_well():
    model = vmoe(noise_std=0.0, eval_capacity_factor=4.0)
    other = keras_vmoe.with_routing(model, capacity_factor=0.25)
    for training in (True, False):
        with layers.record_routing() as calls:
            other(X[:3], training=training)
        assert {call.capacity for call in calls} == {2}


def test_routing_can_be_changed_twice():
    model = vmoe()
    once = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=0.3)
    twice = keras_vmoe.with_routing(once, capacity_factor=2.0)
    wanted = wanted_with(model, num_selected=1, capacity_factor=2.0)
    np.testing.assert_allclose(predict(twice), wanted, atol=1e-5)


def test_files_of_changed_and_reloaded_models(tmp_path):
    model = vmoe()
    predict(model)
    wanted = wanted_with(model, num_selected=1)
    keras_vmoe.with_routing(model, num_selected=1).save(tmp_path / "changed.keras")
    again = keras.saving.load_model(tmp_path / "changed.keras")
    np.testing.assert_allclose(predict(again), wanted, atol=1e-5)
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    predict(reloaded)
    np.testing.assert_allclose(
        predict(keras_vmoe.with_routing(reloaded, num_selected=1)), wanted, atol=1e-5
    )


def test_exports_of_changed_models(tmp_path):
    import tensorflow as tf

    from tests.models.test_vmoe import assignments

    other = keras_vmoe.with_routing(vmoe(), num_selected=1)
    other.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X).numpy(), np.asarray(other(X)), atol=1e-5)
    assert not assignments(served)


def functional(inner):
    images = keras.Input((16, 16, 3))
    return keras.Model(images, keras.layers.Softmax()(inner(images)))


WRAPPERS = {
    "sequential": lambda m: keras.Sequential([keras.Input((16, 16, 3)), m, keras.layers.Softmax()]),
    "functional": functional,
    "sequential_in_functional": lambda m: functional(keras.Sequential([m])),
    "functional_in_sequential": lambda m: keras.Sequential(
        [keras.Input((16, 16, 3)), functional(m)]
    ),
    "classifier": lambda m: models.Classifier(m, "abc"),
}


QUICK = ("classifier", "sequential_in_functional")


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(wrap, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, wrap in WRAPPERS.items()
    ],
)
def test_nested_models(wrap):
    model = vmoe()
    outer = wrap(model)
    before = predict(outer)
    found = predict(keras_vmoe.with_routing(outer, num_selected=1, capacity_factor=0.3))
    wanted = np.asarray(wrap(same_weights(model, num_selected=1, capacity_factor=0.3))(X))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - before).max() > 1e-5
    np.testing.assert_array_equal(predict(outer), before)


def test_a_layer_in_ones_own_functional_model():
    tokens = keras.Input((5, 8))
    moe = layers.MoEMLP(layers.TopKRouter(4, 2), 6)
    model = keras.Model(tokens, tokens + moe(tokens))
    tiny.spread(model)
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    found = keras_vmoe.with_routing(model, num_selected=1).predict(x, verbose=0)
    np.testing.assert_allclose(found, x + np.asarray(moe(x, num_selected=1)), atol=1e-5)


def test_expert_choice_takes_a_capacity_factor_only():
    model = vmoe(router="expert_choice")
    other = keras_vmoe.with_routing(model, capacity_factor=0.3)
    wanted = wanted_with(model, router="expert_choice", capacity_factor=0.3)
    np.testing.assert_allclose(predict(other), wanted, atol=1e-5)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keras_vmoe.with_routing(vmoe()), "at least one of num_selected"),
        (lambda: keras_vmoe.with_routing(tiny.vit(), num_selected=1), "at least one MoE layer"),
        (lambda: keras_vmoe.with_routing(vmoe(), num_selected=9), "num_selected=9"),
        (lambda: keras_vmoe.with_routing(vmoe(), num_selected=0), "num_selected=0"),
        (lambda: keras_vmoe.with_routing(vmoe(), capacity_factor=0.0), "capacity_factor=0.0"),
        (
            lambda: keras_vmoe.with_routing(vmoe(router="expert_choice"), num_selected=1),
            "ExpertChoiceRouter.*num_selected=1.*'encoder_block_0_moe'",
        ),
        (
            lambda: keras_vmoe.with_routing(vmoe(router="soft"), capacity_factor=1.0),
            "SoftRouter",
        ),
        (lambda: keras_vmoe.with_routing(Subclassed(), num_selected=1), "Subclassed"),
        (
            lambda: keras_vmoe.with_routing(keras.Sequential([vmoe()]), num_selected=1),
            "must be built",
        ),
        (lambda: models.with_image_mask(tiny.vit()), "at least one MoE layer"),
        (lambda: models.with_image_mask(models.with_image_mask(vmoe())), "has 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["top_k", "expert_choice", "soft"])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: models.Classifier(m, "abc")])
def test_masked_images_change_nothing(kind, wrap):
    model = wrap(vmoe(router=kind))
    masked = models.with_image_mask(model)
    real, padded = X[:4], np.concatenate([X[:4], 50 * tiny.images(2, seed=9)])
    inputs = {"images": padded, "mask": np.arange(6) < 4}
    found = masked.predict(inputs, verbose=0)[:4]
    np.testing.assert_allclose(found, np.asarray(model(real)), atol=1e-5)
    masked(inputs, training=False)
    losses = float(sum(masked.losses, 0.0))
    model(real, training=False)
    assert losses == pytest.approx(float(sum(model.losses, 0.0)), rel=1e-5)
