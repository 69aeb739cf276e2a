"""RandAugment: its operations against NumPy, its choice by draws alone."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import RandAugment

SIZE = 14
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
NAMES = [
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
    "SolarizeAdd",
]
NEGATIVE, POSITIVE = 0.2, 0.8


def apply(name, magnitude, a=POSITIVE, b=0.5, image=IMAGE, **arguments):
    """Applies one operation, chosen as the draws choose it."""
    which = (NAMES.index(name) + 0.5) / 16
    augment = RandAugment(1, magnitude, **arguments)
    found = augment(tf.constant(image)[None], tf.constant([[which, a, b]], tf.float32))
    assert found.dtype == tf.uint8
    return found.numpy()[0].astype(int)


def stretched(image):
    image = image.astype(float)
    low, high = image.min((0, 1)), image.max((0, 1))
    return np.floor((image - low) * (255 / (high - low)) + 1e-3)


def blended(degenerate, factor, image=IMAGE):
    return np.clip(degenerate + factor * (image.astype(float) - degenerate), 0, 255)


def moved(dy, dx):
    """Moves the image; what comes in is grey."""
    frame = np.full((3 * SIZE, 3 * SIZE, 3), 128)
    frame[SIZE : 2 * SIZE, SIZE : 2 * SIZE] = IMAGE
    return frame[SIZE + dy : 2 * SIZE + dy, SIZE + dx : 2 * SIZE + dx]


def with_hole(y, x, half):
    image = IMAGE.astype(int)
    image[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 128
    return image


GREY = np.dot(IMAGE, [0.2989, 0.587, 0.114])[..., None]
MEAN = IMAGE.mean((0, 1))
EXPECTED = {
    "AutoContrast": stretched(IMAGE),
    "Invert": 255 - IMAGE.astype(int),
    "Posterize": IMAGE // 64 * 64,
    "Solarize": np.where(IMAGE < 128, IMAGE, 255 - IMAGE.astype(int)),
    "Color": GREY,
    "Contrast": MEAN,
    "Brightness": 0.0,
    "TranslateX": moved(0, 4),
    "TranslateY": moved(4, 0),
    "Cutout": with_hole(11, 7, 2),
    "SolarizeAdd": np.where(IMAGE < 128, IMAGE + 55, IMAGE),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_operations_at_half_the_scale(name):
    expected = EXPECTED[name]
    if name in ("Color", "Contrast", "Brightness"):
        expected = blended(expected, 1.0)
        # The factor is 1 at half the scale: at none it is a tenth.
        found = apply(name, 0)
        np.testing.assert_allclose(found, blended(EXPECTED[name], 0.1), atol=2)
    found = apply(name, 5, translate=8 / SIZE, cutout=4 / SIZE)
    np.testing.assert_allclose(found, expected, atol=1)


def test_signs_are_drawn():
    arguments = {"translate": 8 / SIZE}
    np.testing.assert_array_equal(apply("TranslateX", 5, NEGATIVE, **arguments), moved(0, -4))
    np.testing.assert_array_equal(apply("TranslateY", 5, NEGATIVE, **arguments), moved(-4, 0))
    for name, axis in (("ShearX", 1), ("ShearY", 0)):
        ends = []
        for sign, a in ((-1, NEGATIVE), (1, POSITIVE)):
            sheared = apply(name, 10, a)
            # Row y moves by 0.3 y along x, column x by 0.3 x along y.
            line = np.take(sheared, 10, axis=1 - axis)
            original = np.take(IMAGE, 10, axis=1 - axis)
            shifted = np.roll(original, -3 * sign, axis=0)
            inner = slice(3, SIZE - 3)
            np.testing.assert_array_equal(line[inner], shifted[inner])
            ends.append(line[0 if sign < 0 else -1])
        np.testing.assert_array_equal(ends, np.full((2, 3), 128))


def test_rotation_turns_by_thirty_degrees_about_the_centre():
    image = np.zeros((101, 101, 3), np.uint8)
    image[50, 80] = 255  # 30 pixels to the right of the centre
    for a, sign in ((NEGATIVE, 1), (POSITIVE, -1)):
        bright = np.argwhere(apply("Rotate", 10, a, image=image)[..., 0] == 255)
        expected = [50 + sign * 15, 50 + 30 * np.cos(np.pi / 6)]
        assert np.abs(bright.mean(0) - expected).max() < 1
    # Corners are turned in from outside.
    np.testing.assert_array_equal(apply("Rotate", 10, image=image)[0, 0], [128] * 3)


def test_sharpness_leaves_borders_and_smooths_below_one():
    soft = apply("Sharpness", 0)
    inner = IMAGE.astype(float)[1:-1, 1:-1]
    neighbours = sum(
        np.roll(IMAGE.astype(float), (dy, dx), (0, 1))[1:-1, 1:-1]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )
    smooth = np.floor((neighbours + 4 * inner) / 13)
    np.testing.assert_allclose(soft[1:-1, 1:-1], blended(smooth, 0.1, inner), atol=2)
    np.testing.assert_array_equal(soft[0], IMAGE[0])


def test_equalize_spreads_values_evenly():
    dark = np.random.default_rng(1).integers(0, 64, (32, 32, 3), np.uint8)
    found = apply("Equalize", 5, image=dark)
    assert found.max() > 240
    for channel in range(3):
        order = np.argsort(dark[..., channel].ravel(), kind="stable")
        assert np.all(np.diff(found[..., channel].ravel()[order]) >= 0)


def test_no_magnitude_moves_nothing():
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"):
        np.testing.assert_array_equal(apply(name, 0), IMAGE)
    np.testing.assert_array_equal(apply("SolarizeAdd", 0), IMAGE)
    np.testing.assert_array_equal(apply("Solarize", 0), 255 - IMAGE)


def test_weaker_with_magnitude():
    for magnitude in (10, 20):
        np.testing.assert_array_equal(apply("Solarize", magnitude), IMAGE)
    np.testing.assert_array_equal(apply("Posterize", 10), IMAGE // 16 * 16)
    np.testing.assert_array_equal(apply("Posterize", 20), IMAGE)


def test_every_operation_is_reached_with_the_same_share():
    augment = RandAugment(1, 7)
    assert list(augment.operations(SIZE, SIZE)) == NAMES
    draws = np.full((48, 3), 0.7, np.float32)
    draws[:, 0] = (np.arange(48) + 0.5) / 48
    found = augment(tf.constant(np.stack([IMAGE] * 48)), tf.constant(draws)).numpy()
    assert found.shape == (48, SIZE, SIZE, 3)
    runs = found.reshape(16, 3, -1)
    assert np.all(runs == runs[:, :1])
    assert len(np.unique(runs[:, 0], axis=0)) == 16


def test_layers_come_after_each_other_and_draws_alone_decide():
    draws = np.array([[2.5 / 16, 0.0, 0.0, 12.5 / 16, POSITIVE, 0.0]], np.float32)
    arguments = {"magnitude": 5, "translate": 8 / SIZE}
    both = RandAugment(2, **arguments)
    results = []
    for seed in (0, 1):
        tf.random.set_seed(seed)
        results.append(both(tf.constant(IMAGE)[None], tf.constant(draws)).numpy()[0])
    np.testing.assert_array_equal(*results)
    expected = apply("TranslateX", 5, image=(255 - IMAGE), translate=8 / SIZE)
    np.testing.assert_array_equal(results[0], expected)


def test_grey_images_stay_grey():
    grey = IMAGE[..., :1]
    found = apply("TranslateX", 5, image=grey, translate=8 / SIZE)
    assert found.shape == (SIZE, SIZE, 1)
    np.testing.assert_array_equal(found, moved(0, 4)[..., :1])


def test_floats_are_rounded_to_bytes():
    image = IMAGE + np.float32(0.3)
    np.testing.assert_array_equal(apply("Invert", 5, image=image), 255 - IMAGE)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "official.vision.ops", None)
    with pytest.raises(ImportError, match=r"tf-models-official: pip install 'keras_vmoe\[train\]'"):
        RandAugment().operations(8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"layers": 1.5}, "layers=1.5"),
        ({"magnitude": -1}, "magnitude=-1"),
        ({"magnitude": 21}, "magnitude=21: expected 0 to 20"),
        ({"translate": 100}, "translate=100: expected a share"),
        ({"cutout": -0.1}, "cutout=-0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**arguments)


def test_other_channels_are_refused():
    images = tf.zeros((2, 8, 8, 4), tf.uint8)
    with pytest.raises(ValueError, match="RandAugment takes images of 1 or 3 channels"):
        RandAugment()(images, tf.zeros((2, 6)))
