"""Texts as tokens: where a text ends, and the vectors of its tokens."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.support.gradients import layer_gradients

TOKENS = np.array([[5, 1, 9, 1], [1, 7, 7, 7], [5, 6, 7, 8], [3, 4, 5, 1]])


def embedding(**arguments):
    layer = layers.TextEmbedding(10, 4, **arguments)
    layer.build((None, 4))
    return layer


@pytest.mark.parametrize("eos_id", [1, 7])
def test_a_text_ends_with_its_first_end(eos_id):
    found = np.asarray(layers.text_mask(TOKENS, eos_id))
    for row, mask in zip(TOKENS.tolist(), found.tolist(), strict=True):
        length = row.index(eos_id) + 1 if eos_id in row else len(row)
        assert mask == [i < length for i in range(len(row))]


def test_rows_of_the_table():
    layer = embedding()
    table = np.asarray(layer.embedding)
    np.testing.assert_array_equal(np.asarray(layer(TOKENS)), table[TOKENS])
    _, gradients, _ = layer_gradients(layer, lambda y, _: keras.ops.sum(y), TOKENS.astype("int32"))
    (gradient,) = gradients.values()
    np.testing.assert_array_equal(gradient[:, 0], np.bincount(TOKENS.ravel(), minlength=10))


def test_it_starts_from_vectors_of_length_one():
    table = np.asarray(embedding_of(2000, 64))
    assert np.square(table).sum(-1).mean() == pytest.approx(1, rel=0.02)


def embedding_of(vocabulary, width):
    layer = layers.TextEmbedding(vocabulary, width)
    layer.build((None, 4))
    return layer.embedding


def test_config_file_and_precision(tmp_path):
    tokens = keras.Input((4,), dtype="int32")
    model = keras.Model(tokens, layers.TextEmbedding(10, 4, dtype="mixed_bfloat16")(tokens))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, again):
        assert one(TOKENS).dtype == "bfloat16"
        assert one.trainable_variables[0].dtype == "float32"
    np.testing.assert_array_equal(
        *(np.asarray(keras.ops.cast(one(TOKENS), "float32")) for one in (model, again))
    )
    assert again.layers[1].get_config() == model.layers[1].get_config()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.TextEmbedding(0, 4), "vocabulary_size=0"),
        (lambda: layers.TextEmbedding(10, 0), "width=0"),
        (lambda: embedding()(TOKENS + 1), "between 0 and 9.*Received: tokens between 2 and 10"),
        (lambda: embedding()(TOKENS - 2), "Received: tokens between -1 and 7"),
        (lambda: embedding()(TOKENS * 1.0), "tokens must be integers. Received: float32"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
