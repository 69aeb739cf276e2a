"""Captions made of class names."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_vmoe.data.pairs import PairSource, join_captions
from keras_vmoe.data.scenes import DIGIT_WORDS, GARMENT_WORDS
from keras_vmoe.data.source import ImageSource, Split, StreamSplit

DEFAULT_TEMPLATES = ("a photo of a {}.",)
# Words for classes whose names are none, or not those of the scenes.
_WORDS = {"digits": DIGIT_WORDS, "fashion_mnist": GARMENT_WORDS}
_WORDNET_ID = re.compile(r"n\d{8}")


def class_words(source: ImageSource) -> tuple[str, ...]:
    """Returns what captions call the classes of a labelled set.

    The words of "digit_grids" for "digits", those of "garment_grids" for "fashion_mnist", otherwise
    the class names with spaces in the place of underscores.

    Args:
        source: the labelled set.

    Raises:
        ValueError: if the class names are ids of WordNet, as those of ImageNet.

    Example:
        >>> from keras_vmoe import data
        >>> class_words(data.load("digits"))[:3]
        ('zero', 'one', 'two')
    """
    if source.name in _WORDS:
        return _WORDS[source.name]
    if all(_WORDNET_ID.fullmatch(name) for name in source.class_names):
        raise ValueError(
            f"the class names of {source.name!r} are ids of WordNet such as "
            f"{source.class_names[0]!r}, not words."
        )
    return tuple(" ".join(name.replace("_", " ").split()) for name in source.class_names)


def with_captions(source: ImageSource, templates: Sequence[str] = DEFAULT_TEMPLATES) -> PairSource:
    """Returns the pairs of a labelled set: its images, and captions made of their classes' names.

    Args:
        source: the labelled set.
        templates: each makes a caption; "{}" stands for the name.

    Raises:
        ValueError: if a template lacks "{}", there is none, or the class names are no words.

    Example:
        >>> from keras_vmoe import data
        >>> source = with_captions(data.load("digits"), ("a scan of a {}", "{}"))
        >>> next(data.read_captions(source.eval))
        ('a scan of a three', 'three')
    """
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates={templates!r}: expected a list such as {DEFAULT_TEMPLATES!r}.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"templates: {template!r} must hold '{{}}' once, where the class name goes."
            )
    words = class_words(source)
    captions = [[template.replace("{}", word) for template in templates] for word in words]
    labels = join_captions(captions)
    return PairSource(
        f"labelled:{source.name}",
        source.image_shape,
        {name: _relabel(split, labels, name) for name, split in source.splits.items()},
        source.train_split,
        source.eval_split,
        source.corrupt,
    )


def _relabel(split: Split, captions: np.ndarray, name: str) -> Split:
    if not isinstance(split, StreamSplit):
        if split.labels.min(initial=0) < 0:
            raise ValueError(f"split {name!r} has images without a label (-1): name another split.")
        return dataclasses.replace(split, labels=captions[split.labels])

    def open_part(part: tf.Tensor) -> tf.data.Dataset:
        table = tf.constant(captions)

        def relabel(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return example | {"label": tf.gather(table, example["label"])}

        return split.open(part).map(relabel)

    return dataclasses.replace(split, open=open_part)
