"""Scenes of scans: what captions say is there, and training never shows what is held out."""

import re

import numpy as np
import pytest

from keras_vmoe import data, text
from keras_vmoe.data import idx, scenes


@pytest.fixture(scope="module")
def source():
    return data.load_pairs("digit_grids")


def captions(split):
    found = list(data.read_captions(split))
    assert all(len(several) == 1 for several in found)
    return [several[0] for several in found]


def grids(names):
    return {name for name in names if name.startswith(scenes.CELLS)}


def quarters(image):
    cut = scenes.SIDE // 2
    return [image[y : y + cut, x : x + cut, 0] for y in (0, cut) for x in (0, cut)]


def assert_one_token_a_word(tokenizer, names):
    assert tokenizer.counts(names) == text.TextCounts(texts=len(names))
    num_tokens = (tokenizer(names).numpy() != tokenizer.eos_id).sum(axis=1)
    np.testing.assert_array_equal(num_tokens, [len(name.split()) for name in names])


def test_sizes(source):
    assert source.image_shape == source.train.images.shape[1:] == (32, 32, 1)
    assert source.train.images.dtype == np.uint8
    assert (source.train.num_examples, source.eval.num_examples) == (20_000, 1_000)
    names = captions(source.train)
    assert sum(name.startswith(scenes.CELLS) for name in names) == 15_000
    # Both kinds come everywhere.
    assert 1_000 < sum(name.startswith(scenes.CELLS) for name in names[:2_000]) < 1_900


def test_scenes_are_the_same_each_time(source):
    again = scenes.load_digit_grids()
    for name, split in source.splits.items():
        np.testing.assert_array_equal(split.images, again.splits[name].images)
        np.testing.assert_array_equal(split.labels, again.splits[name].labels)
    # Golden: the first held-out scene.
    assert captions(source.eval)[0] == "top left five top right zero bottom right three"


def test_held_out_pairings_are_distinct_and_never_trained_on(source):
    held_out = captions(source.eval)
    assert len(set(held_out)) == len(held_out) == len(grids(held_out))
    assert not set(held_out) & set(captions(source.train))


def test_every_digit_lies_in_every_cell(source):
    for split in source.splits.values():
        found = set(re.findall("((?:top|bottom) (?:left|right) [a-z]+)", " ".join(captions(split))))
        assert found == {f"{c} {word}" for c in scenes.CELLS for word in data.DIGIT_WORDS}


def test_a_cell_is_empty_where_the_caption_does_not_name_it(source):
    for split in source.splits.values():
        for image, caption in list(zip(split.images, captions(split), strict=True))[:300]:
            if caption.startswith(scenes.CELLS):
                named = [cell in caption for cell in scenes.CELLS]
                assert [quarter.max() > 100 for quarter in quarters(image)] == named
                assert sum(named) >= 2


def test_scans_of_the_two_splits_are_apart(monkeypatch):
    """Scans that tell their split and their class by one shade each."""

    def shaded(first):
        labels = np.repeat(np.arange(10), 3)
        shades = (first + 5 * labels).astype(np.uint8)
        images = np.broadcast_to(shades[:, None, None, None], (30, 8, 8, 1))
        return data.ArraySplit.of(images, labels)

    splits = {"train": shaded(100), "test": shaded(180)}
    names = tuple("0123456789")
    made = data.ImageSource("shades", names, (8, 8, 1), splits)
    monkeypatch.setattr(scenes, "NUM_TRAIN_GRIDS", 300)
    monkeypatch.setattr(scenes, "NUM_TRAIN_SINGLES", 100)
    monkeypatch.setattr(scenes, "NUM_TEST", 50)
    composed = scenes.compose(made, "shades", data.DIGIT_WORDS, "digit")
    for name, first in (("train", 100), ("test", 180)):
        split = composed.splits[name]
        for image, caption in zip(split.images, captions(split), strict=True):
            is_grid = caption.startswith(scenes.CELLS)
            parts = quarters(image) if is_grid else [image]
            labels = [(int(part.max()) - first) // 5 for part in parts if part.max()]
            words = [word for word in caption.split() if word in data.DIGIT_WORDS]
            assert [data.DIGIT_WORDS[label] for label in labels] == words
            if not is_grid:
                assert (image > 0).mean() >= (24 / 32) ** 2


def test_every_word_is_one_token_and_captions_fit(source):
    names = captions(source.train)
    tokenizer = text.train_tokenizer(names, vocabulary_size=128, length=16)
    assert_one_token_a_word(tokenizer, names)
    assert_one_token_a_word(tokenizer, captions(source.eval))


@pytest.fixture
def garment_files(tmp_path):
    """Fashion-MNIST in miniature: three plain garments of each class."""
    import gzip

    for prefix in ("train", "t10k"):
        labels = np.repeat(np.arange(10, dtype=np.uint8), 3)
        images = np.full((30, 28, 28), 200, np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
            content = gzip.compress(header + values.tobytes())
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)
    return tmp_path


def test_garments(garment_files):
    source = data.load_pairs("garment_grids", data_dir=str(garment_files))
    names = captions(source.train)
    assert (source.train.num_examples, source.eval.num_examples) == (20_000, 1_000)
    assert not set(captions(source.eval)) & set(names)
    words = {word for name in names for word in name.split()}
    assert set(data.GARMENT_WORDS) <= words
    tokenizer = text.train_tokenizer(names, vocabulary_size=128)
    assert_one_token_a_word(tokenizer, names)


def test_garments_that_are_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="made of Fashion-MNIST.*dataset-fashion-mnist"):
        data.load_pairs("garment_grids")
    with pytest.raises(FileNotFoundError, match="lacks train-images"):
        data.load_pairs("garment_grids", data_dir=str(tmp_path))
