"""Optimizers are saved and come back: checkpoints, configs, compiled models."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.trainers import optimizers
from tests.trainers.optimizers.variables import (
    arrays,
    assert_close,
    averages,
    stepper,
    values,
    variables,
)

START = arrays(0)
GRADIENTS = [arrays(1 + i) for i in range(8)]
COMMON = {
    "learning_rate": optimizers.cosine(0.1, 4, warmup_steps=1),
    "weight_decay": ((".*kernel", 0.1), ("head", 0.01)),
    "global_clipnorm": 1.0,
    "gradient_accumulation_steps": 2,
    "ema_momentum": 0.6,
}
MAKE = {
    "adamw": lambda **o: optimizers.AdamW(beta_2=0.99, epsilon=1e-6, **o),
    "momentum": lambda **o: optimizers.Momentum(momentum=0.8, **o),
    "adafactor": lambda **o: optimizers.Adafactor(min_dim_size_to_factor=4, max_decay=0.9, **o),
}
EVERY = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def state(optimizer, of):
    return values(of), averages(optimizer)


def assert_same(found, wanted):
    assert_close(found[0], wanted[0], rtol=0, atol=0)
    for a, b in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
def test_a_checkpoint_goes_on_as_if_nothing_had_been(make, tmp_path):
    stop = 5  # in the middle of an accumulation
    optimizer, of = make(**COMMON), variables(START)
    step = stepper(optimizer, of)
    for gradients in GRADIENTS[:stop]:
        step(gradients)
    saved = tf.train.Checkpoint(optimizer=optimizer, weights=[v.value for v in of])
    path = saved.write(str(tmp_path / "checkpoint"))
    for gradients in GRADIENTS[stop:]:
        step(gradients)
    fresh, fresh_of = make(**COMMON), variables(arrays(99))
    fresh_step = stepper(fresh, fresh_of)
    restored = tf.train.Checkpoint(optimizer=fresh, weights=[v.value for v in fresh_of])
    restored.read(path).assert_consumed()
    assert int(fresh._iterations) == stop
    for gradients in GRADIENTS[stop:]:
        fresh_step(gradients)
    assert_same(state(fresh, fresh_of), state(optimizer, of))


@EVERY
@pytest.mark.parametrize("options", [COMMON, {"weight_decay": 0.1, "freeze": ("bias",)}])
def test_a_config_makes_the_same_optimizer(make, options):
    optimizer = make(**options)
    written = json.dumps(keras.saving.serialize_keras_object(optimizer))
    copy = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(copy) is type(optimizer)
    assert json.dumps(keras.saving.serialize_keras_object(copy)) == written
    runs = []
    for each in (optimizer, copy):
        of = variables(START)
        each.build(of)
        for gradients in GRADIENTS[:3]:
            each.apply([tf.constant(gradients[v.path]) for v in of], of)
        runs.append(values(of))
    assert_close(runs[1], runs[0], rtol=0, atol=0)


def dense_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(2)])


def batches():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")


def test_a_compiled_model_fits_saves_and_goes_on(tmp_path):
    x, y = batches()
    model = dense_model()
    model.compile(MAKE["adafactor"](**COMMON | {"weight_decay": 0.1}), "mse")
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=2, epochs=1, shuffle=False, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy.optimizer) is type(model.optimizer)
    for each in (model, copy):
        each.fit(x, y, batch_size=2, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_ends_with_the_averages_where_keras_says_so():
    """Keras' own ends of an average: `fit` writes it into the model at the end."""
    x, y = batches()
    model = dense_model()
    model.compile(optimizers.AdamW(0.1, ema_momentum=0.5, freeze=("bias",)), "mse")
    model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    for weight, average in zip(model.get_weights(), averages(model.optimizer), strict=True):
        np.testing.assert_array_equal(weight, average)


@pytest.mark.slow
def test_loss_scaling_of_half_precision():
    x, y = batches()
    found = []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype=policy)])
        optimizer = optimizers.Momentum(0.1, weight_decay=0.1, global_clipnorm=1.0)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, "mse")
        model.fit(x, y, batch_size=8, epochs=3, verbose=0)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
