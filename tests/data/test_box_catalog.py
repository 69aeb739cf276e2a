"""Boxes of TensorFlow Datasets: coco, mocked."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_vmoe import data

# Boxes, classes and crowds of each image; the third goes beyond it, the fourth is empty.
OBJECTS = (
    ([[0.0, 0.25, 0.5, 0.75]], [17], [False]),
    ([], [], []),
    ([[0.5, 0.5, 1.2, 1.0], [0.1, 0.1, 0.1, 0.4], [0.0, 0.0, 1.0, 1.0]], [1, 2, 79], [0, 0, 1]),
)


def mock_coco(count=3):
    """The examples as `PartialDecoding` leaves them; tfds' own mock makes no such boxes."""

    def as_dataset(self, split, decoders=None, **unused):
        def examples():
            for index in range(count):
                boxes, classes, crowds = OBJECTS[index % len(OBJECTS)]
                picture = tf.io.encode_png(np.full((8, 4 + index, 3), 40 * index, np.uint8))
                yield {
                    "image": picture.numpy(),
                    "objects": {
                        "bbox": np.float32(boxes).reshape(-1, 4),
                        "label": np.int64(classes),
                        "is_crowd": np.array(crowds, bool),
                    },
                }

        spec = {
            "image": tf.TensorSpec((), tf.string),
            "objects": {
                "bbox": tf.TensorSpec((None, 4), tf.float32),
                "label": tf.TensorSpec((None,), tf.int64),
                "is_crowd": tf.TensorSpec((None,), tf.bool),
            },
        }
        found = tf.data.Dataset.from_generator(examples, output_signature=spec)
        return found.apply(tf.data.experimental.assert_cardinality(count))

    return tfds.testing.mock_data(num_examples=count, as_dataset_fn=as_dataset)


def test_coco():
    with mock_coco():
        source = data.load_boxes("coco/2017", eval_split="validation")
        assert (source.num_classes, source.max_boxes) == (80, 100)
        assert (source.train_split, source.eval_split) == ("train", "validation")
        one, none, several = data.read_boxes(source.train)
        batch = next(iter(data.make_boxes(source.eval, 3, 16, max_boxes=2)))
    np.testing.assert_allclose(one, [[0.0, 0.25, 0.5, 0.75, 17, 0]])
    assert none.shape == (0, 6)
    np.testing.assert_allclose(several, [[0.5, 0.5, 1.0, 1.0, 1, 0], [0, 0, 1, 1, 79, 1]])
    assert batch["classes"].numpy().tolist() == [[17, -1], [-1, -1], [1, 79]]
    np.testing.assert_allclose(batch["boxes"][0, 0], [2, 0, 6, 8])
    np.testing.assert_allclose(batch["scale"][:, 0], 2.0)


def test_a_training_stream_holds_images_with_any_number_of_boxes():
    with mock_coco(6):
        source = data.load_boxes("coco/2017")
        batches = data.make_boxes(
            source.train, 3, 16, training=True, jitter=data.ScaleJitter((1.0, 1.0)), max_boxes=2
        )
        classes = np.concatenate([batch["classes"].numpy() for batch in batches.take(2)])
    found = sorted(row.tolist() for row in classes)
    assert found == [[-1, -1], [-1, -1], [1, -1], [1, -1], [17, -1], [17, -1]]


def test_a_dataset_without_boxes_is_refused():
    with tfds.testing.mock_data(num_examples=1):
        with pytest.raises(ValueError, match="'mnist' has no boxes there"):
            data.load_boxes("mnist")
        with pytest.raises(ValueError, match="objects_field='things'"):
            data.load_boxes("coco/2017", objects_field="things")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'digit_scene' is not known.*Did you mean digit_scenes"):
        data.load_boxes("digit_scene")
