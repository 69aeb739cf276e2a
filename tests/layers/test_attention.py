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
