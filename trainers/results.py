"""What a finished run leaves beside its checkpoints: the model file and the routing picture."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe import analysis, layers, models
from keras_vmoe.analysis import figures
from keras_vmoe.trainers.workdir import Workdir

# The shares under the picture are taken over this many images; a few alone would say little.
_IMAGES_OF_SHARES = 256


def save_model(model: keras.Model, class_names: tuple[str, ...], workdir: Workdir) -> None:
    """Writes `model.keras`: the model, its preprocessing and the names of its classes.

    Args:
        model: maps images in [-1, 1] to logits.
        class_names: one name a class.
        workdir: where to; an older `model.keras` stays until the new one is whole.
    """
    classifier = models.Classifier(model, class_names=list(class_names))
    workdir.replace(workdir.model, classifier.save)


def draw_routing(
    model: keras.Model, batches: tf.data.Dataset, count: int, workdir: Workdir
) -> bool:
    """Writes `routing.png`: the expert of each patch of some images, in each MoE layer.

    Args:
        model: any functional model; one without MoE layers has no routing to draw.
        batches: batches of `{"image", "label"}`.
        count: how many images are drawn; 0: none.
        workdir: where to.

    Returns:
        Whether there was something to draw.
    """
    if not count or not _has_experts(model):
        return False
    images = _first_images(batches, max(count, _IMAGES_OF_SHARES))
    records = analysis.routing_records(model, images)

    def draw(path: Path) -> None:
        figures.plot_routing(images, records, path, max_images=count)

    workdir.replace(workdir.routing, draw)
    return True


def _has_experts(model: keras.Model) -> bool:
    return any(isinstance(layer, layers.MoEMLP) for layer in model._flatten_layers())


def _first_images(batches: tf.data.Dataset, count: int) -> np.ndarray:
    images = batches.map(lambda batch: batch["image"]).unbatch().batch(count)
    return next(iter(images.as_numpy_iterator()))
