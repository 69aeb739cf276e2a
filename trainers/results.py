"""What a finished run leaves beside its checkpoints: the model file and the routing picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from keras_vmoe.trainers.workdir import Workdir

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
    model: keras.Model, batches: tf.data.Dataset, count: int, batch_size: int
) -> tuple[np.ndarray, dict[str, analysis.RoutingRecord]]:
    """Returns some held-out images and how each MoE layer routes them.

    Args:
        model: a functional model with MoE layers.
        batches: batches of `{"image", "mask"}`.
        count: how many images a picture will show; the shares under it are taken over more.
        batch_size: how many go through the model at a time.
    """
    images = first_images(batches, max(count, _IMAGES_OF_SHARES))
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    return images, analysis.routing_records(model, parts)


def draw_routing(
    images: np.ndarray, records: Mapping[str, analysis.RoutingRecord], count: int, workdir: Workdir
) -> None:
    """Writes `routing.png`: the expert of each patch of some images, in each MoE layer.

    Args:
        images: `[b, s, s, channels]` in [-1, 1].
        records: how they were routed.
        count: how many of them are drawn.
        workdir: where to.
    """

    def draw(path: Path) -> None:
        figures.plot_routing(images, records, path, max_images=count)

    workdir.replace(workdir.routing, draw)


def first_images(batches: tf.data.Dataset, count: int) -> np.ndarray:
    """Returns the first images of batches of `{"image", …}`, `[count, s, s, channels]`."""
    images = batches.map(lambda batch: tf.boolean_mask(batch["image"], batch["mask"]))
    return next(iter(images.unbatch().batch(count).as_numpy_iterator()))
