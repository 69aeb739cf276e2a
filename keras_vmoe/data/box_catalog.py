"""Images with boxes of TensorFlow Datasets."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_vmoe.data import catalog
from keras_vmoe.data.boxes import BoxSource, pack
from keras_vmoe.data.corrupt import CorruptImages

_BOXES, _CLASSES, _CROWDS = "bbox", "label", "is_crowd"


def load_box_catalog(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    objects_field: str = "objects",
    max_boxes: int = 100,
    max_corrupt: int = 0,
) -> BoxSource:
    """Loads images with boxes of TensorFlow Datasets, fetching them where needed.

    Boxes that go beyond their image are cut off at its border; those that are empty then go.

    Args:
        name: a name of the catalogue, such as "coco/2017" or "voc/2007", or that of a dataset that
            lies prepared in `data_dir`.
        data_dir: where prepared datasets lie; or the folder of one prepared dataset.
        train_split: split to train on, "train" by default.
        eval_split: held-out split; by default the first of "validation", "val", "test".
        objects_field: the feature of the objects, which has "bbox", "label" and, where there are
            crowds, "is_crowd".
        max_boxes: places for boxes that each image of a batch has.
        max_corrupt: up to this many images that cannot be decoded are left out.

    Returns:
        A source with these two splits.

    Raises:
        ImportError: if TensorFlow Datasets is not installed.
        OSError: if the dataset cannot be fetched or prepared.
        ValueError: if there is no such dataset or split, or it has no boxes.
    """
    corrupt = CorruptImages(max_corrupt)
    builder = catalog.find_builder(name, data_dir, _unknown)
    image, label = _features(builder, objects_field)
    fields = catalog.Fields(label=objects_field, to_label=_to_label)
    catalog.prepare(builder)
    train_split = train_split or "train"
    eval_split = eval_split or catalog.default_eval_split(builder)
    splits = {
        split: catalog.read_split(builder, split, fields, corrupt)
        for split in (train_split, eval_split)
    }
    names = tuple(label.names)
    shape = image.shape
    return BoxSource(name, names, shape, splits, train_split, eval_split, corrupt, max_boxes)


def _features(builder: Any, objects_field: str) -> tuple[Any, Any]:
    """Returns the image and the label feature, or says why the dataset is of no use here."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features or {})
    objects = getattr(features.get(objects_field), "feature", None) or {}
    image, label = features.get("image"), dict(objects).get(_CLASSES)
    boxes = isinstance(dict(objects).get(_BOXES), tfds.features.BBoxFeature)
    images = isinstance(image, tfds.features.Image)
    if not (images and boxes and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"objects_field={objects_field!r}: dataset {builder.name!r} has no boxes there: it "
            f"needs features 'image' and {objects_field!r} with 'bbox' and 'label', it has "
            f"{', '.join(features)}."
        )
    catalog.check_image(builder, image)
    return image, label


def _to_label(objects: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the label of an image, from its objects."""
    boxes = tf.clip_by_value(tf.reshape(objects[_BOXES], (-1, 4)), 0.0, 1.0)
    classes = tf.cast(objects[_CLASSES], tf.float32)
    crowds = tf.cast(objects.get(_CROWDS, tf.zeros_like(classes)), tf.float32)
    rows = tf.concat([boxes, classes[:, None], crowds[:, None]], axis=1)
    return pack(tf.boolean_mask(rows, tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1)))


def _unknown(name: str, data_dir: str | None, known: list[str]) -> str:
    names = ["digit_scenes", "garment_scenes", "coco/2017", "voc/2007", *known]
    hint = catalog.did_you_mean(name, names)
    return (
        f"dataset {name!r} is not known: use 'digit_scenes', 'garment_scenes', a name of "
        "TensorFlow Datasets such as 'coco/2017', or a data_dir where it has been prepared."
        f"{hint}"
    )
