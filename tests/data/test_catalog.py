"""TensorFlow Datasets, mocked: no network."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_vmoe import data
from keras_vmoe.data import catalog, idx


def colour(index):
    return (20 * index, 0, 255 - 20 * index)


class KerasVmoeTinyPictures(tfds.core.GeneratorBasedBuilder):
    """A real dataset that is prepared without network: 12 + 5 plain pictures."""

    VERSION = tfds.core.Version("1.0.0")
    IMAGE_SHAPE = (None, None, 3)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.IMAGE_SHAPE),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for index in range(count):
            size = 4 if self.IMAGE_SHAPE[0] else 4 + index
            image = np.full((size, size, 3), colour(index), np.uint8)
            yield index, {"image": image, "label": index % 2}


class KerasVmoeTrainOnly(KerasVmoeTinyPictures):
    """The same with one split, all pictures of one size."""

    IMAGE_SHAPE = (4, 4, 3)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12)}


def picture_indices(dataset):
    """Reads the pictures' numbers back from their colours."""
    red = [((batch["image"][:, 0, 0, 0] + 1) * 127.5 / 20).round() for batch in dataset]
    return np.concatenate(red).astype(int).tolist()


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


def test_a_prepared_dataset_is_streamed(tmp_path):
    source = data.load("keras_vmoe_tiny_pictures", data_dir=str(tmp_path))
    assert source.class_names == ("even", "odd")
    assert isinstance(source.train, data.StreamSplit)
    assert (source.train.num_examples, source.eval.num_examples) == (12, 5)
    ordered = data.make_dataset(source.eval, batch_size=2, image_size=4).as_numpy_iterator()
    batches = list(ordered)
    assert sorted(picture_indices(batches)) == list(range(5))
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, np.asarray(picture_indices(batches)) % 2)
    training = data.make_dataset(source.train, batch_size=6, image_size=4, training=True, steps=4)
    indices = picture_indices(training.as_numpy_iterator())
    assert sorted(indices[:12]) == sorted(indices[12:]) == list(range(12))
    assert indices[:12] != indices[12:]


def test_a_prepared_dataset_can_be_cut_in_two(tmp_path):
    arguments = {"name": "keras_vmoe_train_only", "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"no held-out split, only train: give .*train\[80%:\]"):
        data.load(**arguments)
    source = data.load(train_split="train[:75%]", eval_split="train[75%:]", **arguments)
    assert isinstance(source.train, data.ArraySplit)
    assert (source.train.num_examples, source.eval.num_examples) == (9, 3)
    both = [data.make_dataset(split, 12, 4) for split in (source.train, source.eval)]
    indices = [index for part in both for index in picture_indices(part.as_numpy_iterator())]
    assert sorted(indices) == list(range(12))
    for split in ("nosuch", "train[:9"):
        with pytest.raises(ValueError, match="'keras_vmoe_train_only'") as caught:
            data.load(train_split=split, eval_split="train", **arguments)
        assert split in str(caught.value)
        assert "\n" not in str(caught.value)


def test_more_than_the_limit_is_streamed(tmp_path, monkeypatch):
    arguments = {"data_dir": str(tmp_path), "eval_split": "train"}
    held = data.load("keras_vmoe_train_only", **arguments).train
    monkeypatch.setattr(catalog, "MEMORY_LIMIT", 100)
    streamed = data.load("keras_vmoe_train_only", **arguments).train
    assert isinstance(streamed, data.StreamSplit)
    for one, other in zip(
        data.make_dataset(held, 5, 4), data.make_dataset(streamed, 5, 4), strict=True
    ):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_a_dataset_that_cannot_be_fetched(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match=r"'cifar10' could not be prepared in .*: no route to host$"):
        data.load("cifar10", data_dir=str(tmp_path))
