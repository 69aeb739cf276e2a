"""Geometric augmentation against plain array operations."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import Augment, Flip
from keras_vmoe.data.augmentation import as_sequence, augment_all

IMAGE = np.random.default_rng(0).uniform(1, 255, (1, 6, 6, 2)).astype(np.float32)
# Draws that leave an image alone, in the order shift x, shift y, flip, rotation, zoom.
STILL = [0.5, 0.5, 0.75, 0.5, 0.5]


def apply(augment, **draws):
    names = ("x", "y", "flip", "rotation", "zoom")
    numbers = [draws.get(name, still) for name, still in zip(names, STILL, strict=True)]
    return augment(tf.constant(IMAGE), tf.constant([numbers], tf.float32)).numpy()


def test_nothing_happens_by_default():
    np.testing.assert_array_equal(apply(Augment(), x=0.0, flip=0.0, rotation=0.0), IMAGE)


def test_middle_draws_leave_an_image_alone():
    everything = Augment(shift=2, flip=True, rotation=30.0, zoom=0.3)
    np.testing.assert_allclose(apply(everything), IMAGE, atol=1e-3)


@pytest.mark.parametrize(("draw", "dx"), [(0.0, -2), (0.3, -1), (0.5, 0), (0.7, 1), (0.99, 2)])
def test_shift_moves_whole_pixels_and_fills_with_black(draw, dx):
    padded = np.pad(IMAGE, ((0, 0), (2, 2), (2, 2), (0, 0)))
    augment = Augment(shift=2)
    expected = padded[:, 2:8, 2 + dx : 8 + dx]
    np.testing.assert_allclose(apply(augment, x=draw), expected, atol=1e-4)
    expected = padded[:, 2 + dx : 8 + dx, 2:8]
    np.testing.assert_allclose(apply(augment, y=draw), expected, atol=1e-4)


def test_flip_mirrors_left_and_right_half_of_the_time():
    np.testing.assert_allclose(apply(Augment(flip=True), flip=0.4), IMAGE[:, :, ::-1], atol=1e-4)
    np.testing.assert_allclose(apply(Augment(flip=True), flip=0.6), IMAGE, atol=1e-4)


def test_rotation_turns_about_the_centre():
    quarter = apply(Augment(rotation=90.0), rotation=1.0)
    np.testing.assert_allclose(quarter[0], np.rot90(IMAGE[0], 1), atol=1e-2)
    half = apply(Augment(rotation=180.0), rotation=0.0)
    np.testing.assert_allclose(half, IMAGE[:, ::-1, ::-1], atol=1e-2)


def test_zoom_below_one_shrinks_the_image():
    white = tf.fill((1, 9, 9, 1), 255.0)
    draws = tf.constant([[*STILL[:4], 0.0]])
    small = Augment(zoom=0.5)(white, draws).numpy()[0, :, :, 0]
    np.testing.assert_allclose(small[3:6, 3:6], 255.0)
    np.testing.assert_allclose(small[[0, 1, -2, -1]], 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": -1}, "shift=-1"),
        ({"shift": 1.5}, "shift=1.5"),
        ({"rotation": -5.0}, "rotation=-5.0"),
        ({"rotation": 200.0}, "rotation=200.0"),
        ({"zoom": 1.0}, "zoom=1.0"),
        ({"zoom": -0.1}, "zoom=-0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


def test_bytes_become_floats_that_are_not_rounded():
    image = IMAGE.astype(np.uint8)
    draws = tf.constant([[0.5, 0.5, 0.5, 0.9, 0.5]])
    augment = Augment(rotation=30.0)
    found = augment(tf.constant(image), draws)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, augment(tf.constant(image, tf.float32), draws))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_flips_of_a_batch_are_drawn_apart(dtype):
    images = np.repeat(IMAGE, 3, axis=0).astype(dtype)
    found = Flip()(tf.constant(images), tf.constant([[0.49], [0.5], [0.0]]))
    assert found.dtype == dtype
    expected = np.stack([images[0, :, ::-1], images[1], images[2, :, ::-1]])
    np.testing.assert_array_equal(found, expected)


def test_augmentations_come_after_each_other_with_draws_of_their_own():
    both = (Flip(), Augment(shift=2))
    draws = tf.constant([[0.1, *STILL]])
    draws = tf.tensor_scatter_nd_update(draws, [[0, 1]], [0.0])  # two pixels along x
    found = augment_all(both, tf.constant(IMAGE), draws)
    mirrored = Flip()(tf.constant(IMAGE), draws[:, :1])
    np.testing.assert_array_equal(found, Augment(shift=2)(mirrored, draws[:, 1:]))
    assert not np.array_equal(found, IMAGE)


@pytest.mark.parametrize("augment", [Flip, [Augment(), Flip], "flip", ["flip"], lambda x, y: x])
def test_what_is_no_augmentation_is_refused(augment):
    with pytest.raises(ValueError, match="is no augmentation: make one, such as Flip()"):
        as_sequence(augment)
