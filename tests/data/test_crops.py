"""Crops against explicit geometry in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import CentralCrop, InceptionCrop

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
# Draws that keep a square image whole.
WHOLE = [0.5, 0.999, 0.0, 0.0]


def oracle_window(crop, height, width, draws):
    aspect = crop.aspect[0] + draws[0] * (crop.aspect[1] - crop.aspect[0])
    shortest, tallest = (round(np.sqrt(share * height * width / aspect)) for share in crop.area)
    tallest = min(tallest, height)
    while round(tallest * aspect) > width:
        tallest -= 1
    shortest = min(max(shortest, 1), tallest)
    crop_height = list(range(shortest, tallest + 1))[int(draws[1] * (tallest - shortest + 1))]
    crop_width = max(round(crop_height * aspect), 1)
    y = list(range(height - crop_height + 1))[int(draws[2] * (height - crop_height + 1))]
    x = list(range(width - crop_width + 1))[int(draws[3] * (width - crop_width + 1))]
    return y, x, crop_height, crop_width


@pytest.mark.parametrize("size", [(300, 400), (37, 5), (28, 28), (4, 90)])
@pytest.mark.parametrize("crop", [InceptionCrop(), InceptionCrop((0.5, 0.5), (0.5, 2.0))])
def test_windows_follow_the_rule(crop, size):
    draws = np.random.default_rng(1).random((4, 200)).astype(np.float32)
    found = crop.window(*size, draws).numpy().T
    # Float32 may round the other way where a product ends in .5.
    expected = np.array([oracle_window(crop, *size, numbers) for numbers in draws.T])
    assert np.mean(np.abs(found - expected).max(1) == 0) > 0.97
    assert np.abs(found[:, 2:] - expected[:, 2:]).max() <= 1
    y, x, height, width = found.T
    assert np.all((y >= 0) & (x >= 0) & (y + height <= size[0]) & (x + width <= size[1]))
    assert np.all((height >= 1) & (width >= 1))


def test_windows_are_those_of_tensorflow_in_distribution():
    crop = InceptionCrop(area=(0.05, 1.0))
    draws = np.random.default_rng(2).random((4, 3000)).astype(np.float32)
    ours = crop.window(300, 400, draws).numpy().T

    def reference(seed):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [300, 400, 3],
            tf.zeros((1, 0, 4)),
            tf.stack([seed, 7]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.05, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    theirs = np.stack(list(tf.data.Dataset.range(3000).map(reference).as_numpy_iterator()))

    def measures(windows):
        y, x, height, width = windows.T.astype(float)
        return np.stack([y, x, height, width, width / height, height * width])

    for one, other in zip(measures(ours), measures(theirs), strict=True):
        error = np.hypot(one.std(), other.std()) / np.sqrt(3000)
        assert abs(one.mean() - other.mean()) < 4 * error
        assert abs(one.std() / other.std() - 1) < 0.1


def test_an_inception_crop_is_its_window_resized():
    draws = tf.constant([0.3, 0.4, 0.6, 0.7])
    y, x, height, width = InceptionCrop().window(30, 40, draws).numpy()
    part = IMAGE[y : y + height, x : x + width]
    expected = np.round(tf.image.resize(part, (16, 16))).astype(np.uint8)
    found = InceptionCrop()(tf.constant(IMAGE), 16, draws)
    assert found.dtype == tf.uint8
    np.testing.assert_array_equal(found, expected)


def test_draws_decide_alone():
    square = tf.constant(IMAGE[:, :30])
    whole = InceptionCrop(aspect=(1.0, 1.0))(square, 30, tf.constant(WHOLE))
    np.testing.assert_array_equal(whole, square)
    crops = [
        InceptionCrop()(square, 8, tf.constant(draws)).numpy()
        for draws in (WHOLE, WHOLE, [0.5, 0.2, 0.1, 0.9])
    ]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])


def box_average(image, factor):
    height, width, channels = image.shape
    boxes = image.reshape(height // factor, factor, width // factor, factor, channels)
    return boxes.astype(float).mean((1, 3))


def test_a_central_crop_averages_areas_and_keeps_the_middle():
    found = CentralCrop(resize=10)(tf.constant(IMAGE[:, :36]), 8)
    # 30 x 36 becomes 10 x 12; its middle begins at (1, 2).
    expected = np.round(box_average(IMAGE[:, :36], 3))[1:9, 2:10]
    assert found.dtype == tf.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("shape", "middle"), [((41, 30), (5, 0)), ((30, 47), (0, 8))])
def test_the_smaller_side_is_resized(shape, middle):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8)
    found = CentralCrop(resize=30)(tf.constant(image), 30)
    y, x = middle
    np.testing.assert_array_equal(found, image[y : y + 30, x : x + 30])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InceptionCrop(area=(0.0, 1.0)), r"area=\(0.0, 1.0\).*largest <= 1"),
        (lambda: InceptionCrop(area=(0.5, 1.5)), r"area=\(0.5, 1.5\)"),
        (lambda: InceptionCrop(area=(0.6, 0.5)), r"area=\(0.6, 0.5\)"),
        (lambda: InceptionCrop(aspect=(2.0, 1.0)), r"aspect=\(2.0, 1.0\)"),
        (lambda: CentralCrop(resize=0), "resize=0"),
        (lambda: CentralCrop(resize=2.5), "resize=2.5"),
        (lambda: CentralCrop(16)(tf.constant(IMAGE), 24), "image_size=24: make resize at least 24"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
