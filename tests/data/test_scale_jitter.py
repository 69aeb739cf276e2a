"""Squares of images with boxes: what the boxes hold stays in them."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import ScaleJitter
from keras_vmoe.data.scale_jitter import FILLING, fit


def image_with_a_square(height, width, box):
    """Black, white within a box of pixels; and its row."""
    top, left, bottom, right = box
    image = np.zeros((height, width, 1), np.uint8)
    image[top:bottom, left:right] = 255
    sides = np.array([height, width, height, width])
    return tf.constant(image), tf.constant([[*(np.array(box) / sides), 4, 0]], tf.float32)


def bounds(square):
    """What is white in a square, as a box."""
    ys, xs = np.nonzero(np.asarray(square)[..., 0] > 160)
    return np.array([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1])


@pytest.mark.parametrize("draws", [(0.0, 0.5, 0.5, 0.9), (1.0, 0.2, 0.8, 0.9), (0.7, 0.9, 0.1, 0)])
def test_a_box_stays_around_what_it_holds(draws):
    image, row = image_with_a_square(40, 60, (10, 20, 30, 50))
    square, rows = ScaleJitter((0.5, 1.6))(image, row, 48, tf.constant(draws))
    assert square.shape == (48, 48, 1)
    assert square.dtype == tf.uint8
    np.testing.assert_allclose(rows[0, :4], bounds(square), atol=1.0)
    assert rows[0, 4:].numpy().tolist() == [4, 0]


@pytest.mark.parametrize("shape", [(37, 61), (90, 40)])
@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_a_window_is_that_of_the_whole_resized_image(shape, scale):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3))
    image = tf.constant(noise, tf.uint8)
    longer = np.float32(scale) * 48 / max(shape)
    sides = [round(float(side * longer)) for side in shape]
    whole = np.asarray(tf.image.resize(image, sides, antialias=True))
    free = [max(side - 48, 0) + 1 for side in sides]
    draws = tf.constant([0.0, 0.4, 0.7, 0.9])
    top, left = int(np.float32(0.4) * free[0]), int(np.float32(0.7) * free[1])
    wanted = whole[top : top + 48, left : left + 48]
    square, _ = ScaleJitter((scale, scale))(image, tf.zeros((0, 6)), 48, draws)
    found = np.asarray(square)[: wanted.shape[0], : wanted.shape[1]]
    # Half a level of rounding to bytes.
    np.testing.assert_allclose(found, wanted, atol=0.51)


def test_a_flip_mirrors_image_and_box():
    image, row = image_with_a_square(32, 32, (4, 2, 12, 10))
    plain, kept = ScaleJitter((1.0, 1.0), flip=0.0)(image, row, 32, tf.zeros([4]))
    flipped, turned = ScaleJitter((1.0, 1.0), flip=1.0)(image, row, 32, tf.zeros([4]))
    np.testing.assert_array_equal(flipped, np.asarray(plain)[:, ::-1])
    np.testing.assert_array_equal(kept[0, :4], [4, 2, 12, 10])
    np.testing.assert_array_equal(turned[0, :4], [4, 22, 12, 30])


def test_what_an_image_does_not_fill_is_grey():
    image, row = image_with_a_square(20, 40, (0, 0, 20, 40))
    square, rows = ScaleJitter((0.5, 0.5), flip=0.0)(image, row, 40, tf.zeros([4]))
    np.testing.assert_array_equal(rows[0, :4], [0, 0, 10, 20])
    assert (np.asarray(square)[10:] == FILLING).all()
    assert (np.asarray(square)[:, 20:] == FILLING).all()
    assert (np.asarray(square)[:10, :20] == 255).all()


def test_boxes_outside_of_the_window_and_tiny_ones_go():
    image, _ = image_with_a_square(40, 40, (0, 0, 10, 10))
    rows = tf.constant(
        [[0, 0, 0.1, 0.1, 1, 0], [0, 0, 1, 1, 2, 0], [0.9, 0.9, 1, 1, 3, 0], [0, 0, 0.01, 1, 5, 0]]
    )
    # The window at factor 2 begins at the image's lower right.
    draws = tf.constant([0.0, 0.999, 0.999, 0.0])
    _, kept = ScaleJitter((2.0, 2.0), flip=0.0)(image, rows, 40, draws)
    assert kept[:, 4].numpy().tolist() == [2, 3]
    np.testing.assert_allclose(kept[:, :4], [[0, 0, 40, 40], [32, 32, 40, 40]], atol=1e-4)
    _, kept = ScaleJitter((1.0, 1.0), flip=0.0, min_side=4.5)(image, rows, 40, tf.zeros([4]))
    assert kept[:, 4].numpy().tolist() == [2]


def test_factors_are_spread_over_their_range():
    image, row = image_with_a_square(32, 32, (0, 0, 32, 32))
    jitter = ScaleJitter((0.25, 1.0), flip=0.0)
    sides = [
        float(jitter(image, row, 32, tf.constant([draw, 0, 0, 0]))[1][0, 2])
        for draw in (0.0, 1 / 3, 0.999)
    ]
    np.testing.assert_allclose(sides, [8, 16, 32], atol=0.5)


def test_fitting_keeps_proportions_and_tells_the_scale():
    image, row = image_with_a_square(50, 30, (10, 5, 40, 25))
    square, rows, scale = fit(image, row, 20)
    np.testing.assert_allclose(scale, [0.4, 0.4])
    np.testing.assert_allclose(rows[0, :4], [4, 2, 16, 10], atol=1e-5)
    np.testing.assert_allclose(bounds(square)[:2], [4, 2], atol=1)
    assert (np.asarray(square)[:, 12:] == FILLING).all()


@pytest.mark.parametrize(
    "options", [{"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}, {"flip": 1.5}, {"min_side": -1}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ScaleJitter(**options)
