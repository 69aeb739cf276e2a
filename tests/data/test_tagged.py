"""Tags with digits on scans: what a class means, and what the splits do not share."""

import numpy as np
import pytest

from keras_vmoe import data
from keras_vmoe.data import idx, tagged


@pytest.fixture(scope="module")
def source():
    return data.load("digit_pairs")


def shaded(first, num, classes=10):
    """Scans that tell their split and their class by one shade each."""

    def split(shade):
        labels = np.repeat(np.arange(classes), num)
        shades = (shade + labels).astype(np.uint8)
        return data.ArraySplit.of(
            np.broadcast_to(shades[:, None, None, None], (len(labels), 8, 8, 1)), labels
        )

    names = tuple(map(str, range(classes)))
    splits = {"train": split(first), "test": split(first + 50)}
    return data.ImageSource("shades", names, (8, 8, 1), splits)


def test_sizes(source):
    assert source.image_shape == source.train.images.shape[1:] == (32, 32, 1)
    assert source.train.images.dtype == np.uint8
    counts = {name: split.num_examples for name, split in source.splits.items()}
    assert counts == {"train": 20_000, "validation": 4_000, "test": 4_000}
    assert (source.train_split, source.eval_split) == ("train", "test")
    assert source.num_classes == 100
    assert source.class_names[37] == "3 with 7"
    for split in source.splits.values():
        assert np.bincount(split.labels, minlength=100).min() >= 20


def test_pictures_are_the_same_each_time(source):
    again = tagged.load_digit_pairs()
    for name, split in source.splits.items():
        np.testing.assert_array_equal(split.images, again.splits[name].images)
        np.testing.assert_array_equal(split.labels, again.splits[name].labels)
    # Golden: what the first pictures to train on show.
    assert source.train.labels[:8].tolist() == [44, 78, 15, 12, 89, 66, 43, 92]


def test_the_split_for_super_classes_can_be_measured_on():
    found = data.load("digit_pairs", eval_split="validation")
    assert found.eval is found.splits["validation"]
    with pytest.raises(ValueError, match="eval_split='val'.*test, train, validation"):
        data.load("digit_pairs", eval_split="val")


def test_a_class_is_what_carries_the_tag_and_what_is_on_it():
    counts = {"train": 300, "validation": 50, "test": None}
    made = tagged.compose(shaded(20, 6), shaded(120, 5), "shades", tuple("abcdefghij"), counts)
    assert [split.num_examples for split in made.splits.values()] == [300, 50, 60]
    assert made.class_names[37] == "d with 7"
    for name, shift in (("train", 0), ("validation", 0), ("test", 50)):
        split = made.splits[name]
        for image, label in zip(split.images[..., 0], split.labels, strict=True):
            tag, rest = image[16:, 16:], image.copy()
            rest[16:, 16:] = 0
            assert set(np.unique(tag)) <= {0, 120 + shift + label % 10}
            assert 14**2 <= (tag > 0).sum() <= 16**2
            assert set(np.unique(rest)) == {0, 20 + shift + label // 10}
            # What the tag covers is 10 to 16 pixels wide.
            assert 26**2 - 16**2 <= (rest > 0).sum() <= 30**2 - 14**2


def test_the_splits_share_no_scan():
    """Each scan has a shade of its own."""

    def of(first):
        labels = np.tile(np.arange(2), 30)
        images = np.broadcast_to(np.arange(60)[:, None, None, None] + first, (60, 8, 8, 1))
        split = data.ArraySplit.of(images.astype(np.uint8), labels)
        test = data.ArraySplit.of((images + 60).astype(np.uint8), labels)
        return data.ImageSource("x", ("0", "1"), (8, 8, 1), {"train": split, "test": test})

    counts = {"train": None, "validation": None, "test": None}
    made = tagged.compose(of(1), of(130), "x", ("a", "b"), counts)
    assert [split.num_examples for split in made.splits.values()] == [50, 10, 60]
    shades = [set(np.unique(split.images)) - {0} for split in made.splits.values()]
    assert not shades[0] & shades[1] | shades[0] & shades[2] | shades[1] & shades[2]
    # Each carrier comes once.
    for found, split in zip(shades, made.splits.values(), strict=True):
        assert len({shade for shade in found if shade <= 120}) == split.num_examples


def test_garments_with_digits(monkeypatch):
    found = tagged.load_garment_digits(shaded(20, 6))
    assert found.class_names[::23] == (
        "tee with 0", "pullover with 3", "coat with 6", "shirt with 9", "boot with 2"
    )  # fmt: skip
    assert [split.num_examples for split in found.splits.values()] == [50, 10, 60]
    monkeypatch.setattr(idx, "load_idx_folder", lambda folder: shaded(20, 12))
    monkeypatch.setattr(idx, "file_names", lambda: ())
    assert data.load("garment_digits").train.num_examples == 100


def test_garments_that_are_not_at_hand(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        data.load("garment_digits", data_dir=str(tmp_path / "nowhere"))
