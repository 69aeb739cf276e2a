"""Retrieval and zero-shot classification of a live model, between training steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vmoe import data, evaluation, models, text
from keras_vmoe.trainers.few_shot_evaluation import DataSource
from keras_vmoe.trainers.measurement import Periodic, require_positive
from keras_vmoe.trainers.pairs import Pairs

OnBatch = Callable[[], None]


class _PairMeasurement(Periodic):
    """What both have in common: they are of runs on image-text pairs."""

    parameter: str

    def _require_pairs(self, own: data.ImageSource | Pairs | None) -> None:
        if not isinstance(own, Pairs):
            raise ValueError(
                f"{self.parameter} is of runs on image-text pairs (train.dataset = @pairs); leave "
                "it out"
            )


class Retrieval(_PairMeasurement):
    """Measures retrieval among the held-out pairs of a run. Gin calls it `Retrieval`.

    All captions of an image count. See `evaluation.retrieval_recalls`.

    Args:
        every: steps between two measurements, at the evaluations of the run; `None`: at each.
        batch_size: images, or texts, of one step.
        max_images: the first so many of the held-out images alone: the number of scores is its
            square. 5,000 are COCO's.
        crop: `@CentralCrop()` in gin, or `None`: images are squashed to a square.

    Raises:
        ValueError: a value out of range.
    """

    parameter, command, label = "train.retrieval", "retrieval", "retrieval embeddings"

    def __init__(
        self,
        every: int | None = None,
        batch_size: int = 256,
        max_images: int = 5000,
        crop: data.Crop | None = None,
    ) -> None:
        super().__init__(every, batch_size, crop)
        require_positive(self, "max_images", max_images)
        self.max_images, self._split = max_images, None

    def prepare(self, own: data.ImageSource | Pairs | None = None) -> list[str]:
        """Chooses the images.

        Args:
            own: the data of the run.

        Returns:
            What there is to tell of them.

        Raises:
            ValueError: data without captions.
        """
        self._require_pairs(own)
        if self._split is None:
            self._split = own.eval
            if own.eval.num_examples > self.max_images:
                self._split = data.select(own.eval, np.arange(self.max_images))
        return []

    @property
    def passes(self) -> int:
        """The number of batches of images of one measurement, after `prepare`."""
        return math.ceil(self._split.num_examples / self.batch_size)

    def measure(
        self,
        model: models.PairModel,
        own: Pairs,
        on_batch: OnBatch = lambda: None,
    ) -> dict[str, float]:
        """R@1, R@5 and R@10 of a model as it is now, both ways.

        Args:
            model: of the run.
            own: the data of the run.
            on_batch: called after each batch of images; what it raises ends the measurement.
        """
        self.prepare(own)
        size = self.batch_size
        found, _ = recalls(model, own.tokenizer, self._split, size, self.crop, on_batch)
        return {
            **{f"retrieval/image_to_text@{k}": v for k, v in found.image_to_text.items()},
            **{f"retrieval/text_to_image@{k}": v for k, v in found.text_to_image.items()},
        }


class ZeroShot(_PairMeasurement):
    """Measures zero-shot classification of held-out labelled images. Gin calls it `ZeroShot`.

    Args:
        dataset: a name, a function that returns an `ImageSource` (`@dataset`), or several.
        class_names: a file of a name a line, or names, for one dataset; `None`: the dataset's own
            (words for those whose names are numbers, see `data.class_words`).
        templates: what names are put into: "clip_best", "class_name_only", a file of a template a
            line, or templates; see `text.templates`.
        every: steps between two measurements, at the evaluations of the run; `None`: at each.
        batch_size: images, or texts, of one step.
        crop: `@CentralCrop()` in gin, or `None`: images are squashed to a square.

    Attributes:
        templates: those that names are put into.

    Raises:
        ValueError: a value out of range, a template without its place for the name.
    """

    parameter, command, label = "train.zero_shot", "zeroshot", "zero-shot embeddings"

    def __init__(
        self,
        dataset: DataSource | Sequence[DataSource] = (),
        class_names: str | Sequence[str] | None = None,
        templates: str | Sequence[str] = "clip_best",
        every: int | None = None,
        batch_size: int = 256,
        crop: data.Crop | None = None,
    ) -> None:
        super().__init__(every, batch_size, crop)
        several = isinstance(dataset, (tuple, list))
        self._datasets = tuple(dataset) if several else (dataset,)
        if not self._datasets:
            raise ValueError(
                "ZeroShot.dataset is not given; name labelled images, such as 'digits'"
            )
        if class_names is not None and len(self._datasets) > 1:
            raise ValueError(
                f"ZeroShot.class_names is of one dataset, but there are {len(self._datasets)}"
            )
        self._class_names, self.templates = class_names, text.templates(templates)
        self._sources: list[tuple[data.ImageSource, tuple[str, ...]]] = []

    def prepare(self, own: data.ImageSource | Pairs | None = None) -> list[str]:
        """Loads the datasets, so that an error comes before training.

        Args:
            own: the data of the run.

        Returns:
            What there is to tell of them.

        Raises:
            ValueError: data without captions, an unknown dataset, names that do not fit it.
            OSError: a dataset that cannot be read.
        """
        self._require_pairs(own)
        if not self._sources:
            for dataset in self._datasets:
                source = data.load(dataset) if isinstance(dataset, str) else dataset()
                self._sources.append((source, names_of(source, self._class_names)))
        return []

    def class_names_of(self, dataset: str) -> str | Sequence[str] | None:
        """What `class_names` says of a dataset; `None` where it is of another, or not given.

        Args:
            dataset: a name.
        """
        return self._class_names if self._datasets == (dataset,) else None

    @property
    def passes(self) -> int:
        """The number of batches of images of one measurement, after `prepare`."""
        return sum(math.ceil(s.eval.num_examples / self.batch_size) for s, _ in self._sources)

    def measure(
        self,
        model: models.PairModel,
        own: Pairs,
        on_batch: OnBatch = lambda: None,
    ) -> dict[str, float]:
        """The accuracies of a model as it is now, "zeroshot/digits" and so on.

        Args:
            model: of the run.
            own: the data of the run.
            on_batch: called after each batch; what it raises ends the measurement.
        """
        self.prepare(own)
        size = self.batch_size
        return {
            f"zeroshot/{source.name}": zero_shot(
                model, own.tokenizer, source, names, self.templates, size, self.crop, on_batch
            ).accuracy
            for source, names in self._sources
        }


# The parts, which the commands take too.


def names_of(source: data.ImageSource, class_names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the classes of a dataset, as they are put into prompts.

    Args:
        source: the dataset.
        class_names: a file, names, or `None` for the dataset's own.

    Raises:
        ValueError: another number of names than classes.
    """
    if class_names is None:
        try:
            return data.class_words(source)
        except ValueError as error:
            raise ValueError(f"{error} Give class_names: a file of a name a line") from error
    if isinstance(class_names, (str, Path)):
        class_names = text.read_class_names(class_names, allow_repeats=True)
    if len(class_names) != source.num_classes:
        raise ValueError(
            f"class_names: {len(class_names)} names for the {source.num_classes} classes of "
            f"{source.name}; give one a class, in the order of the labels"
        )
    return tuple(class_names)


def embed_images(
    model: models.PairModel,
    split: data.Split,
    batch_size: int,
    crop: data.Crop | None = None,
    on_batch: OnBatch = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings and the labels (or captions) of the images of a split, in order.

    Args:
        model: of pairs.
        split: of any kind.
        batch_size: images of one step.
        crop: how an image becomes a square.
        on_batch: called after each batch.
    """
    _, size, _, channels = model.image_encoder.input_shape
    batches = data.make_dataset(
        split,
        batch_size=min(batch_size, split.num_examples),
        image_size=size,
        channels=channels,
        crop=crop,
    )
    return evaluation.collect_features(model.image_encoder, batches, on_batch)


def embed_texts(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    texts: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """Returns the embeddings of texts, `[n, d]`.

    Args:
        model: of pairs.
        tokenizer: of the model.
        texts: strings.
        batch_size: texts of one step.
    """
    found = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]))
        found.append(keras.ops.convert_to_numpy(model.text_encoder.predict_on_batch(tokens)))
    return np.concatenate(found)


def recalls(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    split: data.Split,
    batch_size: int,
    crop: data.Crop | None = None,
    on_batch: OnBatch = lambda: None,
) -> tuple[evaluation.RetrievalResult, list[str]]:
    """Returns the recalls of a model on a split of pairs, and all captions.

    Args:
        model: of pairs.
        tokenizer: of the model.
        split: the pairs; images that may be left out, damaged, are.
        batch_size: images, or texts, of one step.
        crop: how an image becomes a square.
        on_batch: called after each batch of images.
    """
    images, labels = embed_images(model, split, batch_size, crop, on_batch)
    several = [data.split_captions(label) for label in labels]
    texts = [caption for captions in several for caption in captions]
    owners = [i for i, captions in enumerate(several) for _ in captions]
    embeddings = embed_texts(model, tokenizer, texts, batch_size)
    return evaluation.retrieval_recalls(images, embeddings, owners), texts


def zero_shot(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    source: data.ImageSource,
    names: Sequence[str],
    templates: Sequence[str],
    batch_size: int,
    crop: data.Crop | None = None,
    on_batch: OnBatch = lambda: None,
) -> evaluation.ZeroShotResult:
    """Returns the zero-shot accuracies of a model on the held-out images of a dataset.

    Args:
        model: of pairs.
        tokenizer: of the model.
        source: the dataset.
        names: of its classes.
        templates: what they are put into.
        batch_size: images, or texts, of one step.
        crop: how an image becomes a square.
        on_batch: called after each batch of images.
    """
    classes = evaluation.class_embeddings(
        lambda texts: embed_texts(model, tokenizer, texts, batch_size), names, templates
    )
    images, labels = embed_images(model, source.eval, batch_size, crop, on_batch)
    return evaluation.zero_shot_accuracy(images, classes, labels)
