"""Few-shot transfer of a live model: the features, and the measurement between training steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_vmoe import data, evaluation, models
from keras_vmoe.evaluation.few_shot import checked_draws
from keras_vmoe.trainers.measurement import Periodic, require_positive
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.work_progress import WorkProgress

DataSource = str | Callable[[], data.ImageSource]


class FewShot(Periodic):
    """Measures few-shot transfer while a model is being trained. Gin calls it `FewShot`.

    Only the images that are drawn go through the model. The labels of streams (large sets of
    tensorflow_datasets) are read once, before training.

    Shots are drawn from the training images of each dataset; the accuracy is that on its held-out
    images, with the penalty that is best there (`evaluation.few_shot_transfer`).

    Args:
        dataset: a name, a function that returns an `ImageSource` (`@dataset`, or `@pets/dataset`
            with `pets/dataset.name = "oxford_iiit_pet"`), or several of either; `None`: the data
            of the run.
        shots: training images per class.
        seeds: how many draws the accuracies are means of.
        every: steps between two measurements, at the evaluations of the run; `None`: at each.
        crop: `@CentralCrop()` in gin, or `None`: images are squashed to a square.
        batch_size: images of one step.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> few_shot = FewShot(dataset="digits", shots=(1, 5), seeds=2)
        >>> vit = models.ViT(
        ...     image_size=16,
        ...     patch_size=8,
        ...     num_layers=1,
        ...     width=8,
        ...     mlp_dim=8,
        ...     num_heads=2,
        ...     num_classes=10,
        ...     channels=1,
        ... )
        >>> list(few_shot.measure(vit))
        ['fewshot/1shot', 'fewshot/5shot']
    """

    parameter, command, label = "train.few_shot", "fewshot", "few-shot features"

    def __init__(
        self,
        dataset: DataSource | Sequence[DataSource] | None = None,
        shots: Sequence[int] = (1, 5, 10, 25),
        seeds: int = 3,
        every: int | None = None,
        crop: data.Crop | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(every, batch_size, crop)
        require_positive(self, "seeds", seeds)
        self.shots, self.seeds = checked_draws(shots, range(seeds))
        several = isinstance(dataset, (tuple, list))
        self._datasets = tuple(dataset) if several else (dataset,)
        if not self._datasets or not all(d is None or _is_source(d) for d in self._datasets):
            raise ValueError(
                f"FewShot.dataset={dataset!r} must be names or references of datasets, such as "
                "'digits' or @dataset"
            )
        self._draws: dict[str, Draws] = {}
        self._extractor: tuple[keras.Model, keras.Model] | None = None

    def prepare(self, own: data.ImageSource | None = None) -> list[str]:
        """Loads the datasets, so that an error comes before training and not after an hour.

        Args:
            own: the data of the run.

        Returns:
            What there is to tell of the datasets, a line each.

        Raises:
            ValueError: a dataset that has a class without images, or is not known.
            OSError: one that cannot be read.
        """
        if self._draws:
            return []
        for dataset in self._datasets:
            if dataset is None and own is None:
                raise ValueError("FewShot.dataset is not given, and there is no run to take it of")
            if dataset is None and isinstance(own, Pairs):
                raise ValueError(
                    f"FewShot.dataset is not given, and the run's own data, {own.name!r}, has "
                    "captions in place of classes; name labelled images, such as 'digits'"
                )
            if dataset is None:
                source = own
            else:
                source = data.load(dataset) if isinstance(dataset, str) else dataset()
            if source.name in self._draws:
                raise ValueError(f"FewShot.dataset holds two datasets of the name {source.name!r}")
            self._draws[source.name] = draw(source, self.shots, self.seeds)
        notices = [drawn.notice() for drawn in self._draws.values()]
        return [notice for notice in notices if notice]

    @property
    def passes(self) -> int:
        """The number of batches of one measurement, after `prepare`."""
        return sum(drawn.passes(self.batch_size) for drawn in self._draws.values())

    def measure(
        self,
        model: keras.Model,
        own: data.ImageSource | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """The accuracies of a model as it is now. Its metrics and weights are left alone.

        Args:
            model: from images in [-1, 1] to logits.
            own: the data of the run, where no other is named.
            on_batch: called after each batch; what it raises ends the measurement.

        Returns:
            "fewshot/5shot" and so on; of several datasets "fewshot/NAME/5shot".
        """
        self.prepare(own)
        if self._extractor is None or self._extractor[0] is not model:
            self._extractor = (model, models.feature_extractor(model))
        found = {
            name: drawn.features(self._extractor[1], self._batches, on_batch)
            for name, drawn in self._draws.items()
        }
        results = evaluation.few_shot_transfer(found, self.shots, self.seeds)
        several = len(results) > 1
        return {
            f"fewshot/{name}/{n}shot" if several else f"fewshot/{n}shot": result.mean[n]
            for name, result in results.items()
            for n in self.shots
        }

    def _batches(self, split: data.Split) -> Any:
        _, size, _, channels = self._extractor[1].input_shape
        return data.make_dataset(
            split,
            batch_size=min(self.batch_size, split.num_examples),
            image_size=size,
            channels=channels,
            crop=self.crop,
        )


def _is_source(dataset: Any) -> bool:
    return callable(dataset) or (isinstance(dataset, str) and bool(dataset))


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """The training images of a dataset that all draws take.

    Attributes:
        source: the dataset.
        shots: numbers of training images per class.
        seeds: of the draws.
        labels: of all training images.
        rows: the images that are drawn, their places among the training images. `None`: the model
            sees all of them, because damaged ones are left out while they are read.
        split: what the model sees.
    """

    source: data.ImageSource
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    labels: np.ndarray
    rows: np.ndarray | None
    split: data.Split

    def passes(self, batch_size: int) -> int:
        """The number of batches that `features` reads."""
        splits = (self.split, self.source.eval)
        return sum(math.ceil(split.num_examples / batch_size) for split in splits)

    def features(
        self,
        extractor: keras.Model,
        batches: Callable[[data.Split], Any],
        on_batch: Callable[[], None] = lambda: None,
    ) -> evaluation.FewShotData:
        """The features that are needed.

        Args:
            extractor: from images to features.
            batches: makes batches of a split.
            on_batch: called after each batch.
        """
        features, labels = evaluation.collect_features(extractor, batches(self.split), on_batch)
        test = evaluation.collect_features(extractor, batches(self.source.eval), on_batch)
        labels = labels if self.rows is None else self.labels
        return evaluation.FewShotData(features, labels, *test, self.source.class_names, self.rows)

    def notice(self) -> str | None:
        """Tells of classes that are smaller than a draw; `None` where there are none."""
        counts = np.bincount(self.labels, minlength=self.source.num_classes)
        small = int(np.sum(counts < max(self.shots)))
        if not small:
            return None
        return (
            f"few-shot transfer to {self.source.name}: {small} of {len(counts)} classes have fewer "
            f"than {max(self.shots)} training images, the smallest {counts.min()}; all of theirs "
            "are taken"
        )


def draw(source: data.ImageSource, shots: Sequence[int], seeds: Sequence[int]) -> Draws:
    """Draws the training images of few-shot transfer to a dataset, and decodes none.

    Shows how far it is while it reads the labels of a stream.

    Args:
        source: the dataset.
        shots: numbers of training images per class.
        seeds: of the draws.

    Raises:
        ValueError: if a class has no training images; the message names dataset and class.
    """
    split, drawn = source.train, (tuple(shots), tuple(seeds))
    labels = _labels(source)
    try:
        rows = evaluation.rows_needed(labels, shots, seeds, source.class_names)
    except ValueError as error:
        raise ValueError(f"few-shot transfer to {source.name}: {error}") from error
    if getattr(split, "corrupt", None) is not None:
        return Draws(source, *drawn, labels, None, split)
    return Draws(source, *drawn, labels, rows, data.select(split, rows))


def _labels(source: data.ImageSource) -> np.ndarray:
    if not isinstance(source.train, data.StreamSplit):
        return data.read_labels(source.train)
    count = source.train.num_examples
    progress = WorkProgress(total_work=float(count))
    progress.begin(f"labels of {source.name}", work=float(count))
    try:
        return data.read_labels(source.train, lambda done: progress.advance(done / count))
    finally:
        progress.clear()
