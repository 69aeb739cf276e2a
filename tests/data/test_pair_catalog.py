"""Pairs of TensorFlow Datasets: coco_captions, mocked, and sets that were prepared by hand."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_vmoe import data, text

CAPTIONS = (["a cat", "one  cat"], ["a dog", "", "the\ndog"], ["a cow"], [" "], ["a hen", "hen"])
KEPT = [("a cat", "one cat"), ("a dog", "the dog"), ("a cow",), (), ("a hen", "hen")]


def picture(index, size=None):
    size = size or 4 + index
    return tf.io.encode_png(np.full((size, size, 3), 20 * index, np.uint8)).numpy()


def mock_coco(count):
    """The first examples, as `PartialDecoding` leaves them; tfds' own mock makes no such lists."""

    def as_dataset(self, split, decoders=None, **unused):
        assert set(decoders.decoders) == {"image"}

        def examples():
            for index in range(count):
                yield {"image": picture(index), "captions": {"text": CAPTIONS[index]}}

        words = tf.TensorSpec((None,), tf.string)
        spec = {"image": tf.TensorSpec((), tf.string), "captions": {"text": words}}
        whole = tf.data.Dataset.from_generator(examples, output_signature=spec)
        return whole.apply(tf.data.experimental.assert_cardinality(count))

    return tfds.testing.mock_data(num_examples=count, as_dataset_fn=as_dataset)


def test_coco_captions_has_several_captions_an_image():
    with mock_coco(3):
        source = data.load_pairs("coco_captions", eval_split="val")
        assert source.image_shape == (None, None, 3)
        assert (source.train_split, source.eval_split) == ("train", "val")
        assert isinstance(source.train, data.StreamSplit)
        assert list(data.read_captions(source.train)) == KEPT[:3]
        tokenizer = text.train_tokenizer(["a cat", "one cat", "a dog", "the dog", "a cow"], 60)
        batch = next(iter(data.make_pairs(source.eval, tokenizer, 3, 8)))
    np.testing.assert_array_equal(batch["tokens"], tokenizer(["a cat", "a dog", "a cow"]))
    shades = (batch["image"].numpy()[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_allclose(shades, [0, 20, 40], atol=1e-4)


def test_an_image_without_caption_is_an_error():
    with mock_coco(5):
        source = data.load_pairs("coco_captions")
        with pytest.raises(tf.errors.InvalidArgumentError, match="coco_captions has no caption"):
            list(data.read_captions(source.train))


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_images_without_caption_are_left_out_up_to_a_limit():
    tokenizer = text.train_tokenizer(["a cat", "a dog", "a cow", "a hen"], 60)
    with mock_coco(5):
        source = data.load_pairs("coco_captions", max_corrupt=1)
        assert list(data.read_captions(source.train)) == KEPT
        batches = list(data.make_pairs(source.eval, tokenizer, 4, 8, pad=True))
        assert [batch["mask"].numpy().tolist() for batch in batches] == [
            [True, True, True, False],
            [True, False, False, False],
        ]
        np.testing.assert_array_equal(batches[1]["tokens"], tokenizer(["a hen", "", "", ""]))
        assert source.skipped == ("image 3 of coco_captions test (it has no caption)",)


def prepare(folder, features, examples, num_files=2):
    """A dataset that tfds reads from its own files."""
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    paths = [folder / f"{index}.png" for index in range(len(examples))]
    for index, path in enumerate(paths):
        path.write_bytes(picture(index))
    examples = [(i, {"image": str(paths[i])} | example) for i, example in enumerate(examples)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="flickr30k",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image} | features),
        split_datasets={"train": examples, "test": examples[:2]},
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=num_files),
        disable_shuffling=True,
    )


def test_a_prepared_set_with_lists_of_captions(tmp_path):
    words = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})
    examples = [
        {"captions": [{"id": i, "text": one} for i, one in enumerate(several)]}
        for several in CAPTIONS[:3]
    ]
    prepare(
        tmp_path,
        {"captions": words, "name": tfds.features.Text()},
        [example | {"name": "x"} for example in examples],
    )
    source = data.load_pairs("flickr30k", data_dir=str(tmp_path))
    assert sorted(data.read_captions(source.train)) == sorted(KEPT[:3])
    assert source.train.part_sizes is not None
    assert (source.train.num_examples, source.eval.num_examples) == (3, 2)
    named = data.load_pairs("flickr30k", data_dir=str(tmp_path), caption_field="name")
    assert list(data.read_captions(named.eval)) == [("x",), ("x",)]
    with pytest.raises(ValueError, match="caption_field='captions': .*has no such feature"):
        data.load_pairs("flickr30k", data_dir=str(tmp_path), caption_field="captions")


def test_a_prepared_set_with_one_caption(tmp_path):
    examples = [{"caption": several[0]} for several in CAPTIONS[:3]]
    prepare(tmp_path, {"caption": tfds.features.Text()}, examples)
    source = data.load_pairs("flickr30k", data_dir=str(tmp_path))
    assert sorted(data.read_captions(source.train)) == [("a cat",), ("a cow",), ("a dog",)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "flickr30k"}, "not in the catalogue.*data_dir does not say.*caption_folder:PATH"),
        ({"name": "conceptual_captions", "data_dir": "/nowhere"}, "/nowhere holds none"),
        ({"name": "coco_caption"}, "'coco_caption' is not known.*Did you mean .*coco_captions"),
        (
            {"name": "cifar10"},
            "dataset 'cifar10' has none of .*'labelled:NAME'",
        ),
        (
            {"name": "coco_captions", "image_field": "picture"},
            "'picture': .*it has image",
        ),
        ({"name": "coco_captions", "caption_field": "captions/id"}, "has no such feature of texts"),
    ],
)
def test_names_and_fields_that_cannot_be_used(arguments, message):
    with tfds.testing.mock_data(), pytest.raises(ValueError, match=message) as caught:
        data.load_pairs(**arguments)
    assert "\n" not in str(caught.value)
