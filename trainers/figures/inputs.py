"""What figures are made from: a trained model with its images, and finished runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from keras_vmoe import analysis, layers, models
from keras_vmoe.trainers import detection, model_flags, trained
from keras_vmoe.trainers.figures.runs import summarise, tell_apart
from keras_vmoe.trainers.work_progress import WorkProgress

_BATCH = 256
# Images that the figure of a detector shows.
DETECTED_IMAGES = 8
# Running eagerly with records takes about so many times the time of a compiled pass.
STATISTICS_WORK = 3.0
# And compiling a model that of so many passes over a batch.
COMPILE_WORK = 20.0


class Subject:
    """A trained model with its held-out images.

    Args:
        path: a run's workdir, or a `.keras` file.
        values: what the command line says of the images.

    Raises:
        ValueError: a model whose images are not known, or are of other classes; see `trained.load`.
        OSError: images that cannot be read.
    """

    def __init__(self, path: Path, values: flags.FlagValues) -> None:
        loaded = trained.load(path, values.gin_file, values.gin_bindings)
        source = model_flags.load_sources(values, loaded)[0]
        if source.num_classes != loaded.num_classes:
            raise ValueError(
                f"{path} tells {loaded.num_classes} classes apart, but {source.name} has "
                f"{source.num_classes}; give the images that it was trained for"
            )
        names = tuple(source.class_names)
        if loaded.class_names and names != loaded.class_names:
            raise ValueError(
                f"{path} tells other classes apart than {source.name} has, "
                f"{', '.join(loaded.class_names[:3])}, … against {', '.join(names[:3])}, …; give "
                "the images that it was trained for"
            )
        self.path, self.model, self.trained = path, loaded.model, loaded
        self.name = path.absolute().stem
        self.moe = models.moe_layers(self.model)
        self.data_name, self.class_names = source.name, names
        # Batches of whole routing groups: but for the last, images are routed as in evaluation.
        self.group = max((layer.images_per_group for layer in self.moe), default=1)
        total = source.eval.num_examples
        size = min(values.batch_size or self.group * max(1, _BATCH // self.group), total)
        self.steps = math.ceil(min(values.images or total, total) / size)
        self.num_images = min(self.steps * size, total)
        self.batches: tf.data.Dataset = loaded.eval_batches(size, source.eval).take(self.steps)

    @property
    def routers(self) -> set[type]:
        """The kinds of the model's routers."""
        return {type(layer.router) for layer in self.moe}

    @property
    def tokens_choose(self) -> bool:
        """Whether in every MoE layer tokens choose their experts, by top-k routing."""
        return all(isinstance(layer.router, layers.TopKRouter) for layer in self.moe)

    @property
    def num_selected(self) -> int:
        """Choices per token that the model was trained with, of its first MoE layer."""
        return self.moe[0].router.num_selected

    @property
    def most_choices(self) -> int:
        """The experts that a token can be sent to."""
        routers = [layer.router for layer in self.moe]
        return min(router.num_experts // router.num_members for router in routers)

    def first_images(self) -> np.ndarray:
        """The images of the first batch."""
        return next(iter(self.batches))["image"].numpy()

    def accuracy(self, on_batch: Callable[[], None]) -> float:
        """The share of the images that the model classifies rightly, as its weights are now."""
        hits = count = 0
        with layers.routing_metrics(False):
            for batch in self.batches:
                logits = np.asarray(self.model.predict_on_batch(batch["image"]))
                hits += int((logits.argmax(-1) == batch["label"].numpy()).sum())
                count += len(logits)
                on_batch()
        return hits / count


class DetectorSubject:
    """A trained detector of objects with its held-out images.

    Args:
        path: a run's workdir, or a `.keras` file.
        loaded: what lies there.
        values: what the command line says of the images.

    Raises:
        ValueError: images of other classes, or --dataset, which has no boxes.
    """

    def __init__(self, path: Path, loaded: trained.Trained, values: flags.FlagValues) -> None:
        if values.dataset:
            raise ValueError(
                f"--dataset={values.dataset[0]}: {path} is a detector of objects, whose images "
                "come with boxes; give --gin_file"
            )
        detection.require_same_classes(loaded.model, loaded.source)
        self.model, self.name, self.source = loaded.model, path.absolute().stem, loaded.source
        self.num_images = min(DETECTED_IMAGES, self.source.eval.num_examples)

    def found(self) -> list[detection.Found]:
        """What is found in the first images."""
        _, size, _, channels = self.model.input_shape
        batches = detection.held_out_batches(self.source, self.num_images, size, channels)
        return list(detection.find_objects(self.model, batches.take(1)))


class Inputs:
    """Everything that figures are made from, each read when it is first asked for.

    Args:
        values: the flags of the command line.
        path: a run's workdir or a `.keras` file, or None.
        runs: the folders of finished runs to compare.
        out: where the figures go.
    """

    def __init__(
        self, values: flags.FlagValues, path: Path | None, runs: Sequence[Path], out: Path
    ) -> None:
        self.values, self.path, self.folders, self.out = values, path, tuple(runs), out
        self.progress: WorkProgress | None = None

    @functools.cached_property
    def subject(self) -> Subject | None:
        """The model that is looked at, and its images."""
        if self.path is None or self.detector is not None:
            return None
        return Subject(self.path, self.values)

    @functools.cached_property
    def detector(self) -> DetectorSubject | None:
        """The detector of objects that is looked at, and its images."""
        if self.path is None:
            return None
        values = self.values
        loaded = trained.load(self.path, values.gin_file, values.gin_bindings, None, None)
        return DetectorSubject(self.path, loaded, values) if loaded.detects else None

    @functools.cached_property
    def runs(self) -> list[analysis.RunSummary]:
        """What the runs that are compared reached; only seeds of one another have equal arguments.

        Raises:
            ValueError: two runs of one config and one seed.
        """
        progress, found = WorkProgress(max(len(self.folders), 1)), []
        for folder in self.folders:
            progress.begin(f"reading {folder}", 1)
            found.append(summarise(folder, trained.load(folder).model))
        progress.clear()
        return tell_apart(self.folders, found)

    @functools.cached_property
    def dense_twin(self) -> tuple[keras.Model | None, str | None]:
        """The first dense run that was trained as the model was; if none was, why the first was
        not."""
        reasons = []
        for folder, run in zip(self.folders, self.runs, strict=True):
            if run.sparse:
                continue
            dense = trained.load(folder)
            why = trained.no_twin(dense, self.subject.trained)
            if why is None:
                return dense.model, None
            reasons.append(f"--runs={folder} {why}")
        return None, reasons[0] if reasons else None

    @functools.cached_property
    def statistics(self) -> Mapping[str, analysis.LayerStatistics]:
        """The routing of all images, from one pass over them."""
        subject = self.subject
        step = self.counted("routing of the images", subject.steps, STATISTICS_WORK)
        found = analysis.collect_statistics(
            subject.model, subject.batches, len(subject.class_names), on_batch=lambda _: step()
        )
        return found.layers

    def counted(
        self, label: str, calls: int, work: float = 1.0, compiled: int = 0
    ) -> Callable[[], None]:
        """Begins a piece of work on the progress line.

        Args:
            label: what is being done.
            calls: how often the result will be called until it is done.
            work: of one call, in passes of a compiled model over a batch.
            compiled: the first so many calls compile a model each.

        Returns:
            A function to call after each part.
        """
        total = calls * work + compiled * COMPILE_WORK
        self.progress.begin(label, total)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self.progress.advance((done * work + min(done, compiled) * COMPILE_WORK) / total)

        return step
