"""An ensemble in `fit`: its loss and its metrics."""

import keras
import numpy as np
import pytest

from keras_vmoe import models, ops
from tests.models import tiny

X, LABELS = tiny.images(7), np.arange(7) % 3


def compiled(kind="softmax", **overrides):
    model = tiny.ensemble(**overrides)
    model.compile(
        keras.optimizers.Adam(1e-3),
        models.EnsembleCrossentropy(kind),
        metrics=[models.EnsembleAccuracy(kind), models.EnsembleNLL(kind)],
    )
    return model


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_evaluation_is_by_hand(kind, one_hot):
    model = compiled(kind, noise_std=0.0)
    labels = np.eye(3, dtype="float32")[LABELS] if one_hot else LABELS
    found = model.evaluate(X, labels, batch_size=7, verbose=0, return_dict=True)
    logits = model(X)
    auxiliary = float(sum(model.losses))
    members = np.asarray(ops.classification_loss(LABELS, logits, kind)).mean()
    assert found["loss"] == pytest.approx(members + auxiliary, rel=1e-5)
    together = np.asarray(ops.ensemble_logits(logits, kind))
    nll = np.asarray(ops.classification_loss(LABELS, together, kind)).mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["accuracy"] == pytest.approx((together.argmax(-1) == LABELS).mean())


def test_fit_moves_every_weight_and_predict_gives_the_members():
    model = compiled(dropout_rate=0.1, head_kernel_initializer="zeros")
    before = [np.asarray(v) for v in model.trainable_variables]
    data = (X, LABELS)
    history = model.fit(*data, batch_size=3, epochs=2, verbose=0, validation_data=data).history
    assert np.isfinite(history["loss"]).all()
    moved = [
        (np.asarray(v) != b).any() for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert all(moved)
    for name in ("accuracy", "nll", "encoder_block_1_moe/dropped"):
        assert "val_" + name in history
    assert model.predict(X, verbose=0).shape == (7, 3, 3)


def test_an_ensemble_of_one_model_trains_like_keras():
    logits = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wanted = float(keras_loss(LABELS, logits))
    assert float(models.EnsembleCrossentropy()(LABELS, logits)) == pytest.approx(wanted, rel=1e-5)
    smooth = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    wanted = float(smooth(np.eye(3)[LABELS], logits))
    found = models.EnsembleCrossentropy(label_smoothing=0.2)
    assert float(found(LABELS[:, None], logits)) == pytest.approx(wanted, rel=1e-5)


def test_weights_of_images_count():
    logits = np.asarray(tiny.ensemble()(X))
    weights = np.array([1, 0, 0, 2, 0, 0, 1], "float32")
    chosen = np.repeat(np.arange(7), weights.astype(int))
    for make in (models.EnsembleAccuracy, models.EnsembleNLL):
        weighted, plain = make(), make()
        weighted.update_state(LABELS, logits, weights)
        plain.update_state(LABELS[chosen], logits[chosen])
        assert float(weighted.result()) == pytest.approx(float(plain.result()), rel=1e-5)


def test_a_compiled_ensemble_survives_its_file(tmp_path):
    model = compiled("sigmoid", noise_std=0.0)
    model.fit(X, LABELS, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    wanted, found = (m.evaluate(X, LABELS, verbose=0, return_dict=True) for m in (model, again))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert again.loss.get_config() == model.loss.get_config()


@pytest.mark.parametrize(
    "make", [models.EnsembleCrossentropy, models.EnsembleAccuracy, models.EnsembleNLL]
)
def test_another_kind_is_named(make):
    with pytest.raises(ValueError, match="kind='mean'"):
        make("mean")
