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


def make(seed=0, **options):
    """Attention of 2 heads on width 8 whose weights, biases too, are random; and its inputs."""
    rng = np.random.default_rng(seed)
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, **options)
    query, value = (rng.normal(size=(3, n, 8)).astype("float32") for n in (5, 6))
    attention(query, value)
    for weight in attention.weights:
        weight.assign(rng.normal(size=weight.shape))
    return attention, query, value


MASKS = {
    "all": None,
    "some": np.random.default_rng(1).random((3, 5, 6)) < 0.6,
    "of keys": np.random.default_rng(2).random((1, 1, 6)) < 0.6,
    "of heads": np.random.default_rng(3).random((3, 2, 5, 6)) < 0.6,
    "nothing to see": np.zeros((3, 5, 6), bool),
}
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of TensorFlow alone"
)


@on_tensorflow
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_products_of_matrices_are_keras_attention(monkeypatch, qk_norm, mask, scores):
    import tensorflow as tf

    attention, query, value = make(qk_norm=qk_norm)

    def run():
        with tf.GradientTape() as tape:
            found = attention(
                query, value, attention_mask=MASKS[mask], return_attention_scores=scores
            )
            total = tf.reduce_sum(tf.sin(found[0] if scores else found))
        outputs = found if scores else (found,)
        return *outputs, *tape.gradient(total, [w.value for w in attention.trainable_weights])

    found = run()
    assert attention._is_plain()
    monkeypatch.setattr(layers.MultiHeadAttention, "_is_plain", lambda self: False)
    for one, other in zip(found, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@on_tensorflow
def test_half_precision_is_left_to_keras():
    attention, query, value = make(dtype="mixed_bfloat16")
    assert not attention._is_plain()
    assert keras.backend.standardize_dtype(attention(query, value).dtype) == "bfloat16"


@on_tensorflow
def test_no_gradient_of_a_kernel_is_made_for_each_image():
    import tensorflow as tf

    attention, query, value = make()

    @tf.function(autograph=False)
    def gradients(query, value):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(attention(query, value))
        return tape.gradient(total, [w.value for w in attention.weights])

    graph = gradients.get_concrete_function(query, value).graph
    made = [tuple(o.shape) for op in graph.get_operations() for o in op.outputs if o.shape.rank]
    assert (8, 8) in made
    assert not {(3, 8, 8), (3, 8, 2, 4), (3, 2, 4, 8)} & set(made)


@on_tensorflow
def test_dropout_drops_weights_in_training_alone():
    import tensorflow as tf

    attention, query, value = make(dropout=0.5)
    at_inference = attention(query, value, training=False)
    np.testing.assert_allclose(at_inference, attention(query, value), rtol=1e-6)
    eye = np.tile(np.eye(8, dtype="float32"), (1000, 1, 1))[:, :6]
    attention.value_dense.kernel.assign(np.eye(8).reshape(8, 2, 4))
    attention.output_dense.kernel.assign(np.eye(8).reshape(2, 4, 8))
    for weight in (attention.value_dense.bias, attention.output_dense.bias):
        weight.assign(tf.zeros_like(weight))
    # What a head gives of a one-hot value is its weight: half of them are gone, the rest doubled.
    queries = np.repeat(query[:1], 1000, axis=0)
    kept = np.asarray(attention(queries, eye, training=False))
    dropped = np.asarray(attention(queries, eye, training=True))[kept > 0]
    kept = kept[kept > 0]
    assert np.mean(dropped == 0) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(dropped[dropped > 0], 2 * kept[dropped > 0], rtol=1e-5)


def lora(attention):
    attention.query_dense.enable_lora(2)
    attention.query_dense.lora_kernel_b.assign(np.ones((2, 4)))


def another_class(attention):
    class Nothing(keras.layers.EinsumDense):
        def call(self, inputs, training=None):
            return 0 * super().call(inputs)

    attention.query_dense.__class__ = Nothing


def activation(attention):
    attention.value_dense.activation = keras.activations.relu


@on_tensorflow
@pytest.mark.parametrize("change", [lora, another_class, activation])
def test_changed_projections_are_left_to_keras(change):
    attention, query, value = make()
    before = np.array(attention(query, value))
    assert attention._is_plain()
    change(attention)
    assert not attention._is_plain()
    assert np.abs(np.array(attention(query, value)) - before).max() > 1e-3


@on_tensorflow
def test_a_dtype_of_a_projection_alone_is_left_to_keras():
    attention, query, value = make()
    attention.output_dense.dtype_policy = "mixed_bfloat16"
    assert keras.backend.standardize_dtype(attention(query, value).dtype) == "bfloat16"


def test_activity_is_regularized():
    losses = []
    for kind in (layers.MultiHeadAttention, keras.layers.MultiHeadAttention):
        attention = kind(num_heads=2, key_dim=4, activity_regularizer="l2")
        attention(X, X)
        losses.append(len(attention.losses))
    assert losses[0] == losses[1] > 0


@on_tensorflow
def test_flash_attention_is_refused_as_by_keras():
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, flash_attention=True)
    with pytest.raises(Exception, match="[Ff]lash attention is not supported"):
        attention(X, X)


@pytest.mark.parametrize("axes", [None, (1,), (2,)])
def test_maps_attend_along_the_axes_that_are_asked_for(axes):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype("float32")
    options = {"num_heads": 2, "key_dim": 4, "attention_axes": axes}
    ours, keras_own = (kind.MultiHeadAttention(**options) for kind in (layers, keras.layers))
    ours(maps, maps), keras_own(maps, maps)
    keras_own.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(maps, maps), keras_own(maps, maps), rtol=1e-5, atol=1e-6)
