"""Few-shot transfer of a live model: the features, and the measurement between training steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_vmoe import data, evaluation, models
from keras_vmoe.evaluation.few_shot import checked_draws

DataSource = str | Callable[[], data.ImageSource]


class FewShot:
    """Measures few-shot transfer while a model is being trained. Gin calls it `FewShot`.

    Of datasets in memory and of files only the images that are drawn go through the model; of
    streams (large sets of tensorflow_datasets), whose labels are not known before, all training
    images do.

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

    def __init__(
        self,
        dataset: DataSource | Sequence[DataSource] | None = None,
        shots: Sequence[int] = (1, 5, 10, 25),
        seeds: int = 3,
        every: int | None = None,
        crop: data.Crop | None = None,
        batch_size: int = 256,
    ) -> None:
        for name, value in (("seeds", seeds), ("every", every), ("batch_size", batch_size)):
            optional = name == "every" and value is None
            if not optional and (not isinstance(value, int) or value < 1):
                raise ValueError(f"FewShot.{name}={value!r} must be a positive whole number")
        self.shots, self.seeds = checked_draws(shots, range(seeds))
        self.every, self.crop, self.batch_size = every, crop, batch_size
        several = isinstance(dataset, (tuple, list))
        self._datasets = tuple(dataset) if several else (dataset,)
        if not self._datasets or not all(d is None or _is_source(d) for d in self._datasets):
            raise ValueError(
                f"FewShot.dataset={dataset!r} must be names or references of datasets, such as "
                "'digits' or @dataset"
            )
        self._sources: dict[str, data.ImageSource] = {}
        self._extractor: tuple[keras.Model, keras.Model] | None = None

    def is_due(self, step: int) -> bool:
        """Whether to measure at an evaluation of the run.

        Args:
            step: the steps taken.
        """
        return self.every is None or step % self.every == 0

    def prepare(self, own: data.ImageSource | None = None) -> None:
        """Loads the datasets, so that an error comes before training and not after an hour.

        Args:
            own: the data of the run.

        Raises:
            ValueError: a dataset that has a class with too few images, or is not known.
            OSError: one that cannot be read.
        """
        if self._sources:
            return
        for dataset in self._datasets:
            if dataset is None and own is None:
                raise ValueError("FewShot.dataset is not given, and there is no run to take it of")
            if dataset is None:
                source = own
            else:
                source = data.load(dataset) if isinstance(dataset, str) else dataset()
            check_shots(source, self.shots, self.seeds)
            if source.name in self._sources:
                raise ValueError(f"FewShot.dataset holds two datasets of the name {source.name!r}")
            self._sources[source.name] = source

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
            name: few_shot_data(
                self._extractor[1],
                source,
                self.shots,
                self.seeds,
                lambda split: self._batches(model, split),
                on_batch,
            )
            for name, source in self._sources.items()
        }
        results = evaluation.few_shot_transfer(found, self.shots, self.seeds)
        several = len(results) > 1
        return {
            f"fewshot/{name}/{n}shot" if several else f"fewshot/{n}shot": result.mean[n]
            for name, result in results.items()
            for n in self.shots
        }

    def _batches(self, model: keras.Model, split: data.Split) -> Any:
        _, size, _, channels = model.input_shape
        return data.make_dataset(
            split,
            batch_size=min(self.batch_size, split.num_examples),
            image_size=size,
            channels=channels,
            crop=self.crop,
        )


def _is_source(dataset: Any) -> bool:
    return callable(dataset) or (isinstance(dataset, str) and bool(dataset))


def check_shots(source: data.ImageSource, shots: Sequence[int], seeds: Sequence[int]) -> None:
    """Makes sure that each class has images enough, as far as this is known without reading them.

    Raises:
        ValueError: if it does not; the message names the dataset and the class.
    """
    labels = _known_labels(source.train)
    if labels is None:
        return
    try:
        evaluation.rows_needed(labels, shots, seeds, source.class_names)
    except ValueError as error:
        raise ValueError(f"few-shot transfer to {source.name}: {error}") from error


def few_shot_data(
    extractor: keras.Model,
    source: data.ImageSource,
    shots: Sequence[int],
    seeds: Sequence[int],
    batches: Callable[[data.Split], Any],
    on_batch: Callable[[], None] = lambda: None,
) -> evaluation.FewShotData:
    """The features that few-shot transfer to a dataset needs.

    Of the training images only those that are drawn go through the model, where the labels can
    be known without reading the images.

    Args:
        extractor: from images to features.
        source: the dataset.
        shots: numbers of training images per class.
        seeds: of the draws.
        batches: makes batches of a split.
        on_batch: called after each batch; `passes` tells how many images there are.
    """
    split, rows = _drawn(source, shots, seeds)
    features, labels = evaluation.collect_features(extractor, batches(split), on_batch)
    test = evaluation.collect_features(extractor, batches(source.eval), on_batch)
    if rows is not None:
        labels = np.asarray(_known_labels(source.train))
    return evaluation.FewShotData(features, labels, *test, source.class_names, rows)


def passes(
    source: data.ImageSource, shots: Sequence[int], seeds: Sequence[int], batch_size: int
) -> int:
    """The number of batches that `few_shot_data` reads."""
    splits = (_drawn(source, shots, seeds)[0], source.eval)
    return sum(math.ceil(split.num_examples / batch_size) for split in splits)


def _known_labels(split: data.Split) -> np.ndarray | None:
    """All labels, where each is that of an image that will surely come."""
    if isinstance(split, data.ArraySplit):
        return split.labels
    if isinstance(split, data.FileSplit) and split.corrupt is None:
        return split.labels
    return None


def _drawn(
    source: data.ImageSource, shots: Sequence[int], seeds: Sequence[int]
) -> tuple[data.Split, np.ndarray | None]:
    """The training images that are drawn, and which these are; or all of them, and `None`."""
    split = source.train
    labels = _known_labels(split)
    if labels is None:
        return split, None
    rows = evaluation.rows_needed(labels, shots, seeds, source.class_names)
    parts: Mapping[str, Any] = {"num_examples": len(rows), "labels": np.asarray(labels)[rows]}
    if isinstance(split, data.ArraySplit):
        return dataclasses.replace(split, images=split.images[rows], **parts), rows
    paths = tuple(split.paths[row] for row in rows)
    return dataclasses.replace(split, paths=paths, **parts), rows
