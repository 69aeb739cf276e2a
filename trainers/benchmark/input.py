"""Images a second of a training input pipeline, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.data import order, reading
from keras_vmoe.trainers import gin_config
from keras_vmoe.trainers.benchmark.settings import AUGMENTATIONS, CROPS, MIXES, InputSettings
from keras_vmoe.trainers.benchmark.timing import SYSTEM_CLOCKS, Clocks
from keras_vmoe.trainers.work_progress import WorkProgress

READ, DECODE, CROP, AUGMENT, MIX = "read", "decode, crop", "crop", "augment", "mix"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline to be measured.

    Args:
        source: the dataset.
        batch_size: images of a batch.
        image_size: pixels.
        arguments: further arguments of `make_dataset`, `augment` and `mix` always among them.
    """

    source: data.ImageSource
    batch_size: int
    image_size: int
    arguments: dict[str, Any]

    def describe(self) -> dict[str, str]:
        """Returns what is measured, in words."""
        split = self.source.train
        kinds = {data.ArraySplit: "in memory", data.FileSplit: "in files"}
        shown = [name for name in ("crop", "augment", "mix", "cache") if self.arguments[name]]
        if self.arguments["repeats"] > 1:
            shown.append("repeats")
        return {
            "data": f"{self.source.name}: {split.num_examples:,} images "
            f"{kinds.get(type(split), 'streamed')}",
            "batches": f"{self.batch_size} images of {self.image_size} px",
            **{name: str(self.arguments[name]) for name in shown},
        }

    def stages(self) -> list[str]:
        """Returns the stages that this pipeline has."""
        in_memory = isinstance(self.source.train, data.ArraySplit)
        stages = [CROP] if in_memory else [READ, DECODE]
        if self.arguments["augment"]:
            stages.append(AUGMENT)
        if self.arguments["mix"]:
            stages.append(MIX)
        return stages

    def batches(self, stage: str) -> tf.data.Dataset:
        """Returns the batches of the pipeline up to a stage, without end."""
        if stage == READ:
            return _encoded(self)
        neither = {"augment": None, "mix": None}
        left_out = {DECODE: neither, CROP: neither, AUGMENT: {"mix": None}}
        return data.make_dataset(
            self.source.train,
            self.batch_size,
            self.image_size,
            training=True,
            **(self.arguments | left_out.get(stage, {})),
        )


def find_pipeline(settings: InputSettings) -> Pipeline:
    """Returns the pipeline that the settings name.

    Args:
        settings: of the command line.

    Raises:
        ValueError: whatever `data.load`, the gin file and `make_dataset` raise.
        OSError: files that cannot be read.
    """
    if settings.gin_file:
        gin_config.parse(settings.gin_file, settings.gin_bindings)
        from keras_vmoe.trainers import configurables

        config = configurables.train_config()
        source, batch_size, image_size = config.dataset(), config.batch_size, config.image_size
        names = ("crop", "augment", "mix", "repeats", "cache", "seed")
        arguments = {name: getattr(config, name) for name in names}
        arguments["channels"] = config.channels or source.image_shape[-1]
    else:
        source = data.load(settings.dataset, data_dir=settings.data_dir)
        batch_size, image_size = settings.batch_size, settings.image_size
        crop = CROPS[settings.crop]
        arguments = {
            "crop": crop and getattr(data, crop)(),
            "augment": tuple(getattr(data, AUGMENTATIONS[word])() for word in settings.augment),
            "mix": tuple(getattr(data, MIXES[word])() for word in settings.mix),
            "repeats": settings.repeats,
            "cache": settings.cache,
        }
    arguments["num_classes"] = source.num_classes
    return Pipeline(source, batch_size, image_size, arguments)


def _encoded(pipeline: Pipeline) -> tf.data.Dataset:
    """Returns batches of encoded images, in the order of training."""
    split, cache = pipeline.source.train, pipeline.arguments["cache"]
    schedule = order.Schedule(pipeline.batch_size, repeats=pipeline.arguments["repeats"])
    if isinstance(split, data.StreamSplit):
        held = reading.hold_in_memory(split) if cache else None
        examples = order.training_stream(split, schedule, held)
    else:
        reader = reading.Reader(split, pipeline.image_size, crop=None, cache=cache)
        examples = order.training_batches(split, schedule).unbatch()
        examples = examples.map(
            lambda example: {"image": reader.content(example)[0]},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    return examples.batch(pipeline.batch_size).prefetch(tf.data.AUTOTUNE)


def total_work(pipeline: Pipeline, settings: InputSettings) -> float:
    """Returns the seconds that all stages take, for the progress line."""
    return settings.rounds * len(pipeline.stages()) * settings.seconds


def measure_input(
    pipeline: Pipeline,
    settings: InputSettings,
    progress: WorkProgress,
    clocks: Clocks = SYSTEM_CLOCKS,
) -> list[dict[str, Any]]:
    """Measures the pipeline up to each of its stages.

    Args:
        pipeline: the pipeline.
        settings: rounds, seconds and warm-up.
        progress: is told of each stage.
        clocks: tests hand in their own.

    Returns:
        One row for each stage; the last is the whole pipeline.
    """
    datasets = {stage: pipeline.batches(stage) for stage in pipeline.stages()}
    taken: dict[str, list[tuple[float, float]]] = {stage: [] for stage in datasets}
    for number in range(settings.rounds):
        for stage, batches in datasets.items():
            progress.begin(f"round {number + 1}, up to {stage}", settings.seconds)
            taken[stage].append(
                seconds_per_image(
                    batches,
                    pipeline.batch_size,
                    settings.seconds,
                    settings.warmup,
                    clocks,
                    progress.advance,
                )
            )
    return rows(taken)


def seconds_per_image(
    batches: tf.data.Dataset,
    batch_size: int,
    seconds: float,
    warmup: int,
    clocks: Clocks = SYSTEM_CLOCKS,
    on_batch: Callable[[float], None] = lambda share: None,
) -> tuple[float, float]:
    """Takes batches for some time, as fast as they come.

    Args:
        batches: without end.
        batch_size: images of each.
        seconds: how long; one batch is taken at least.
        warmup: batches before, which fill the buffers and are not measured.
        clocks: wall and CPU time.
        on_batch: called after each batch with the share of the time that is over.

    Returns:
        Wall seconds and CPU-seconds of the process per image.
    """
    iterator = iter(batches)
    for _ in range(warmup):
        next(iterator)
    wall, cpu, images, passed = clocks.wall(), clocks.cpu(), 0, 0.0
    while not images or passed < seconds:
        next(iterator)
        images += batch_size
        passed = clocks.wall() - wall
        on_batch(min(passed / seconds, 1.0))
    result = passed / images, (clocks.cpu() - cpu) / images
    del iterator  # its threads would go on reading while the next stage is measured
    return result


def rows(taken: dict[str, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Returns the rows of the table.

    Args:
        taken: for each stage, in order, the wall and CPU seconds an image of each round.

    Example:
        >>> for row in rows({"read": [(0.002, 0.001)], "augment": [(0.004, 0.005)]}):
        ...     print(row["stage"], row["images_per_second"], row["added_cpu_ms"])
        read 500.0 1.0
        augment 250.0 4.0
    """
    found: list[dict[str, Any]] = []
    before = 0.0
    for stage, pairs in taken.items():
        wall, cpu = (median(pair[i] for pair in pairs) for i in range(2))
        found.append(
            {
                "stage": stage,
                "images_per_second": 1 / wall,
                "wall_ms": wall * 1e3,
                "cpu_ms": cpu * 1e3,
                "added_cpu_ms": (cpu - before) * 1e3,
            }
        )
        before = cpu
    return found
