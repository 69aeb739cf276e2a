"""Decoding, cropping on the way, caching, and images that cannot be decoded."""

import os

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.data import reading
from tests.data.splits import (
    assert_same_batches,
    encoded,
    file_split,
    labels,
    noise_images,
    numbered_images,
    stream_split,
)

PHOTO = np.clip(
    np.add.outer(np.arange(45), np.arange(60))[..., None] * (1, 2, 3) % 256, 0, 255
).astype(np.uint8)


def encode_jpeg(image):
    # Colour at half the resolution is decoded otherwise where a window ends.
    return tf.io.encode_jpeg(image, chroma_downsampling=False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encode", [encode_jpeg, tf.io.encode_png])
def test_a_crop_is_the_same_however_much_is_decoded(encode, channels):
    content = encode(PHOTO).numpy()
    split = stream_split(np.zeros((6, 1, 1, channels), np.uint8), contents=[content] * 6)
    crop = data.InceptionCrop(area=(0.1, 0.6))
    arguments = {"batch_size": 6, "image_size": 16, "training": True, "crop": crop, "steps": 1}
    read = next(iter(data.make_dataset(split, **arguments)))["image"].numpy()
    image = tf.io.decode_image(content, channels=channels).numpy()
    held = data.ArraySplit.of(np.stack([image] * 6), np.arange(6))
    expected = next(iter(data.make_dataset(held, **arguments)))["image"].numpy()
    np.testing.assert_array_equal(read, expected)
    assert len(np.unique(read.reshape(6, -1), axis=0)) == 6


def test_evaluation_crops_the_middle():
    split = stream_split(noise_images(3, 12), contents=encoded(noise_images(3, 12)))
    crop = data.CentralCrop(resize=12)
    batch = next(iter(data.make_dataset(split, 3, 8, crop=crop)))
    expected = noise_images(3, 12)[:, 2:10, 2:10] / 127.5 - 1
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)


def test_a_cached_stream_is_read_once():
    opened = []
    split = stream_split(numbered_images(20))
    inner = split.open

    def count_opened(part):
        opened.append(1)
        return inner(part)

    split = data.StreamSplit(20, count_opened, 1)
    arguments = {"batch_size": 8, "image_size": 4, "training": True, "repeats": 2, "steps": 9}
    plain = list(data.make_dataset(split, **arguments).as_numpy_iterator())
    opened.clear()
    cached = data.make_dataset(split, cache=True, **arguments)
    assert len(opened) == 1
    assert_same_batches(plain, cached.as_numpy_iterator())
    assert len(opened) == 1


@pytest.mark.parametrize("parts", [None, (8, 0, 7, 5)])
def test_a_cached_stream_of_several_hosts_holds_the_part_of_one(parts):
    split = stream_split(numbered_images(20), part_sizes=parts)
    for arguments in ({"training": True, "steps": 5}, {"pad": True}):
        hosts = {"num_shards": 2, "shard_index": 1, **arguments}
        plain = data.make_dataset(split, 8, 4, **hosts)
        cached = data.make_dataset(split, 8, 4, cache=True, **hosts)
        assert_same_batches(plain.as_numpy_iterator(), cached.as_numpy_iterator())


def test_cached_files_need_their_folder_no_more(tmp_path):
    split = file_split(noise_images(10), tmp_path)
    arguments = {"batch_size": 4, "image_size": 8, "training": True, "steps": 5}
    plain = list(data.make_dataset(split, **arguments).as_numpy_iterator())
    cached = data.make_dataset(split, cache=True, **arguments)
    for path in split.paths:
        os.unlink(path)
    assert_same_batches(plain, cached.as_numpy_iterator())


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_more_than_the_memory_is_not_cached(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MEMORY_SHARE", 0.0)
    images = noise_images(2)
    split = file_split(images, tmp_path) if kind == "file" else stream_split(images)
    with pytest.raises(ValueError, match="cache=True: the encoded images.*leave cache out"):
        data.make_dataset(split, 2, 8, cache=True)


# Images that cannot be decoded.


def damaged_stream(bad, limit, count=16):
    contents = encoded(numbered_images(count))
    for place in bad:
        contents[place] = contents[place][:-20]
    corrupt = data.CorruptImages(limit)
    images = numbered_images(count)
    return stream_split(images, contents, corrupt=corrupt, name="test set")


def values(batch):
    return ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().astype(int).tolist()


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_in_training_the_next_whole_image_takes_the_place():
    split = damaged_stream((3, 4, 9), limit=3)
    arguments = {"batch_size": 8, "image_size": 4, "training": True}
    good = labels(data.make_dataset(stream_split(numbered_images(16)), steps=6, **arguments))
    found = list(data.make_dataset(split, steps=6, **arguments).as_numpy_iterator())
    for batch, order in zip(found, good, strict=True):
        expected = []
        for place in range(8):
            while order[place] in (3, 4, 9):
                place = (place + 1) % 8
            expected.append(order[place])
        assert batch["label"].tolist() == values(batch) == expected
    # Each counts once, however many epochs meet it.
    assert split.corrupt.count == 3
    assert sorted(text.split(" (")[0] for text in split.corrupt.found) == [
        f"image {place} of test set" for place in (3, 4, 9)
    ]
    rest = data.make_dataset(split, start_step=3, steps=3, **arguments)
    assert_same_batches(found[3:], rest.as_numpy_iterator())
    data.verify(split)


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_in_evaluation_they_are_left_out():
    split = damaged_stream((3, 8), limit=2, count=10)
    batches = data.make_dataset(split, batch_size=4, image_size=4)
    assert labels(batches) == [[0, 1, 2], [4, 5, 6, 7], [9]]
    padded = list(data.make_dataset(split, 4, 4, pad=True).as_numpy_iterator())
    found = [batch["label"][batch["mask"]].tolist() for batch in padded]
    assert found == [[0, 1, 2], [4, 5, 6, 7], [9]]
    assert {len(batch["label"]) for batch in padded} == {4}


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_more_than_the_limit_is_an_error_that_says_so():
    split = damaged_stream((1, 5, 7), limit=2, count=10)
    message = "3 images cannot be decoded where max_corrupt=2 may be left out, the first is image"
    with pytest.raises(tf.errors.OpError, match=message):
        list(data.make_dataset(split, 4, 4))
    with pytest.raises(ValueError, match=message) as caught:
        data.verify(split)
    assert "\n" not in str(caught.value)


def test_without_a_limit_the_first_is_an_error():
    contents = [*encoded(numbered_images(3)), b"no image"]
    split = stream_split(numbered_images(4), contents)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(data.make_dataset(split, 4, 4))
    data.verify(split)


def test_the_first_is_told_once():
    split = damaged_stream((1, 2), limit=2, count=4)
    # Images are decoded side by side: either may be the first.
    words = r"left out: image [12] of test set \(Invalid PNG data.*max_corrupt=2"
    with pytest.warns(UserWarning, match=words) as told:
        list(data.make_dataset(split, 2, 4))
    assert len(told) == 1


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_files_that_were_not_verified_are_left_out_too(tmp_path):
    split = file_split(noise_images(6), tmp_path, corrupt=data.CorruptImages(1))
    (tmp_path / "2.png").write_bytes(b"no image")
    assert labels(data.make_dataset(split, 6, 8)) == [[0, 1, 3, 4, 5]]
    assert split.corrupt.found[0].startswith(split.paths[2])
    data.verify(split)


@pytest.mark.parametrize("limit", [-1, 0.5, True])
def test_a_limit_is_a_count(limit):
    with pytest.raises(ValueError, match=f"max_corrupt={limit}"):
        data.CorruptImages(limit)
