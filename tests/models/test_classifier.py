"""A model with its preprocessing and class names."""

import keras
import numpy as np
import pytest

from keras_vmoe import models
from tests.models import tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype="uint8")


@pytest.fixture(scope="module")
def model():
    return tiny.vmoe(dropout_rate=0.5)


@pytest.fixture(scope="module")
def classifier(model):
    return models.Classifier(model, ["ant", "bee", "cat"])


def resized(images, low=-1.0, high=1.0):
    small = np.asarray(keras.ops.image.resize(images.astype("float32"), (16, 16)))
    return small * (high - low) / 255 + low


def test_any_size_and_dtype_of_image(model, classifier):
    wanted = np.asarray(model(resized(PIXELS)))
    for images in (PIXELS, PIXELS.astype("float32"), PIXELS.astype("int64")):
        np.testing.assert_allclose(np.asarray(classifier(images)), wanted, atol=1e-4)
        np.testing.assert_allclose(classifier.predict(images, verbose=0), wanted, atol=1e-4)
    exact = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype="uint8")
    wanted = np.asarray(model(exact / 127.5 - 1))
    np.testing.assert_allclose(np.asarray(classifier(exact)), wanted, atol=1e-4)


def test_inference_has_neither_noise_nor_dropout(classifier):
    first, second = (np.asarray(classifier(PIXELS)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_training_has_both(classifier):
    first, second = (np.asarray(classifier(PIXELS, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_it_can_be_fine_tuned(model):
    classifier = models.Classifier(tiny.vmoe(dropout_rate=0.5), ["ant", "bee", "cat"])
    seeds = [v for v in classifier.variables if "seed_generator" in v.path]
    before = [np.asarray(v) for v in seeds]
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = classifier.fit(PIXELS, np.arange(3), verbose=0).history
    assert "encoder_block_1_moe/dropped" in history
    assert any((np.asarray(v) != b).any() for v, b in zip(seeds, before, strict=True)), "no dropout"


def test_another_value_range(model):
    classifier = models.Classifier(model, "abc", value_range=(0, 2))
    wanted = np.asarray(model(resized(PIXELS, 0.0, 2.0)))
    np.testing.assert_allclose(np.asarray(classifier(PIXELS)), wanted, atol=1e-4)


def test_files(classifier, tmp_path):
    classifier.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is models.Classifier
    assert again.class_names == ["ant", "bee", "cat"]
    assert again.value_range == (-1.0, 1.0)
    assert type(again.model) is models.VMoE
    np.testing.assert_array_equal(np.asarray(again(PIXELS)), np.asarray(classifier(PIXELS)))
    assert len(again.weights) == len(again.model.weights)


def test_export(classifier, tmp_path):
    import tensorflow as tf

    from tests.models.test_vmoe import assignments

    classifier.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    images = PIXELS.astype("float32")
    for batch in (images, images[:1], images[:2, :9, :11]):
        wanted = np.asarray(classifier(batch))
        np.testing.assert_allclose(served.serve(batch).numpy(), wanted, atol=1e-4)
    assert not assignments(served), "neither a metric nor a seed is changed"


def test_classes_by_name(classifier):
    logits = np.asarray(classifier(PIXELS), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = classifier.classify(PIXELS)
    assert [name for name, _ in found] == [["ant", "bee", "cat"][i] for i in logits.argmax(-1)]
    np.testing.assert_allclose([p for _, p in found], probabilities.max(-1), rtol=1e-4)


def test_half_precision():
    classifier = models.Classifier(tiny.vit(dtype="mixed_bfloat16"), "abc")
    assert classifier.predict(PIXELS, verbose=0).dtype == np.float32


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [("ab", (-1, 1), "one name per logit, 3.*2 names"), ("abc", (1, 1), "value_range=")],
)
def test_bad_input_is_named(model, names, values, message):
    with pytest.raises(ValueError, match=message):
        models.Classifier(model, names, values)
