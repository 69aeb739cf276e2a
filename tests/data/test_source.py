"""Splits, and the datasets that lie in a library or in files."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from keras_vmoe import data
from keras_vmoe.data import idx
from keras_vmoe.data.source import stratified_split


def write_idx(path, array):
    """Writes unsigned bytes as gzipped idx, independently of the reader under test."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 7)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype="u1") % 10)
    return tmp_path


def test_digits_are_split_once_and_for_all():
    source = data.load("digits")
    assert (source.train.num_examples, source.eval.num_examples) == (1437, 360)
    assert source.class_names == tuple("0123456789")
    assert source.image_shape == (8, 8, 1)
    assert source.train.images.dtype == np.uint8
    assert (source.train.images.min(), source.train.images.max()) == (0, 255)
    again = data.load("digits")
    np.testing.assert_array_equal(source.eval.images, again.eval.images)
    assert np.bincount(source.eval.labels).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    # The split may never move, or results stop being comparable.
    held_out = source.eval.images.tobytes() + source.eval.labels.tobytes()
    assert hashlib.sha256(held_out).hexdigest()[:16] == "cfc0bc3fcbee73c0"


@pytest.mark.parametrize("counts", [(5, 5), (10, 3, 2, 40), (7, 11, 13)])
def test_stratified_split_keeps_the_share_of_each_class(counts):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    train, test = stratified_split(labels)
    assert len(test) == int(np.ceil(0.2 * len(labels)))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    held = np.bincount(labels[test], minlength=len(counts))
    assert np.all(np.abs(held - 0.2 * np.asarray(counts)) < 1)


def test_stratified_split_depends_on_its_seed_only():
    labels = np.repeat(np.arange(3), 20)
    first, second, other = (stratified_split(labels, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_idx_files_are_read_back(fashion_folder):
    source = data.load("fashion_mnist", data_dir=str(fashion_folder))
    assert source.name == "fashion_mnist"
    assert source.class_names[9] == "Ankle boot"
    assert (source.train.num_examples, source.eval.num_examples) == (20, 7)
    assert source.image_shape == (28, 28, 1)
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    np.testing.assert_array_equal(source.train.images[..., 0], expected)
    np.testing.assert_array_equal(source.eval.labels, np.arange(7))


def test_fashion_mnist_without_data_dir_reads_debian_package(fashion_folder, monkeypatch):
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", fashion_folder)
    assert data.load("fashion_mnist").train.num_examples == 20


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, truncate, "not a whole gzip file"),
        (IMAGES, flip_a_byte, "not a whole gzip file"),
        (IMAGES, lambda p: p.write_bytes(b"no gzip"), "not a whole gzip file"),
        (IMAGES, lambda p: p.write_bytes(gzip.compress(b"")), "got nothing"),
        (IMAGES, lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\x03\0")), "within its header"),
        (IMAGES, lambda p: write_idx(p, np.zeros(20, np.uint8)), "of 3 axes"),
        (LABELS, lambda p: write_idx(p, np.zeros(19, np.uint8)), "19 labels for 20 images"),
        (LABELS, lambda p: write_idx(p, np.full(20, 10, np.uint8)), "label 10"),
        (
            IMAGES,
            lambda p: p.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 20, 28, 28))),
            "holds 0 values",
        ),
        (IMAGES, lambda p: write_idx(p, np.zeros((20, 9, 9), np.uint8)), "different sizes"),
    ],
)
def test_damaged_idx_files_are_named_in_one_line(fashion_folder, name, damage, message):
    damage(fashion_folder / name)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("fashion_mnist", data_dir=str(fashion_folder))
    assert str(fashion_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_idx_files_are_named(fashion_folder, tmp_path):
    (fashion_folder / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {LABELS}"):
        data.load("fashion_mnist", data_dir=str(fashion_folder))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load("fashion_mnist", data_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["", None, 3, "image_folder:"])
def test_a_name_is_needed(name):
    with pytest.raises(ValueError, match="name="):
        data.load(name)


def test_a_split_that_digits_lack_is_refused():
    with pytest.raises(ValueError, match="eval_split='validation'.*use one of test, train"):
        data.load("digits", eval_split="validation")
