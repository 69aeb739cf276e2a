"""Batches: complete, in range, reproducible."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data

EVERYTHING = data.Augment(shift=2, flip=True, rotation=15.0, zoom=0.2)


def numbered_split(count=10, size=4, channels=1):
    """Images that tell their own index: pixel value = label = index."""
    index = np.arange(count)
    images = np.broadcast_to(index[:, None, None, None], (count, size, size, channels))
    return data.ArraySplit.of(images.astype(np.uint8), index)


def labels(dataset):
    return [batch["label"].tolist() for batch in dataset.as_numpy_iterator()]


def assert_same_batches(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        np.testing.assert_array_equal(one["image"], other["image"])


def test_evaluation_gives_each_example_once_in_order():
    dataset = data.make_dataset(numbered_split(), batch_size=4, image_size=4)
    assert labels(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert labels(dataset) == labels(dataset)
    skipped = data.make_dataset(numbered_split(), batch_size=4, image_size=4, start_step=1, steps=1)
    assert labels(skipped) == [[4, 5, 6, 7]]


def test_images_go_with_their_labels_and_lie_between_minus_one_and_one():
    split = numbered_split(256)
    for training in (False, True):
        dataset = data.make_dataset(split, 64, image_size=4, training=training, steps=4)
        for batch in dataset.as_numpy_iterator():
            assert batch["image"].dtype == np.float32
            assert batch["label"].dtype == np.int32
            expected = batch["label"][:, None, None, None] / 127.5 - 1
            np.testing.assert_allclose(batch["image"], expected + np.zeros((4, 4, 1)), atol=1e-6)
    whole = np.concatenate(
        [batch["image"] for batch in data.make_dataset(split, 100, 4).as_numpy_iterator()]
    )
    assert (whole.min(), whole.max()) == (-1.0, 1.0)


def test_every_epoch_is_another_permutation_without_its_remainder():
    dataset = data.make_dataset(numbered_split(), 4, image_size=4, training=True, steps=40)
    epochs = np.asarray(labels(dataset)).reshape(20, 8)
    for epoch in epochs:
        assert len(set(epoch)) == 8
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(epochs.ravel()) == set(range(10))


@pytest.mark.parametrize("start", [1, 2, 5, 6, 7])
def test_a_resumed_run_continues_with_the_same_batches(start):
    split = data.load("digits").eval
    arguments = {"batch_size": 120, "image_size": 12, "training": True, "augment": EVERYTHING}
    whole = list(data.make_dataset(split, steps=9, seed=3, **arguments))
    rest = data.make_dataset(split, start_step=start, steps=9 - start, seed=3, **arguments)
    assert_same_batches(whole[start:], rest)


def test_the_seed_alone_decides():
    def batches(seed, global_seed):
        tf.random.set_seed(global_seed)
        split = data.load("digits").eval
        arguments = {"image_size": 12, "training": True, "augment": EVERYTHING, "steps": 6}
        return list(data.make_dataset(split, 100, seed=seed, **arguments))

    assert_same_batches(batches(1, 0), batches(1, 5))
    assert not np.array_equal(batches(1, 0)[0]["label"], batches(2, 0)[0]["label"])


def test_augmentation_draws_anew_in_each_epoch_and_for_each_example():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    split = data.ArraySplit.of(np.stack([image] * 6), np.arange(6))
    arguments = {"batch_size": 6, "image_size": 8, "training": True, "steps": 3}
    batches = list(data.make_dataset(split, augment=EVERYTHING, **arguments).as_numpy_iterator())
    images = np.concatenate([batch["image"] for batch in batches])
    assert len(np.unique(images.reshape(18, -1), axis=0)) == 18


def test_augmentation_does_not_depend_on_the_batch_size():
    split = data.load("digits").eval

    def first_epoch(batch_size):
        arguments = {"image_size": 8, "training": True, "augment": EVERYTHING}
        dataset = data.make_dataset(split, batch_size, steps=360 // batch_size, **arguments)
        return np.concatenate([batch["image"] for batch in dataset.as_numpy_iterator()])

    np.testing.assert_allclose(first_epoch(60), first_epoch(90), atol=1e-6)


def test_evaluation_is_never_augmented():
    split = data.load("digits").eval
    plain = data.make_dataset(split, 100, image_size=8)
    assert_same_batches(plain, data.make_dataset(split, 100, image_size=8, augment=EVERYTHING))


def test_images_are_resized_as_keras_does():
    split = data.load("digits").eval
    batch = next(iter(data.make_dataset(split, 8, image_size=20)))
    expected = tf.image.resize(split.images[:8], (20, 20), method="bilinear") / 127.5 - 1
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)


def test_channels_can_be_changed():
    grey = next(iter(data.make_dataset(data.load("digits").eval, 4, 8)))["image"]
    colour = next(iter(data.make_dataset(data.load("digits").eval, 4, 8, channels=3)))["image"]
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=-1))
    split = data.ArraySplit.of(np.full((2, 4, 4, 3), (255, 0, 0), np.uint8), np.zeros(2))
    lightness = next(iter(data.make_dataset(split, 2, 4, channels=1)))["image"]
    np.testing.assert_allclose(lightness, np.full((2, 4, 4, 1), 2 * 0.2989 - 1), atol=1e-3)
    four = data.ArraySplit.of(np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2))
    with pytest.raises(ValueError, match="channels=3: images of 4"):
        data.make_dataset(four, 2, 4, channels=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 0}, "image_size=0"),
        ({"start_step": -1}, "start_step=-1"),
        ({"channels": 2}, "channels=2"),
        ({"batch_size": 11, "training": True}, "batch_size=11 is larger than the 10"),
        ({"crop": data.InceptionCrop()}, "InceptionCrop.* is random: evaluation takes CentralCrop"),
        ({"crop": data.CentralCrop}, "is no crop: make one.*train.crop = @InceptionCrop()"),
        ({"crop": data.CentralCrop(3)}, r"CentralCrop\(resize=3\) cannot give image_size=4"),
        ({"training": True, "augment": data.Flip}, "is no augmentation"),
        ({"training": True, "mix": data.Mixup}, "is no mix"),
        ({"training": True, "mix": data.Mixup()}, "num_classes=None: mixing images"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.make_dataset(
            **{"split": numbered_split(), "batch_size": 2, "image_size": 4} | arguments
        )


def test_evaluation_is_neither_mixed_nor_repeated():
    plain = data.make_dataset(numbered_split(), 4, image_size=4)
    changed = data.make_dataset(
        numbered_split(), 4, image_size=4, mix=data.Mixup(), num_classes=10, repeats=2
    )
    assert labels(plain) == labels(changed)


def test_each_batch_is_mixed_with_shares_of_its_own():
    arguments = {"batch_size": 10, "image_size": 4, "training": True, "seed": 3, "steps": 8}
    plain = list(data.make_dataset(numbered_split(), **arguments).as_numpy_iterator())
    mix = data.Mixup(concentration=1.0)
    mixed = data.make_dataset(numbered_split(), mix=mix, num_classes=10, **arguments)
    largest = []
    for before, after in zip(plain, mixed.as_numpy_iterator(), strict=True):
        share = after["label"].max()
        largest.append(share)
        shares = np.array([share, 1 - share], np.float32)
        one_hot = np.eye(10, dtype=np.float32)[before["label"]]
        expected = data.mix_with_weights(before["image"], one_hot, shares)
        np.testing.assert_allclose(after["image"], expected[0], atol=1e-6)
        np.testing.assert_allclose(after["label"], expected[1], atol=1e-6)
    assert len(set(largest)) == 8


def test_images_are_bytes_until_they_are_scaled():
    rng = np.random.default_rng(0)
    split = data.ArraySplit.of(rng.integers(0, 256, (8, 12, 12, 3), np.uint8), np.arange(8))
    augment = (data.Flip(), data.ColorJitter(), data.RandomErasing(0.5))
    arguments = {"training": True, "steps": 2, "crop": data.InceptionCrop(), "augment": augment}
    for batch in data.make_dataset(split, 8, image_size=8, **arguments).as_numpy_iterator():
        values = (batch["image"] + 1) * 127.5
        np.testing.assert_allclose(values, values.round(), atol=1e-4)
