"""Attention looks at `attention_mask` alone."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers

X = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
X[:, 2:] = 0  # what `Masking` masks


@pytest.mark.parametrize(
    ("kind", "looks_at_it"),
    [(layers.MultiHeadAttention, False), (keras.layers.MultiHeadAttention, True)],
)
def test_masks_that_keras_attaches_are_of_routing(kind, looks_at_it):
    attention = kind(num_heads=2, key_dim=4)
    unmasked = np.asarray(attention(X, X))
    masked = keras.layers.Masking()(X)
    found = np.asarray(attention(masked, masked))
    assert (np.abs(found - unmasked).max() > 1e-2) == looks_at_it


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow alone")
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_products_of_matrices_are_keras_attention(monkeypatch, qk_norm, masked):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, qk_norm=qk_norm)
    query, value = (rng.normal(size=(3, n, 8)).astype("float32") for n in (5, 6))
    attention(query, value)
    for weight in attention.weights:  # biases too
        weight.assign(rng.normal(size=weight.shape))
    mask = rng.random((3, 5, 6)) < 0.6 if masked else None

    def run():
        with tf.GradientTape() as tape:
            out, scores = attention(query, value, attention_mask=mask, return_attention_scores=True)
            total = tf.reduce_sum(tf.sin(out))
        assert attention(query, value, attention_mask=mask).shape == (3, 5, 8)
        return out, scores, *tape.gradient(total, [w.value for w in attention.weights])

    found = run()
    assert attention._projects_by_matrices()
    monkeypatch.setattr(layers.MultiHeadAttention, "_projects_by_matrices", lambda self: False)
    for one, other in zip(found, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow alone")
def test_lora_is_left_to_keras():
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4)
    x = np.random.default_rng(0).normal(size=(1, 3, 8)).astype("float32")
    before = np.array(attention(x, x))
    attention.query_dense.enable_lora(2)
    attention.query_dense.lora_kernel_b.assign(np.ones((2, 4)))
    assert not attention._projects_by_matrices()
    assert np.abs(np.array(attention(x, x)) - before).max() > 1e-3


@pytest.mark.parametrize("axes", [None, (1,), (2,)])
def test_maps_attend_along_the_axes_that_are_asked_for(axes):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype("float32")
    options = {"num_heads": 2, "key_dim": 4, "attention_axes": axes}
    ours, keras_own = (kind.MultiHeadAttention(**options) for kind in (layers, keras.layers))
    ours(maps, maps), keras_own(maps, maps)
    keras_own.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(maps, maps), keras_own(maps, maps), rtol=1e-5, atol=1e-6)
