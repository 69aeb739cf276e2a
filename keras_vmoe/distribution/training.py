"""A training step on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_vmoe.distribution.grid import Grid
from keras_vmoe.distribution.mesh import Mesh
from keras_vmoe.models import moe_layers
from keras_vmoe.ops.validation import require

Loss = Callable[[Any, Any], Any]


class TrainStep:
    """One training step of a classifier on a mesh, compiled at its first call.

    The loss is the mean over the images of the whole batch plus the model's own (auxiliary)
    losses, as on one device. Dropout masks are others than there: each part of the batch has its
    own, and the devices that work on the same part have the same.

    Args:
        mesh: where model and optimizer are.
        model: maps images to logits; of `build_model` or `place_model`.
        optimizer: of `build_optimizer`.
        loss: `(labels, logits)` to one number an image.

    Call arguments:
        batch: `{"image": [b, height, width, channels], "label": [b] or [b, classes]}`, arrays; in
            a job of several processes this one's share, see `Mesh.split`.

    Returns:
        `{"loss", "auxiliary_loss"}`, floats: the mean loss of the images, and the model's own.

    Raises:
        ValueError: a batch that the mesh does not divide, or whose groups it does not divide.
        RuntimeError: if the pass of DTensor that trains wrong was switched on again.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vmoe import distribution, models
    >>> mesh = distribution.Mesh(batch=1, expert=1, device_type="CPU")
    >>> sizes = dict(image_size=16, patch_size=8, width=8, mlp_dim=16, num_heads=2)
    >>> model = distribution.build_model(
    ...     lambda: models.VMoE(num_layers=2, num_experts=4, num_classes=3, **sizes), mesh
    ... )
    >>> optimizer = distribution.build_optimizer(keras.optimizers.AdamW(), model, mesh)
    >>> def loss(labels, logits):
    ...     return keras.ops.categorical_crossentropy(labels, logits, from_logits=True)
    >>> step = distribution.TrainStep(mesh, model, optimizer, loss)
    >>> images = np.zeros((2, 16, 16, 3), "float32")
    >>> sorted(step({"image": images, "label": np.eye(3, dtype="float32")[:2]}))
    ['auxiliary_loss', 'loss']
    """

    def __init__(
        self,
        mesh: Mesh,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: Loss,
    ) -> None:
        self.mesh, self.model, self.optimizer, self.loss = mesh, model, optimizer, loss
        self._step = mesh.function(self._take)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, float]:
        share = len(self.mesh.local_parts) / self.mesh.batch_parts
        require_groups(self.model, self.mesh, round(len(batch["image"]) / share))
        values = self._step(self.mesh.split(dict(batch)))
        return {name: float(self.mesh.gather(value)) for name, value in values.items()}

    def _take(self, batch: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(batch["image"], training=True)
            loss = tf.reduce_mean(self.loss(batch["label"], logits))
            auxiliary = tf.add_n([tf.cast(x, tf.float32) for x in self.model.losses] or [0.0])
            total = loss + auxiliary
        gradients = tape.gradient(total, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return {"loss": loss, "auxiliary_loss": auxiliary}


def require_groups(
    model: keras.Model, mesh: Grid, batch_size: int, name: str = "batch_size"
) -> None:
    """Raises a `ValueError` unless images and routing groups split evenly over the mesh.

    Args:
        model: may hold MoE layers, whose groups are counted in images.
        mesh: whose devices share the batch.
        batch_size: images of one step, over all processes.
        name: of that size, for the message.
    """
    mesh.require_batch(batch_size, name)
    for layer in moe_layers(model):
        size = min(layer.images_per_group, batch_size)
        require(
            batch_size % size == 0,
            f"images_per_group={size} of {layer.name!r} must divide the batch on a mesh. "
            f"Received: {name}={batch_size}",
        )
        mesh.require_batch(batch_size // size, f"{name}={batch_size} over images_per_group={size}")
