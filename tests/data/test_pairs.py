"""Batches of images and tokens: which caption, when, and on which host."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data, text
from tests.data import splits


def captions_of(count):
    """Image i has i % 3 + 1 captions, each of which tells i and its own number."""
    return [tuple(f"n{i} k{k}" for k in range(i % 3 + 1)) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    words = [f"n{i} k{k}" for i in range(12) for k in range(3)]
    return text.train_tokenizer(words, 100, length=6)


def pairs(kind, folder, count=12):
    """Images that tell their number, of 4x4, with captions."""
    split = splits.make_split(kind, splits.numbered_images(count), folder)
    labels = np.array(["\n".join(several) for several in captions_of(count)], object)
    if not isinstance(split, data.StreamSplit):
        return dataclasses.replace(split, labels=labels)

    def open_part(part):
        table = tf.constant(labels)
        return split.open(part).map(lambda one: one | {"label": tf.gather(table, one["label"])})

    return dataclasses.replace(split, open=open_part)


def read(batches, tokenizer):
    """Returns [(image's number, caption)] of each batch."""
    found = []
    for batch in batches.as_numpy_iterator():
        shades = ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().astype(int)
        pieces = [tokenizer._processor.decode(row.tolist()) for row in batch["tokens"]]
        found.append(list(zip(shades.tolist(), pieces, strict=True)))
    return found


@pytest.mark.parametrize("kind", ["array", "file", "stream", "parts"])
def test_the_first_caption_outside_of_training(tokenizer, tmp_path, kind):
    split = pairs(kind, tmp_path)
    batches = data.make_pairs(split, tokenizer, 5, 4)
    assert set(batches.element_spec) == {"image", "tokens"}
    rows = read(batches, tokenizer)
    assert [len(row) for row in rows] == [5, 5, 2]
    flat = [pair for row in rows for pair in row]
    assert sorted(flat) == [(i, f"n{i} k0") for i in range(12)]
    captions = list(data.read_captions(split))
    assert [several[0] for several in captions] == [caption for _, caption in flat]
    assert sorted(captions) == sorted(captions_of(12))


@pytest.mark.parametrize("kind", ["array", "file", "stream", "parts"])
def test_training_draws_captions_that_a_resumed_run_sees_too(tokenizer, tmp_path, kind):
    split = pairs(kind, tmp_path)
    arguments = {"batch_size": 5, "image_size": 4, "training": True, "seed": 3}
    whole = read(data.make_pairs(split, tokenizer, steps=40, **arguments), tokenizer)
    rest = read(data.make_pairs(split, tokenizer, start_step=33, steps=7, **arguments), tokenizer)
    assert whole[33:] == rest
    flat = [pair for batch in whole for pair in batch]
    for number in range(12):
        found = {caption for i, caption in flat if i == number}
        assert found == set(captions_of(12)[number])
    # Of three captions each comes about as often.
    drawn = [caption[-1] for i, caption in flat if i % 3 == 2]
    assert all(drawn.count(k) > len(drawn) / 6 for k in "012")
    other = read(data.make_pairs(split, tokenizer, steps=3, **(arguments | {"seed": 4})), tokenizer)
    assert other != whole[:3]


def test_the_global_seed_draws_no_captions(tokenizer, tmp_path):
    split, found = pairs("array", tmp_path), []
    for seed in (0, 7):
        tf.random.set_seed(seed)
        batches = data.make_pairs(split, tokenizer, 6, 4, training=True, steps=4)
        found.append(read(batches, tokenizer))
    assert found[0] == found[1]


@pytest.mark.parametrize("training", [True, False])
def test_hosts_share_the_batches_of_one(tokenizer, tmp_path, training):
    split = pairs("array", tmp_path)
    arguments = {"batch_size": 8, "image_size": 4, "training": training, "pad": not training}
    whole = data.make_pairs(split, tokenizer, steps=2, **arguments)
    hosts = [
        data.make_pairs(split, tokenizer, steps=2, num_shards=2, shard_index=i, **arguments)
        for i in range(2)
    ]
    for one, *parts in zip(whole, *hosts, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, tf.concat([part[name] for part in parts], 0))


def test_padded_pairs_are_rows_of_eos(tokenizer, tmp_path):
    batches = list(data.make_pairs(pairs("array", tmp_path), tokenizer, 8, 4, pad=True))
    assert batches[1]["mask"].numpy().tolist() == [True] * 4 + [False] * 4
    assert (batches[1]["tokens"].numpy()[4:] == tokenizer.eos_id).all()
    assert (batches[1]["tokens"].numpy()[:4, 0] != tokenizer.eos_id).all()
    assert not batches[1]["image"].numpy()[4:].any()
    assert batches[0]["tokens"].shape == (8, 6)


def test_a_cached_stream_and_augmentation(tokenizer, tmp_path):
    split = pairs("stream", tmp_path)
    arguments = {"batch_size": 4, "image_size": 4, "training": True, "steps": 4, "channels": 3}
    arguments |= {"augment": data.Augment(shift=1)}
    plain, cached = (
        data.make_pairs(split, tokenizer, cache=cache, **arguments) for cache in (False, True)
    )
    splits.assert_same_batches(plain.as_numpy_iterator(), cached.as_numpy_iterator())
    assert next(iter(plain))["image"].shape == (4, 4, 4, 3)


def test_the_next_whole_pair_takes_the_place_of_a_damaged_one(tokenizer, tmp_path):
    split = pairs("file", tmp_path)
    (tmp_path / "3.png").write_bytes(b"text")
    split = dataclasses.replace(split, corrupt=data.CorruptImages(1))
    batches = data.make_pairs(split, tokenizer, 6, 4, training=True, steps=4)
    with pytest.warns(UserWarning, match="cannot be decoded"):
        found = read(batches, tokenizer)
    rows = [pair for batch in found for pair in batch]
    assert len(rows) == 24
    assert all(caption.startswith(f"n{number} ") for number, caption in rows)
    assert 3 not in {number for number, _ in rows}


def test_captions_are_cleaned_and_must_not_be_empty():
    images = splits.numbered_images(2)
    split = data.pair_arrays(images, [("a\ncat ", "", "  "), ("a  dog",)])
    assert list(data.read_captions(split)) == [("a cat",), ("a dog",)]
    with pytest.raises(ValueError, match="image 1 has no caption"):
        data.pair_arrays(images, [("a cat",), (" ", "")])
    with pytest.raises(ValueError, match="captions: 1 for 2 images"):
        data.pair_arrays(images, [("a cat",)])


def test_labelled_images_are_no_pairs(tokenizer, tmp_path):
    images = splits.numbered_images(3)
    for kind in ("array", "file", "stream"):
        split = splits.make_split(kind, images, tmp_path)
        with pytest.raises(ValueError, match="class ids, not captions.*'labelled:NAME'"):
            data.make_pairs(split, tokenizer, 2, 4)
        with pytest.raises(ValueError, match="class ids, not captions"):
            next(data.read_captions(split))


def test_batches_that_cannot_be_made(tokenizer, tmp_path):
    split = pairs("array", tmp_path)
    with pytest.raises(ValueError, match="batch_size=13 is larger than the 12 training"):
        data.make_pairs(split, tokenizer, 13, 4, training=True)
    with pytest.raises(ValueError, match="batch_size=0"):
        data.make_pairs(split, tokenizer, 0, 4)
    with pytest.raises(ValueError, match="num_shards=0"):
        data.make_pairs(split, tokenizer, 4, 4, num_shards=0)
