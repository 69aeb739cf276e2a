"""TensorFlow Datasets, mocked: no network."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_vmoe import data
from keras_vmoe.data import idx


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=20):
        yield


@pytest.mark.usefixtures("mocked")
def test_small_datasets_are_held_in_memory():
    source = data.load("cifar10")
    assert source.image_shape == (32, 32, 3)
    assert source.num_classes == 10
    assert isinstance(source.train, data.ArraySplit)
    assert source.train.num_examples == source.eval.num_examples == 20
    assert source.train.images.shape == (20, 32, 32, 3)
    assert (source.train_split, source.eval_split) == ("train", "test")


@pytest.mark.usefixtures("mocked")
def test_fashion_mnist_comes_from_the_catalogue_where_no_files_lie(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path)
    source = data.load("fashion_mnist")
    assert source.image_shape == (28, 28, 1)
    assert source.train.num_examples == 20
    (tmp_path / "fashion_mnist").mkdir()
    assert data.load("fashion_mnist", data_dir=str(tmp_path)).train.num_examples == 20


@pytest.mark.usefixtures("mocked")
def test_images_of_different_sizes_are_streamed():
    source = data.load("imagenet2012", train_split="validation", eval_split="validation")
    split = source.train
    assert isinstance(split, data.StreamSplit)
    assert source.num_classes == 1000
    assert source.image_shape == (None, None, 3)
    arguments = {"batch_size": 6, "image_size": 16, "augment": data.Augment(shift=2), "seed": 1}
    whole = list(data.make_dataset(split, training=True, steps=8, **arguments))
    rest = list(data.make_dataset(split, training=True, start_step=4, steps=4, **arguments))
    for one, other in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])
    epochs = [np.concatenate([batch["label"] for batch in whole[i : i + 3]]) for i in (0, 3)]
    assert not np.array_equal(*epochs)
    ordered = list(data.make_dataset(split, batch_size=6, image_size=16))
    assert [len(batch["label"]) for batch in ordered] == [6, 6, 6, 2]
    labels = np.concatenate([batch["label"] for batch in ordered]).tolist()
    for epoch in epochs:
        assert len(epoch) == 18
        assert all(np.sum(epoch == label) <= labels.count(label) for label in epoch)


@pytest.mark.usefixtures("mocked")
def test_the_global_seed_does_not_change_a_stream():
    split = data.load("imagenet2012", eval_split="validation").train
    labels = []
    for seed in (0, 7):
        tf.random.set_seed(seed)
        batches = data.make_dataset(split, batch_size=20, image_size=8, training=True, steps=2)
        labels.append(np.concatenate([batch["label"] for batch in batches]))
    np.testing.assert_array_equal(*labels)


@pytest.mark.usefixtures("mocked")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "'cifar11' is not known: .*'digits'.*Did you mean .*cifar10"),
        ("coco", "needs features 'image' and 'label', it has image"),
        ("cifar10:9.9.9", "version 9.9.9"),
        ("no such name!", "'no such name!'"),
    ],
)
def test_names_that_cannot_be_used(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)


def test_a_dataset_that_cannot_be_fetched(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match=r"'cifar10' could not be prepared in .*: no route to host$"):
        data.load("cifar10", data_dir=str(tmp_path))
