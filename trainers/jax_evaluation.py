"""Evaluation on the JAX backend: the means over held-out images, padding left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vmoe import distribution, models
from keras_vmoe.distribution.jax_training import hits
from keras_vmoe.layers import effects


class JaxEvaluation:
    """Evaluates a classifier on the mesh that it lies on; compiled at its first batch.

    Args:
        mesh: where the model is.
        model: maps images to logits.
        loss: `(labels, logits)` to one number an image.
        predict: from what the model gives to logits `[b, classes]`.
    """

    def __init__(
        self,
        mesh: distribution.JaxMesh,
        model: keras.Model,
        loss: Callable[[Any, Any], Any],
        predict: Callable[[Any], Any] = lambda logits: logits,
    ) -> None:
        import jax

        self._mesh, self._loss, self._predict = mesh, loss, predict
        # Images that are no images must not be routed.
        self._is_masked = models.is_sparse(model)
        self._of = model
        judged = models.with_router_outputs(model) if models.routes_images(model) else model
        self._model = models.with_image_mask(judged) if self._is_masked else model
        self._step = jax.jit(self._sums, out_shardings=mesh.layout(()))

    def means(
        self, batches: Iterable[Mapping[str, np.ndarray]], on_step: Callable[[], None]
    ) -> dict[str, float]:
        """Returns `loss` and `accuracy` over the images, and `auxiliary_loss` and the routing
        metrics over the batches.

        Args:
            batches: of `{"image", "label", "mask"}`, arrays.
            on_step: called after each batch.
        """
        images, sums, steps = 0.0, {}, []
        for batch in batches:
            of_images, of_batch = self._evaluate(batch)
            images += float(np.sum(batch["mask"]))
            sums = {name: sums.get(name, 0.0) + float(x) for name, x in of_images.items()}
            steps.append(of_batch)
            on_step()
        return {**{name: total / images for name, total in sums.items()}, **mean_of_each(steps)}

    def _evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
        variables = (self._model.trainable_variables, self._model.non_trainable_variables)
        state = tuple([v.value for v in group] for group in variables)
        with self._mesh.scope():
            return self._step(state, self._mesh.split(dict(batch)))

    def _sums(self, state: tuple, batch: Mapping[str, Any]) -> tuple[dict, dict]:
        images, mask = batch["image"], batch["mask"]
        inputs = {"images": images, "mask": mask} if self._is_masked else images
        with effects.collect_metrics() as updates:
            outputs, _, losses = self._model.stateless_call(
                *state, inputs, training=False, return_losses=True
            )
            logits, router_loss = models.logits_and_router_loss(
                self._of, outputs, batch["label"], mask
            )
        logits = self._predict(logits)
        weights = ops.cast(mask, "float32")
        of_images = {
            "loss": ops.sum(self._loss(batch["label"], logits) * weights),
            "accuracy": ops.sum(hits(batch["label"], logits) * weights),
        }
        auxiliary = sum((ops.cast(x, "float32") for x in losses), router_loss)
        metrics = {metric.name: value for metric, value, weight in updates if weight is None}
        # Those of a number of images, which may be padded.
        of_images |= {
            metric.name: value * weight for metric, value, weight in updates if weight is not None
        }
        return of_images, {"auxiliary_loss": auxiliary, **metrics}


def mean_of_each(steps: list[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each number over some steps.

    Args:
        steps: of each the same names, with numbers on a device.

    Example:
        >>> mean_of_each([{"loss": 1.0}, {"loss": 2.0}])
        {'loss': 1.5}
    """
    return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
