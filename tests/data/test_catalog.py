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


@pytest.mark.usefixtures("mocked")
@pytest.mark.parametrize(
    ("name", "classes", "train_split", "eval_split"),
    [
        ("imagenet2012", 1000, "train[:99%]", "validation"),
        ("cifar100", 100, "train[:98%]", "test"),
        ("pets", 37, "train", "test"),
        ("oxford_flowers102", 102, "train", "validation"),
    ],
)
def test_the_datasets_of_the_papers(name, classes, train_split, eval_split):
    source = data.load(name, train_split=train_split, eval_split=eval_split)
    assert source.name == name
    assert source.num_classes == classes
    assert (source.train_split, source.eval_split) == (train_split, eval_split)
    arguments = {"batch_size": 4, "image_size": 16}
    train = data.make_dataset(
        source.train,
        training=True,
        crop=data.InceptionCrop(),
        mix=data.Mixup(),
        num_classes=classes,
        **arguments,
    )
    batch = next(iter(train))
    assert batch["image"].shape == (4, 16, 16, 3)
    assert batch["label"].shape == (4, classes)
    crop = data.CentralCrop(resize=18)
    batch = next(iter(data.make_dataset(source.eval, crop=crop, pad=True, **arguments)))
    assert batch["image"].shape == (4, 16, 16, 3)
    assert batch["mask"].shape == (4,)


# imagenet21k, which the catalogue lacks, prepared by hand: 12 + 5 pictures, some damaged.


def prepare(data_dir, damaged=(), num_files=1, image_shape=(None, None, 3)):
    def examples(count):
        for index in range(count):
            size = 4 if image_shape[0] else 4 + index
            path = data_dir / f"{count}-{index}.png"
            path.parent.mkdir(exist_ok=True)
            image = np.full((size, size, 3), colour(index), np.uint8)
            content = tf.io.encode_png(image).numpy()
            path.write_bytes(content[:-20] if (count, index) in damaged else content)
            yield index, {"image": str(path), "label": index % 2}

    features = {
        "image": tfds.features.Image(shape=image_shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="imagenet21k",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(examples(12)), "test": list(examples(5))},
        data_dir=data_dir,
        download_config=tfds.download.DownloadConfig(num_shards=num_files),
        disable_shuffling=True,
    )
    return builder.data_dir


def test_a_dataset_that_the_catalogue_lacks_is_read_where_it_was_prepared(tmp_path):
    folder = prepare(tmp_path)
    for data_dir in (tmp_path, folder):
        source = data.load("imagenet21k", data_dir=str(data_dir))
        assert source.class_names == ("even", "odd")
        batches = data.make_dataset(source.train, 5, 4).as_numpy_iterator()
        assert sorted(picture_indices(batches)) == list(range(12))
    with pytest.raises(ValueError, match="holds 'imagenet21k', not 'cifar10'"):
        data.load("cifar10", data_dir=str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "not in the catalogue.*data_dir does not say.*store_as_tfds_dataset.*image_folder"),
        ({"data_dir": "/no/such/folder"}, "not in the catalogue.*/no/such/folder holds none"),
    ],
)
def test_imagenet21k_has_to_be_brought_along(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load("imagenet21k", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_files", "num_shards"), [(4, 2), (4, 3), (1, 2)])
def test_hosts_read_files_of_their_own(tmp_path, num_files, num_shards):
    prepare(tmp_path, num_files=num_files)
    split = data.load("imagenet21k", data_dir=str(tmp_path)).train
    hosts = []
    for index in range(num_shards):
        part = split.shard(num_shards, index)
        batches = data.make_dataset(part, 4, 4).as_numpy_iterator()
        hosts.append(picture_indices(batches))
        assert len(hosts[-1]) == part.num_examples
    assert sorted(index for host in hosts for index in host) == list(range(12))
    if num_files > 1:  # three pictures lie in each file
        assert all(len(host) % 3 == 0 for host in hosts)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
@pytest.mark.parametrize("image_shape", [(None, None, 3), (4, 4, 3)])
def test_damaged_pictures_are_left_out_up_to_a_limit(tmp_path, image_shape):
    prepare(tmp_path, damaged=((12, 3), (5, 0)), image_shape=image_shape)
    arguments = {"name": "imagenet21k", "data_dir": str(tmp_path)}
    source = data.load(max_corrupt=2, **arguments)
    assert isinstance(source.train, data.ArraySplit) == (image_shape[0] is not None)
    for split, left_out, count in ((source.train, 3, 12), (source.eval, 0, 5)):
        found = picture_indices(data.make_dataset(split, 4, 4).as_numpy_iterator())
        assert found == [index for index in range(count) if index != left_out]
    places = [text.split(" (")[0] for text in source.skipped]
    assert sorted(places) == ["image 0 of imagenet21k test", "image 3 of imagenet21k train"]


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_pictures_in_memory_that_are_damaged_are_an_error_at_once(tmp_path):
    prepare(tmp_path, damaged=((12, 3), (12, 4)), image_shape=(4, 4, 3))
    arguments = {"name": "imagenet21k", "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="imagenet21k train: an image cannot be decoded"):
        data.load(**arguments)
    with pytest.raises(ValueError, match="2 images cannot be decoded where max_corrupt=1"):
        data.load(max_corrupt=1, **arguments)
