"""Folders of real image files."""

import os

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.data import folder as folder_module


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_jpeg if path.suffix == ".jpg" else tf.io.encode_png
    path.write_bytes(encode(image).numpy())


def random_image(seed, size=6):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture
def split_folders(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", random_image(10 * label + i))
    return tmp_path


def test_split_folders_round_trip(split_folders):
    source = data.load(f"image_folder:{split_folders}")
    assert source.class_names == ("cat", "dog")
    assert sorted(source.splits) == ["test", "train", "val"]
    assert source.eval_split == "val"
    assert source.image_shape == (6, 6, 3)
    assert isinstance(source.train, data.ArraySplit)
    expected = np.stack([random_image(seed) for seed in (0, 1, 2, 10, 11, 12)])
    np.testing.assert_array_equal(source.train.images, expected)
    np.testing.assert_array_equal(source.train.labels, [0, 0, 0, 1, 1, 1])


def test_split_folders_can_be_chosen(split_folders):
    source = data.load(f"image_folder:{split_folders}", train_split="val", eval_split="test")
    assert (source.train.num_examples, source.eval.num_examples) == (4, 2)
    for arguments in ({"train_split": "learn"}, {"eval_split": "dev"}):
        name = next(iter(arguments.values()))
        with pytest.raises(FileNotFoundError, match=name):
            data.load(f"image_folder:{split_folders}", **arguments)


def test_class_folders_are_split_the_same_way_each_time(tmp_path):
    for name in ("a", "b"):
        for i in range(10):
            write_image(tmp_path / name / f"{i}.jpg", random_image(i))
    sources = [data.load(f"image_folder:{tmp_path}") for _ in range(2)]
    np.testing.assert_array_equal(np.bincount(sources[0].eval.labels), [2, 2])
    np.testing.assert_array_equal(np.bincount(sources[0].train.labels), [8, 8])
    np.testing.assert_array_equal(sources[0].eval.images, sources[1].eval.images)


def test_images_of_different_sizes_stay_in_their_files(tmp_path):
    for i in range(6):
        write_image(tmp_path / "a" / f"{i}.png", random_image(i, size=5 + i))
        write_image(tmp_path / "b" / f"{i}.png", random_image(i, size=5 + i))
    source = data.load(f"image_folder:{tmp_path}")
    assert isinstance(source.train, data.FileSplit)
    assert source.image_shape == (None, None, 3)
    batches = list(data.make_dataset(source.eval, batch_size=2, image_size=4).as_numpy_iterator())
    assert [len(batch["label"]) for batch in batches] == [2, 1]
    first = tf.io.decode_image(tf.io.read_file(source.eval.paths[0]), channels=3)
    expected = tf.image.resize(first, (4, 4)) / 127.5 - 1
    np.testing.assert_allclose(batches[0]["image"][0], expected, atol=1e-6)


def test_unverified_folders_stay_in_their_files_and_give_the_same_batches(split_folders):
    held = data.load(f"image_folder:{split_folders}")
    filed = data.load(f"image_folder:{split_folders}", verify=False)
    assert isinstance(filed.train, data.FileSplit)
    arguments = {"batch_size": 2, "image_size": 8, "training": True, "steps": 7, "seed": 5}
    for one, other in zip(
        data.make_dataset(held.train, augment=data.Augment(shift=1), **arguments),
        data.make_dataset(filed.train, augment=data.Augment(shift=1), **arguments),
        strict=True,
    ):
        np.testing.assert_array_equal(one["label"], other["label"])
        np.testing.assert_allclose(one["image"], other["image"], atol=1e-6)


@pytest.mark.parametrize("limit", [0, 600])
def test_more_than_the_limit_is_not_held_in_memory(split_folders, monkeypatch, limit):
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", limit)
    assert isinstance(data.load(f"image_folder:{split_folders}").train, data.FileSplit)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage", [cut, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"text")]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_images_are_named_in_one_line(split_folders, damage, suffix):
    path = split_folders / "train" / "dog" / f"bad{suffix}"
    write_image(path, random_image(0, size=32))
    damage(path)
    with pytest.raises(ValueError, match="1 of 13 image files cannot be decoded") as caught:
        data.load(f"image_folder:{split_folders}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    unchecked = data.load(f"image_folder:{split_folders}", verify=False)
    data.verify(unchecked.eval)
    with pytest.raises(ValueError, match="1 of 7 image files"):
        data.verify(unchecked.train)


def test_a_file_that_vanishes_is_named(split_folders):
    source = data.load(f"image_folder:{split_folders}", verify=False)
    os.unlink(source.train.paths[2])
    with pytest.raises(ValueError, match="2.png"):
        data.verify(source.train)


def test_folders_that_make_no_sense_are_refused(tmp_path, split_folders):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load(f"image_folder:{tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sub-folders"):
        data.load(f"image_folder:{tmp_path}/empty")
    (split_folders / "train" / "fox").mkdir()
    (split_folders / "train" / "fox" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="fox has no images"):
        data.load(f"image_folder:{split_folders}")
    (split_folders / "train" / "fox" / "a.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"a\.webp cannot be read: convert it"):
        data.load(f"image_folder:{split_folders}")


def test_classes_of_the_splits_must_agree(split_folders):
    write_image(split_folders / "val" / "cow" / "0.png", random_image(0))
    with pytest.raises(ValueError, match="classes that .*train lacks: cow"):
        data.load(f"image_folder:{split_folders}")


def test_a_folder_with_train_alone_is_refused(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.png", random_image(0))
    with pytest.raises(FileNotFoundError, match="no folder validation or val or test"):
        data.load(f"image_folder:{tmp_path}")


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    write_image(tmp_path / "a" / "0.png", random_image(0))
    with pytest.raises(ValueError, match="a has 1 image"):
        data.load(f"image_folder:{tmp_path}")


def test_one_class_is_none_to_tell_apart(tmp_path):
    for i in range(4):
        write_image(tmp_path / "a" / f"{i}.png", random_image(i))
    with pytest.raises(ValueError, match="has one class, 'a': classification needs two or more"):
        data.load(f"image_folder:{tmp_path}")


def damage(folder, *places):
    for place in places:
        cut(folder / place)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
@pytest.mark.parametrize("limit", [0, 1 << 20])  # kept in files, held in memory
def test_damaged_files_are_left_out_up_to_a_limit(split_folders, monkeypatch, limit):
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", limit)
    damage(split_folders, "train/cat/1.png", "val/dog/0.png")
    source = data.load(f"image_folder:{split_folders}", max_corrupt=2)
    assert source.corrupt.count == len(source.skipped) == 2
    for text, place in zip(source.skipped, ("train/cat/1.png", "val/dog/0.png"), strict=True):
        assert text.startswith(f"{split_folders / place} (")
    sizes = {name: split.num_examples for name, split in source.splits.items()}
    assert sizes == {"train": 5, "val": 3, "test": 2}
    expected = np.stack([random_image(seed) for seed in (0, 2, 10, 11, 12)]) / 127.5 - 1
    batch = next(iter(data.make_dataset(source.train, 5, 6)))
    np.testing.assert_array_equal(batch["label"], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)
    data.verify(source.train)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_more_damaged_files_than_the_limit_are_named(split_folders):
    damage(split_folders, "train/cat/1.png", "val/dog/0.png", "test/cat/0.png")
    message = "3 of 12 image files cannot be decoded where max_corrupt=2 may be left out"
    with pytest.raises(ValueError, match=message) as caught:
        data.load(f"image_folder:{split_folders}", max_corrupt=2)
    assert "train/cat/1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_a_split_of_damaged_files_alone_is_refused(split_folders):
    damage(split_folders, "test/cat/0.png", "test/dog/0.png")
    with pytest.raises(ValueError, match="no image file of the split 'test' can be decoded"):
        data.load(f"image_folder:{split_folders}", max_corrupt=2)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_without_verification_damaged_files_are_left_out_as_they_are_met(split_folders):
    damage(split_folders, "val/cat/1.png")
    source = data.load(f"image_folder:{split_folders}", verify=False, max_corrupt=1)
    assert source.skipped == ()
    batch = next(iter(data.make_dataset(source.eval, 4, 6)))
    assert batch["label"].numpy().tolist() == [0, 1, 1]
    assert len(source.skipped) == 1


def test_nothing_is_skipped_where_all_is_well(split_folders):
    assert data.load(f"image_folder:{split_folders}", max_corrupt=3).skipped == ()
    assert data.load("digits").skipped == ()
