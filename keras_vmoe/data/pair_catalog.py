"""Image-text pairs of TensorFlow Datasets."""

from typing import Any

import tensorflow as tf

from keras_vmoe.data import catalog
from keras_vmoe.data.corrupt import NO_CAPTION, CorruptImages
from keras_vmoe.data.pairs import SEPARATOR, PairSource

# Where datasets keep their captions: coco_captions in the first place, laion400m in the second.
CAPTION_FIELDS = ("captions/text", "caption", "captions", "text")
# Datasets that people look for, which TensorFlow Datasets 4.9.10 does not have.
_ELSEWHERE = ("flickr", "conceptual", "cc3m", "cc12m", "yfcc")


def load_pair_catalog(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_field: str = "image",
    caption_field: str | None = None,
    max_corrupt: int = 0,
) -> PairSource:
    """Loads images with captions of TensorFlow Datasets, fetching them where needed.

    Args:
        name: a name of the catalogue, such as "coco_captions", or that of a dataset that lies
            prepared in `data_dir`.
        data_dir: where prepared datasets lie; or the folder of one prepared dataset.
        train_split: split to train on, "train" by default.
        eval_split: held-out split; by default the first of "validation", "val", "test".
        image_field: the feature of the image.
        caption_field: the feature of the caption, or of several; "captions/text" is one within
            another. By default the first of `CAPTION_FIELDS` that exists.
        max_corrupt: up to this many images that cannot be decoded, or have no caption, are left
            out.

    Returns:
        A source with these two splits.

    Raises:
        ImportError: if TensorFlow Datasets is not installed.
        OSError: if the dataset cannot be fetched or prepared.
        ValueError: if there is no such dataset, split or feature.
    """
    corrupt = CorruptImages(max_corrupt)
    builder = catalog.find_builder(name, data_dir, _unknown)
    image = _image(builder, image_field)
    fields = catalog.Fields(
        image=image_field,
        label=_caption_field(builder, caption_field),
        to_label=_join,
        finish=lambda example: _require_caption(example, builder.name, corrupt),
    )
    catalog.prepare(builder)
    train_split = train_split or "train"
    eval_split = eval_split or catalog.default_eval_split(builder)
    splits = {
        split: catalog.read_split(builder, split, fields, corrupt)
        for split in (train_split, eval_split)
    }
    return PairSource(name, image.shape, splits, train_split, eval_split, corrupt)


def _image(builder: Any, field: str) -> Any:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features or {})
    if not isinstance(features.get(field), tfds.features.Image):
        raise ValueError(
            f"image_field={field!r}: dataset {builder.name!r} has no such images, it has "
            f"{', '.join(features)}."
        )
    catalog.check_image(builder, features[field])
    return features[field]


def _caption_field(builder: Any, field: str | None) -> str:
    kinds = builder.info.features.tf_dtype
    for candidate in CAPTION_FIELDS if field is None else (field,):
        kind = catalog.find_feature(kinds, candidate)
        if kind is not None and kind == tf.string:
            return candidate
    tried = "has none of " + ", ".join(CAPTION_FIELDS) if field is None else "has no such feature"
    raise ValueError(
        f"caption_field={field!r}: dataset {builder.name!r} {tried} of texts, it has "
        f"{', '.join(builder.info.features)}; for captions of class names use "
        "'labelled:NAME'."
    )


def _join(captions: tf.Tensor) -> tf.Tensor:
    """Returns the label of a pair, from one caption or several; "" where all are empty."""
    captions = tf.strings.strip(tf.strings.regex_replace(captions, r"\s+", " "))
    captions = tf.reshape(captions, (-1,))
    kept = tf.boolean_mask(captions, captions != "")
    return tf.strings.reduce_join(kept, separator=SEPARATOR)


def _require_caption(
    example: catalog.Example, name: str, corrupt: CorruptImages
) -> catalog.Example:
    """Makes a pair without caption one whose image cannot be decoded, if any may be left out."""
    is_empty = example["label"] == ""
    if corrupt.limit:
        return example | {"image": tf.where(is_empty, NO_CAPTION, example["image"])}
    message = f"an image of {name} has no caption: max_corrupt lets some be left out"
    with tf.control_dependencies([tf.debugging.assert_equal(is_empty, False, message)]):
        return {field: tf.identity(value) for field, value in example.items()}


def _unknown(name: str, data_dir: str | None, known: list[str]) -> str:
    if any(word in name.lower() for word in _ELSEWHERE):
        where = f"{data_dir} holds none" if data_dir else "data_dir does not say where it lies"
        return (
            f"dataset {name!r} is not in the catalogue of TensorFlow Datasets, and {where}: write "
            "its captions to captions.tsv beside the images and use 'caption_folder:PATH', or "
            "prepare it (tfds.dataset_builders.store_as_tfds_dataset) and give its data_dir."
        )
    names = ["digit_grids", "garment_grids", "caption_folder", "labelled", *known]
    hint = catalog.did_you_mean(name, names)
    return (
        f"dataset {name!r} is not known: use 'digit_grids', 'garment_grids', "
        "'caption_folder:PATH', 'labelled:NAME', a name of TensorFlow Datasets such as "
        f"'coco_captions', or a data_dir where it has been prepared.{hint}"
    )
