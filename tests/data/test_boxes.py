"""Boxes that are packed into labels, and batches of images with them."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.data import boxes as packing

IMAGES = np.arange(5 * 8 * 12, dtype=np.uint8).reshape(5, 8, 12, 1)
BOXES = (
    [[0.0, 0.0, 0.5, 0.25]],
    [],
    [[0.25, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]],
    [[0.1, 0.1, 0.2, 0.2]],
    [[0.5, 0.5, 0.75, 0.75]],
)
CLASSES = ([2], [], [0, 1], [2], [1])


@pytest.fixture
def split():
    return data.box_arrays(IMAGES, BOXES, CLASSES, num_classes=3)


def test_rows_come_back(split):
    for rows, boxes, classes in zip(data.read_boxes(split), BOXES, CLASSES, strict=True):
        np.testing.assert_array_equal(rows[:, :4], np.float32(boxes).reshape(-1, 4))
        np.testing.assert_array_equal(rows[:, 4], classes)
        assert not rows[:, 5].any()
    assert packing.unpack(tf.constant("")).shape == (0, 6)


def test_held_out_batches_hold_each_image_once_in_pixels(split):
    first, second = data.make_boxes(split, 3, image_size=24, max_boxes=2, pad=True)
    # 8x12 pixels become 16x24 of the square's 24x24.
    np.testing.assert_array_equal(first["scale"], np.full((3, 2), 2.0))
    np.testing.assert_array_equal(first["original"], [[8, 12]] * 3)
    np.testing.assert_allclose(first["boxes"][0], [[0, 0, 6, 8], [0, 0, 0, 0]])
    np.testing.assert_allclose(first["boxes"][2], [[12, 4, 24, 16], [0, 0, 24, 16]])
    np.testing.assert_array_equal(first["classes"], [[2, -1], [-1, -1], [0, 1]])
    np.testing.assert_array_equal(second["mask"], [True, True, False])
    np.testing.assert_array_equal(second["classes"], [[2, -1], [1, -1], [-1, -1]])
    assert first["image"].shape == (3, 24, 24, 1)
    grey = 128 / 127.5 - 1
    np.testing.assert_allclose(first["image"][:, 16:], grey, atol=1e-6)
    assert not np.asarray(second["image"][2]).any()


def batches(split, **options):
    found = data.make_boxes(
        split, 2, 16, training=True, jitter=data.ScaleJitter((0.5, 2.0)), max_boxes=2, **options
    )
    return [{n: x.numpy() for n, x in batch.items()} for batch in found.take(6)]


def test_a_resumed_run_sees_what_an_uninterrupted_one_would(split):
    whole, rest = batches(split), batches(split, start_step=3)
    for one, other in zip(whole[3:], rest, strict=False):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole[:2], whole[2:4], strict=True))
    other_seed = batches(split, seed=1)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, other_seed, strict=True))


def test_hosts_share_a_batch(split):
    whole = batches(split)
    parts = [batches(split, num_shards=2, shard_index=host) for host in range(2)]
    for place, batch in enumerate(whole):
        together = np.concatenate([part[place]["boxes"] for part in parts])
        np.testing.assert_array_equal(together, batch["boxes"])


def stream(rows):
    """A split as TensorFlow Datasets leave it, of one image with crowds."""
    encoded = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8))
    label = packing.pack(tf.constant(rows, tf.float32))

    def open_part(part):
        return tf.data.Dataset.from_tensors({"image": encoded, "label": label})

    return data.StreamSplit(1, open_part, channels=3)


def test_crowds_are_left_out_of_training_and_marked_in_evaluation():
    split = stream([[0, 0, 1, 0.5, 7, 1], [0, 0, 0.5, 1, 3, 0]])
    trained = next(iter(data.make_boxes(split, 1, 8, training=True, max_boxes=2)))
    assert trained["classes"].numpy().tolist() == [[3, -1]]
    assert "crowd" not in trained
    held_out = next(iter(data.make_boxes(split, 1, 8, max_boxes=2)))
    assert held_out["classes"].numpy().tolist() == [[7, 3]]
    assert held_out["crowd"].numpy().tolist() == [[True, False]]


def test_more_boxes_than_places():
    split = stream([[0, 0, 1, 0.5, 7, 0], [0, 0, 0.5, 1, 3, 0]])
    trained = next(iter(data.make_boxes(split, 1, 8, training=True, max_boxes=1)))
    assert trained["classes"].numpy().tolist() == [[7]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_boxes=1"):
        next(iter(data.make_boxes(split, 1, 8, max_boxes=1)))


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        ([[[0.0, 0.0, 1.5, 1.0]]], [[0]], r"boxes\[0\] holds .*divide pixels"),
        ([[[0.5, 0.0, 0.5, 1.0]]], [[0]], "y_min < y_max"),
        ([[[0.0, 0.0, float("nan"), 1.0]]], [[0]], "holds"),
        ([[[0.0, 0.0, 0.5, 1.0]]], [[3]], r"classes\[0\] holds 3: .* 0 to 2"),
        ([[[0.0, 0.0, 0.5, 1.0]]], [[0, 1]], "2 for 1 boxes"),
        ([], [], "for 1 images"),
    ],
)
def test_boxes_that_are_none_are_refused(boxes, classes, message):
    with pytest.raises(ValueError, match=message):
        data.box_arrays(IMAGES[:1], boxes, classes, num_classes=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"max_boxes": 0}, "max_boxes=0"),
        ({"channels": 2}, "channels=2"),
        ({"jitter": data.InceptionCrop()}, "ScaleJitter"),
        ({"batch_size": 6, "training": True}, "larger than the 5"),
    ],
)
def test_wrong_arguments_are_refused(split, options, message):
    with pytest.raises(ValueError, match=message):
        data.make_boxes(split, **{"batch_size": 2, "image_size": 8, **options})


def test_images_with_classes_are_refused():
    with pytest.raises(ValueError, match="class ids, not boxes"):
        data.make_boxes(data.load("digits").eval, 2, 8)
