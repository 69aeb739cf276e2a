"""Embeddings of pairs: collected in order, without padding."""

import keras
import numpy as np
import pytest

from keras_vmoe import evaluation


def pair_model(names=("image_embedding", "text_embedding")):
    """Embeddings that tell what they were made of."""
    image, tokens = keras.Input((2, 2, 3), name="images"), keras.Input((4,), name="tokens")
    outputs = (keras.layers.Flatten()(image), keras.layers.Rescaling(2.0)(tokens))
    inputs = {"images": image, "tokens": tokens}
    return keras.Model(inputs, dict(zip(names, outputs, strict=True)))


def batch_of(first, count, mask=None):
    numbers = np.arange(first, first + count)
    batch = {
        "image": np.broadcast_to(numbers[:, None, None, None], (count, 2, 2, 3)).astype("float32"),
        "tokens": np.repeat(numbers[:, None], 4, axis=1),
    }
    return batch if mask is None else batch | {"mask": np.array(mask)}


def test_pairs_are_collected_in_order_without_padding():
    done = []
    batches = [batch_of(0, 3), batch_of(3, 3, [True, False, True]), batch_of(6, 2, [False] * 2)]
    batches[0]["label"] = np.zeros(3)  # what the model has no input for
    images, texts = evaluation.collect_pair_embeddings(
        pair_model(), batches, lambda: done.append(1)
    )
    np.testing.assert_array_equal(images, np.repeat([[0], [1], [2], [3], [5]], 12, axis=1))
    np.testing.assert_array_equal(texts, np.repeat([[0], [2], [4], [6], [10]], 4, axis=1))
    assert images.dtype == texts.dtype == "float32"
    assert len(done) == 3


def test_what_holds_no_pairs():
    with pytest.raises(ValueError, match="at least one pair"):
        evaluation.collect_pair_embeddings(pair_model(), [batch_of(0, 2, [False] * 2)])
    with pytest.raises(ValueError, match=r"'image' and 'tokens'.*\['image'\]"):
        evaluation.collect_pair_embeddings(pair_model(), [{"image": np.zeros((1, 2, 2, 3))}])
    wrong = batch_of(0, 2) | {"tokens": np.zeros((3, 4), int)}
    with pytest.raises(ValueError, match="2 images and 3 rows of tokens"):
        evaluation.collect_pair_embeddings(pair_model(), [wrong])
    model = pair_model(("image_embedding", "other"))
    with pytest.raises(ValueError, match=r"\['image_embedding', 'other'\]"):
        evaluation.collect_pair_embeddings(model, [batch_of(0, 2)])
