"""What a finished run leaves beside its checkpoints: the model file and the routing picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from keras_vmoe.trainers.workdir import Workdir

if TYPE_CHECKING:
    from keras_vmoe.trainers.tasks import Task

# The shares under the picture are taken over this many images; a few alone would say little.
_IMAGES_OF_SHARES = 256


def save_model(model: keras.Model, workdir: Workdir) -> None:
    """Writes `model.keras`.

    Args:
        model: with its preprocessing: a `Classifier` or an `ImageTextModel`.
        workdir: where to; an older `model.keras` stays until the new one is whole.
    """
    workdir.replace(workdir.model, model.save)


def record_routing(
    model: keras.Model, task: Task, batches: tf.data.Dataset, count: int, batch_size: int
) -> tuple[np.ndarray, dict[str, analysis.RoutingRecord]]:
    """Returns some held-out images and how each MoE layer routes them.

    Args:
        model: a functional model with MoE layers.
        task: what the model takes of a batch.
        batches: batches with a `"mask"`.
        count: how many images a picture will show; the shares under it are taken over more.
        batch_size: how many go through the model at a time.
    """
    examples = first_examples(batches, max(count, _IMAGES_OF_SHARES))
    images = examples["image"]
    parts = [
        task.inputs({name: x[i : i + batch_size] for name, x in examples.items()})
        for i in range(0, len(images), batch_size)
    ]
    return images, analysis.routing_records(model, parts)


def draw_routing(
    images: np.ndarray, records: Mapping[str, analysis.RoutingRecord], count: int, workdir: Workdir
) -> None:
    """Writes `routing.png`: the expert of each patch of some images, in each MoE layer; of
    image-text pairs `modalities.png` too: the share of images and texts in each expert.

    Args:
        images: `[b, s, s, channels]` in [-1, 1].
        records: how they were routed.
        count: how many of them are drawn.
        workdir: where to.
    """

    modalities = [record.modalities for record in records.values()]
    if not any(modalities):
        # The tokens of a text tower are no patches.
        of_images = {n: record for n, record in records.items() if not n.startswith("text_")}
    else:
        of_images = {name: record.of_modality("image") for name, record in records.items()}
        counts = {name: analysis.modality_counts(record) for name, record in records.items()}
        figures.plot_expert_modality(counts, workdir.modalities, modalities[0])
    workdir.replace(
        workdir.routing,
        lambda path: figures.plot_routing(images, of_images, path, max_images=count),
    )


def first_examples(batches: tf.data.Dataset, count: int) -> dict[str, np.ndarray]:
    """Returns the first examples of batches with a `"mask"`, padding left out, without the mask."""

    def real(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        mask = batch.pop("mask")
        return {name: tf.boolean_mask(value, mask) for name, value in batch.items()}

    examples = batches.map(tf.autograph.experimental.do_not_convert(real)).unbatch()
    return next(iter(examples.batch(count).as_numpy_iterator()))
