"""How a model sends whole images to experts, and how often to those of their super-class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import numpy as np

from keras_vmoe import layers, models, ops
from keras_vmoe.evaluation.passes import Batch
from keras_vmoe.ops.validation import require


class ImageRouting(NamedTuple):
    """How a router sent images to experts.

    Attributes:
        images: how many there were.
        accuracy: share whose first choice is the expert of their super-class; `None` for a model
            without super-classes.
        expert_shares: `[e]`, of all choices.
    """

    images: int
    accuracy: float | None
    expert_shares: np.ndarray


def image_routing(
    model: keras.Model, batches: Iterable[Batch], on_batch: Callable[[], None] = lambda: None
) -> ImageRouting:
    """Measures the router of a `MobileVMoE` that routes by image.

    Args:
        model: from images to logits; or a `Classifier` by one.
        batches: of `"image"`, `"label"`, and where there is padding `"mask"`.
        on_batch: called after each batch.

    Raises:
        ValueError: another model, or no images.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation, models
    >>> model = models.from_variant(
    ...     "mobile_vmoe_6x64", image_size=32, num_classes=2, num_experts=2, superclasses=[0, 1]
    ... )
    >>> batch = {"image": np.zeros((4, 32, 32, 3), "float32"), "label": np.array([0, 1, 0, 1])}
    >>> evaluation.image_routing(model, [batch]).accuracy
    0.5

    Reference: Daxberger et al. 2023, arXiv 2309.04354, figure 3.
    """
    routed = models.with_router_outputs(model)
    model = model.model if isinstance(model, models.Classifier) else model
    images, hits, counts = 0, 0.0, np.zeros(model.arguments["num_experts"])
    with layers.routing_metrics(False):
        for batch in batches:
            outputs = routed.predict_on_batch(np.asarray(batch["image"]))
            real = np.asarray(batch.get("mask", np.ones(len(batch["image"]), bool)))
            images += int(real.sum())
            counts += np.bincount(outputs["experts"][real].ravel(), minlength=len(counts))
            if model.superclasses is not None:
                logits, labels = outputs["router_logits"], np.asarray(batch["label"])
                found = np.asarray(ops.superclass_hits(labels, logits, model.superclasses))
                hits += float(found[real].sum())
            on_batch()
    require(images > 0, "batches must hold at least one image. Received: none")
    accuracy = None if model.superclasses is None else hits / images
    return ImageRouting(images, accuracy, counts / counts.sum())
