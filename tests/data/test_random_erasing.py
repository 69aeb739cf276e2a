"""Random erasing against an explicit rectangle."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import RandomErasing

HEIGHT, WIDTH = 20, 30
IMAGE = np.random.default_rng(0).integers(1, 200, (HEIGHT, WIDTH, 3), np.uint8)


def apply(erasing, draws, image=IMAGE):
    found = erasing(tf.constant(image)[None], tf.constant([draws], tf.float32))
    assert found.dtype == image.dtype
    return found.numpy()[0]


def oracle(erasing, draws):
    area = erasing.area[0] + draws[1] * (erasing.area[1] - erasing.area[0])
    low, high = np.log(erasing.aspect)
    aspect = np.exp(low + draws[2] * (high - low))
    tall = min(max(round(np.sqrt(area * HEIGHT * WIDTH * aspect)), 1), HEIGHT)
    wide = min(max(round(np.sqrt(area * HEIGHT * WIDTH / aspect)), 1), WIDTH)
    y, x = int(draws[3] * (HEIGHT - tall + 1)), int(draws[4] * (WIDTH - wide + 1))
    image = IMAGE.copy()
    image[y : y + tall, x : x + wide] = 0
    return image


@pytest.mark.parametrize("seed", range(8))
def test_a_rectangle_is_filled(seed):
    erasing = RandomErasing(probability=1.0, fill=0)
    draws = np.random.default_rng(seed).random(7).astype(np.float32)
    np.testing.assert_array_equal(apply(erasing, draws), oracle(erasing, draws))


def test_the_first_draw_decides_whether():
    erasing = RandomErasing(probability=0.25, fill=0)
    draws = [0.24, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert np.sum(apply(erasing, draws) == 0) > 0
    np.testing.assert_array_equal(apply(erasing, [0.26, *draws[1:]]), IMAGE)


def test_a_rectangle_stays_within_the_image():
    erasing = RandomErasing(1.0, area=(0.9, 1.0), aspect=(0.1, 10.0), fill=0)
    for aspect in (0.0, 0.999):
        erased = np.argwhere(apply(erasing, [0, 0.9, aspect, 0.999, 0.999, 0, 0]) == 0)
        assert erased.max(0).tolist() == [HEIGHT - 1, WIDTH - 1, 2]
    whole = RandomErasing(1.0, area=(1.0, 1.0), aspect=(HEIGHT / WIDTH, HEIGHT / WIDTH), fill=7)
    np.testing.assert_array_equal(apply(whole, [0.5] * 7), np.full_like(IMAGE, 7))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_that_of_natural_images_and_seeded_by_its_draws(dtype):
    erasing = RandomErasing(1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))
    image = np.zeros((60, 60, 3), dtype)
    draws = [0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.2]
    noise = apply(erasing, draws, image)
    assert abs(noise.mean() - 0.449 * 255) < 2
    assert abs(noise.std() / (0.226 * 255) - 1) < 0.05
    np.testing.assert_array_equal(noise, apply(erasing, draws, image))
    assert not np.array_equal(noise, apply(erasing, [*draws[:6], 0.3], image))


def test_images_of_a_batch_are_erased_apart():
    erasing = RandomErasing(0.5)
    images = tf.constant(np.stack([IMAGE] * 4))
    draws = tf.constant(np.random.default_rng(1).random((4, 7)), tf.float32)
    together = erasing(images, draws).numpy()
    alone = [erasing(images[i : i + 1], draws[i : i + 1]).numpy()[0] for i in range(4)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "probability=1.5"),
        ({"area": (0.0, 0.5)}, r"area=\(0.0, 0.5\).*largest <= 1"),
        ({"aspect": (3.0, 0.3)}, r"aspect=\(3.0, 0.3\)"),
        ({"fill": "black"}, "fill='black': expected 'noise' or a number"),
        ({"fill": 256}, "fill=256"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomErasing(**arguments)
