"""Retrieval and zero-shot classification of a live model, between training steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vmoe import data, evaluation, models, text
from keras_vmoe.trainers.few_shot_evaluation import DataSource
from keras_vmoe.trainers.pairs import Pairs

OnBatch = Callable[[], None]


class _PairMeasurement:
    """What both have in common: when they are due, and what they embed with."""

    parameter: str

    def __init__(self, every: int | None, batch_size: int) -> None:
        for name, value in (("every", every), ("batch_size", batch_size)):
            optional = name == "every" and value is None
            if not optional and (not isinstance(value, int) or value < 1):
                kind = type(self).__name__
                raise ValueError(f"{kind}.{name}={value!r} must be a positive whole number")
        self.every, self.batch_size = every, batch_size

    def is_due(self, step: int) -> bool:
        """Whether to measure at an evaluation of the run.

        Args:
            step: the steps taken.
        """
        return self.every is None or step % self.every == 0

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

    Raises:
        ValueError: a value out of range.
    """

    parameter, command, label = "train.retrieval", "retrieval", "retrieval embeddings"

    def __init__(self, every: int | None = None, batch_size: int = 256) -> None:
        super().__init__(every, batch_size)
        self._captions: Captions | None = None

    def prepare(self, own: data.ImageSource | Pairs | None = None) -> list[str]:
        """Reads the captions.

        Args:
            own: the data of the run.

        Returns:
            What there is to tell of them.

        Raises:
            ValueError: data without captions.
        """
        self._require_pairs(own)
        if self._captions is None:
            self._captions = read_captions(own.eval)
        return []

    @property
    def passes(self) -> int:
        """The number of batches of one measurement, after `prepare`."""
        rows = (self._captions.num_images, len(self._captions.texts))
        return sum(math.ceil(count / self.batch_size) for count in rows)

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
            on_batch: called after each batch; what it raises ends the measurement.
        """
        self.prepare(own)
        found = recalls(model, own.tokenizer, own.eval, self._captions, self.batch_size, on_batch)
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
    ) -> None:
        super().__init__(every, batch_size)
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
        self._class_names, self._templates = class_names, text.templates(templates)
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
                model, own.tokenizer, source, names, self._templates, size, on_batch
            ).accuracy
            for source, names in self._sources
        }


# The parts, which the commands take too.


@dataclasses.dataclass(frozen=True)
class Captions:
    """The captions of a split.

    Attributes:
        texts: all of them.
        image_of_text: of each the number of its image.
        num_images: of the split.
    """

    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]
    num_images: int


def read_captions(split: data.Split) -> Captions:
    """Returns all captions of a split of pairs.

    Args:
        split: of a `PairSource`.

    Raises:
        ValueError: a split of labelled images.
    """
    several = list(data.read_captions(split))
    texts = tuple(caption for captions in several for caption in captions)
    owners = tuple(i for i, captions in enumerate(several) for _ in captions)
    return Captions(texts, owners, len(several))


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
    model: models.PairModel, split: data.Split, batch_size: int, on_batch: OnBatch = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings and the labels (or captions) of the images of a split, in order.

    Args:
        model: of pairs.
        split: of any kind.
        batch_size: images of one step.
        on_batch: called after each batch.
    """
    _, size, _, channels = model.image_encoder.input_shape
    batches = data.make_dataset(
        split, batch_size=min(batch_size, split.num_examples), image_size=size, channels=channels
    )
    return evaluation.collect_features(model.image_encoder, batches, on_batch)


def embed_texts(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    texts: Sequence[str],
    batch_size: int,
    on_batch: OnBatch = lambda: None,
) -> np.ndarray:
    """Returns the embeddings of texts, `[n, d]`.

    Args:
        model: of pairs.
        tokenizer: of the model.
        texts: strings.
        batch_size: texts of one step.
        on_batch: called after each batch.
    """
    found = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]))
        found.append(keras.ops.convert_to_numpy(model.text_encoder.predict_on_batch(tokens)))
        on_batch()
    return np.concatenate(found)


def recalls(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    split: data.Split,
    captions: Captions,
    batch_size: int,
    on_batch: OnBatch = lambda: None,
) -> evaluation.RetrievalResult:
    """Returns the recalls of a model on a split of pairs.

    Args:
        model: of pairs.
        tokenizer: of the model.
        split: the pairs.
        captions: theirs.
        batch_size: images, or texts, of one step.
        on_batch: called after each batch.
    """
    images, _ = embed_images(model, split, batch_size, on_batch)
    texts = embed_texts(model, tokenizer, captions.texts, batch_size, on_batch)
    return evaluation.retrieval_recalls(images, texts, captions.image_of_text)


def zero_shot(
    model: models.PairModel,
    tokenizer: text.Tokenizer,
    source: data.ImageSource,
    names: Sequence[str],
    templates: Sequence[str],
    batch_size: int,
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
        on_batch: called after each batch of images.
    """
    classes = evaluation.class_embeddings(
        lambda texts: embed_texts(model, tokenizer, texts, batch_size), names, templates
    )
    images, labels = embed_images(model, source.eval, batch_size, on_batch)
    return evaluation.zero_shot_accuracy(images, classes, labels)
