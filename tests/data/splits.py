"""Tiny splits of every kind, of images that tell their own number."""

import numpy as np
import tensorflow as tf

from keras_vmoe import data


def numbered_images(count, size=4, channels=1):
    """uint8 `[count, size, size, channels]`, every value the number of its image."""
    index = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(index, (count, size, size, channels)).copy()


def noise_images(count, size=8, channels=3):
    shape = (count, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def array_split(images):
    """Labels are the images' numbers."""
    return data.ArraySplit.of(images, np.arange(len(images)))


def encoded(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def file_split(images, folder, **options):
    paths = []
    for number, content in enumerate(encoded(images)):
        paths.append(str(folder / f"{number}.png"))
        (folder / f"{number}.png").write_bytes(content)
    return data.FileSplit(
        len(images), tuple(paths), np.arange(len(images), dtype=np.int32), **options
    )


def stream_split(images, contents=None, part_sizes=None, **options):
    contents = encoded(images) if contents is None else contents
    sizes = (len(contents),) if part_sizes is None else part_sizes
    begins, counts = np.cumsum((0, *sizes)), np.array(sizes)

    def open_part(part):
        examples = {"image": contents, "label": np.arange(len(contents))}
        whole = tf.data.Dataset.from_tensor_slices(examples)
        return whole.skip(tf.gather(begins, part)).take(tf.gather(counts, part))

    return data.StreamSplit(
        len(contents), open_part, channels=images.shape[-1], part_sizes=part_sizes, **options
    )


def make_split(kind, images, folder):
    if kind == "file":
        return file_split(np.repeat(images, 3 // images.shape[-1], axis=-1), folder)
    if kind == "parts":
        sizes = [0] * 5
        for number in range(len(images)):
            sizes[number % 7 % 5] += 1
        return stream_split(images, part_sizes=tuple(sizes))
    return {"array": array_split, "stream": stream_split}[kind](images)


def labels(batches):
    return [batch["label"].tolist() for batch in batches.as_numpy_iterator()]


def assert_same_batches(ones, others, atol=0.0):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=atol)
