"""Labels without images, and some examples of a split."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from tests.data.splits import labels, make_split, numbered_images, stream_split

KINDS = ("array", "file", "stream", "parts")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_evaluation(kind, tmp_path):
    split = make_split(kind, numbered_images(40), tmp_path)
    ordered = labels(data.make_dataset(split, 8, 4))
    assert data.read_labels(split).tolist() == [label for batch in ordered for label in batch]
    assert data.read_labels(split).dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_the_chosen_examples_are_those(kind, tmp_path):
    split = make_split(kind, numbered_images(40), tmp_path)
    places = np.array([0, 3, 4, 17, 39])
    chosen = data.select(split, places)
    assert type(chosen) is type(split)
    assert chosen.num_examples == 5
    (batch,) = data.make_dataset(chosen, 5, 4).as_numpy_iterator()
    wanted = data.read_labels(split)[places]
    assert batch["label"].tolist() == wanted.tolist()
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], wanted / 127.5 - 1, atol=1e-6)


def test_labels_of_a_stream_are_read_without_its_images():
    split = stream_split(numbered_images(4), contents=[b"no image"] * 4)
    told = []
    assert data.read_labels(split, told.append).tolist() == [0, 1, 2, 3]
    assert told == [4]


def test_a_stream_is_read_no_further_than_the_last_of_them():
    def broken_after_3(part):
        examples = {"image": tf.io.encode_png(tf.zeros((4, 4, 1), tf.uint8))[None]}
        whole = tf.data.Dataset.from_tensor_slices(examples).repeat(8).enumerate()
        check = lambda i: tf.debugging.assert_less(i, tf.constant(3, tf.int64))  # noqa: E731

        def read(i, example):
            with tf.control_dependencies([check(i)]):
                return {"image": example["image"], "label": tf.cast(i, tf.int32)}

        return whole.map(read)

    split = data.StreamSplit(8, broken_after_3, channels=1)
    chosen = data.select(split, np.array([0, 2]))
    assert labels(data.make_dataset(chosen, 2, 4)) == [[0, 2]]
    with pytest.raises(tf.errors.InvalidArgumentError):
        data.read_labels(split)


@pytest.mark.parametrize("places", [[1, 0], [1, 1], [-1, 2], [3, 4]])
def test_places_are_sorted_and_inside(places, tmp_path):
    with pytest.raises(ValueError, match="places: expected sorted, different numbers below 4"):
        data.select(make_split("array", numbered_images(4), tmp_path), np.array(places))
