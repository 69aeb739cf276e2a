"""Recomputing blocks saves memory and changes no number."""

import keras
import numpy as np
import pytest

from tests.models import tiny
from tests.support.golden import max_error
from tests.support.gradients import layer_gradients

LABELS = np.arange(6) % 3
RATES = {"dropout_rate": 0.2, "attention_dropout_rate": 0.2, "stochastic_depth_rate": 0.2}


@pytest.mark.parametrize("kind", ["top_k", "expert_choice", "soft"])
def test_outputs_losses_and_gradients(kind):
    results = []
    for remat in (False, True):
        model = tiny.vmoe(router=kind, noise_std=0.0, remat=remat)
        outputs, gradients, of_x = layer_gradients(
            model,
            lambda y, losses: keras.ops.sum(keras.ops.square(y)) + sum(losses, 0.0),
            tiny.images(4),
            training=True,
        )
        losses = [float(loss) for loss in model.losses]
        metrics = {m.name: float(m.result()) for m in model.metrics}
        results.append((np.asarray(outputs), losses, metrics, [*gradients.values(), of_x]))
    plain, again = results
    np.testing.assert_allclose(again[0], plain[0], atol=1e-6)
    assert again[1] == pytest.approx(plain[1], rel=1e-6)
    assert again[2] == pytest.approx(plain[2], rel=1e-6)
    for one, other in zip(plain[3], again[3], strict=True):
        assert max_error(other, one) < 1e-5


def fit(**overrides):
    keras.utils.set_random_seed(3)
    model = tiny.vmoe(**{"num_layers": 1, "placement": (0,), **overrides})
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(
        tiny.images(6), LABELS, batch_size=3, epochs=2, shuffle=False, verbose=0
    ).history
    return history, [np.asarray(v) for v in model.trainable_variables]


def test_fit_without_random_draws():
    plain, again = (fit(noise_std=0.0, remat=remat) for remat in (False, True))
    assert again[0].keys() == plain[0].keys()
    for name, values in plain[0].items():
        np.testing.assert_allclose(again[0][name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(plain[1], again[1], strict=True):
        assert max_error(other, one) < 1e-4


def test_fit_with_dropout_and_noise():
    history, weights = fit(remat=True, **RATES)
    assert np.isfinite(history["loss"]).all()
    again, same = fit(remat=True, **RATES)
    assert history == again, "the same seed, the same run"
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_array_equal(one, other)


def test_inference_recomputes_nothing():
    plain, again = (tiny.vmoe(remat=remat, **RATES) for remat in (False, True))
    x = tiny.images(4)
    np.testing.assert_array_equal(np.asarray(plain(x)), np.asarray(again(x)))
