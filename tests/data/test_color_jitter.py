"""Colour jitter against NumPy and the standard library's colour conversions."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import ColorJitter

IMAGE = np.random.default_rng(0).integers(60, 130, (5, 6, 3), np.uint8)
STILL = [0.5, 0.5, 0.5, 0.5]
LUMA = np.array([0.299, 0.587, 0.114])
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def apply(jitter, which=None, draw=0.5, image=IMAGE):
    draws = list(STILL)
    if which is not None:
        draws[which] = draw
    found = jitter(tf.constant(image)[None], tf.constant([draws], tf.float32))
    assert found.dtype == image.dtype
    return found.numpy()[0]


ALL = ColorJitter(0.4, 0.4, 0.4, 0.2)


def test_middle_draws_leave_an_image_alone():
    np.testing.assert_array_equal(apply(ALL), IMAGE)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.6), (0.25, 0.8), (0.75, 1.2)])
def test_factors(draw, factor):
    image = IMAGE.astype(float)
    np.testing.assert_allclose(apply(ALL, BRIGHTNESS, draw), image * factor, atol=0.51)
    mean = (image @ LUMA).mean()
    np.testing.assert_allclose(
        apply(ALL, CONTRAST, draw), mean + (image - mean) * factor, atol=0.51
    )
    grey = (image @ LUMA)[..., None]
    np.testing.assert_allclose(
        apply(ALL, SATURATION, draw), grey + (image - grey) * factor, atol=0.51
    )


@pytest.mark.parametrize(("draw", "turn"), [(0.0, -0.2), (0.9, 0.16)])
def test_hue_turns_the_colour_circle(draw, turn):
    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255

    expected = np.apply_along_axis(turned, -1, IMAGE)
    np.testing.assert_allclose(apply(ALL, HUE, draw), expected, atol=0.51)


def test_values_are_cut_off_and_floats_stay_floats():
    bright = apply(ColorJitter(brightness=5.0), BRIGHTNESS, 0.99)
    assert bright.min() == 255
    dark = apply(ColorJitter(brightness=5.0), BRIGHTNESS, 0.0)
    assert dark.max() == 0
    image = IMAGE.astype(np.float32)
    np.testing.assert_allclose(apply(ALL, BRIGHTNESS, 0.0, image), image * 0.6, rtol=1e-5)


def test_images_of_a_batch_are_changed_apart():
    images = tf.constant(np.stack([IMAGE, IMAGE[::-1], IMAGE // 2]))
    draws = tf.constant(np.random.default_rng(1).random((3, 4)), tf.float32)
    together = ALL(images, draws).numpy()
    alone = [ALL(images[i : i + 1], draws[i : i + 1]).numpy()[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_grey_images_take_brightness_and_contrast():
    grey = IMAGE[..., :1]
    np.testing.assert_array_equal(apply(ALL, HUE, 0.0, grey), grey)
    np.testing.assert_array_equal(apply(ALL, SATURATION, 0.0, grey), grey)
    np.testing.assert_allclose(apply(ALL, BRIGHTNESS, 0.0, grey), grey * 0.6, atol=0.51)
    expected = grey.mean() + (grey - grey.mean()) * 0.6
    np.testing.assert_allclose(apply(ALL, CONTRAST, 0.0, grey), expected, atol=0.51)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, "brightness=-0.1"),
        ({"contrast": float("nan")}, "contrast=nan"),
        ({"saturation": float("inf")}, "saturation=inf"),
        ({"hue": 0.6}, "hue=0.6: expected 0 to 0.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ColorJitter(**arguments)


def test_other_channels_are_refused():
    images = tf.zeros((2, 8, 8, 4), tf.uint8)
    with pytest.raises(ValueError, match="ColorJitter takes images of 1 or 3 channels"):
        ALL(images, tf.zeros((2, 4)))
