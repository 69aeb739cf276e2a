"""A training step on JAX devices, which can be compiled without weights and without the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops as kops

from keras_vmoe import models
from keras_vmoe.distribution.jax_mesh import JaxMesh
from keras_vmoe.distribution.placement import model_axes, slot_axes
from keras_vmoe.distribution.rules import Rule
from keras_vmoe.distribution.training import require_groups
from keras_vmoe.layers import effects

if TYPE_CHECKING:
    import jax

Loss = Callable[[Any, Any], Any]


class JaxTrainStep:
    """One training step of a classifier on the JAX backend, compiled at its first call.

    The loss is the mean over the images of the whole batch plus the model's own (auxiliary)
    losses, as on one device.

    Args:
        mesh: where model and optimizer are.
        model: maps images to logits; of `build_model` or `place_model`; to `lower` the step, one
            made under `storage.unallocated` will do.
        optimizer: of `build_optimizer`; to `lower`, built under `unallocated`.
        loss: `(labels, logits)` to one number an image.
        rules: those that the model was placed by.
        predict: from what the model gives to the logits `[b, classes]` that the accuracy is of.

    Call arguments:
        batch: `{"image": [b, height, width, channels], "label": [b] or [b, classes]}`, arrays; in
            a job of several processes this one's share, see `JaxMesh.split`.

    Returns:
        `{"loss", "auxiliary_loss", "accuracy"}`, numbers on the device: the mean loss of the
        images, the model's own, and the share of images whose class has the highest logit;
        besides, by their names, the routing metrics of MoE layers. To read one waits for the step.

    Raises:
        ValueError: a batch that the mesh does not divide, or whose groups it does not divide.

    Example:

    >>> from keras_vmoe import distribution
    >>> mesh = distribution.JaxMesh(batch=2, expert=4)  # doctest: +SKIP
    >>> model = distribution.build_model(make_model, mesh)  # doctest: +SKIP
    >>> optimizer = distribution.build_optimizer(
    ...     keras.optimizers.AdamW(), model, mesh
    ... )  # doctest: +SKIP
    >>> step = distribution.JaxTrainStep(mesh, model, optimizer, loss)  # doctest: +SKIP
    >>> float(step({"image": images, "label": labels})["loss"])  # doctest: +SKIP
    """

    def __init__(
        self,
        mesh: JaxMesh,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: Loss,
        rules: Sequence[Rule] | None = None,
        predict: Callable[[Any], Any] = lambda logits: logits,
    ) -> None:
        import jax

        self.mesh, self.model, self.optimizer, self.loss = mesh, model, optimizer, loss
        self.predict = predict
        axes = {id(v): mesh.variable_layout(along) for v, along in model_axes(model, mesh, rules)}
        slots = slot_axes(optimizer, model, mesh, rules)
        self._layouts = axes | {id(v): mesh.variable_layout(along) for v, along in slots}
        self._groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
        state = tuple([self._layouts[id(v)] for v in group] for group in self._groups)
        self._step = jax.jit(
            self._take, donate_argnums=(0,), out_shardings=(state, mesh.layout(()))
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        share = len(self.mesh.jax.local_devices) / self.mesh.size
        self._require_groups(round(len(batch["image"]) / share))
        state = tuple([self._value_of(v) for v in group] for group in self._groups)
        with self.mesh.scope():
            state, results = self._step(state, self.mesh.split(dict(batch)))
        for group, values in zip(self._groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return results

    def layout_of(self, variable: keras.Variable) -> jax.sharding.NamedSharding:
        """How a variable of the model or of the optimizer is split."""
        return self._layouts[id(variable)]

    def lower(self, batch: Mapping[str, tuple[tuple[int, ...], str]]) -> jax.stages.Lowered:
        """Lowers the step for the devices of the mesh, which need not be there.

        Args:
            batch: for each part of a batch its shape, over all devices, and its dtype.

        Returns:
            What `compile()` compiles.

        Raises:
            ValueError: as a call.
        """
        import jax

        self._require_groups(batch["image"][0][0])
        spec = jax.ShapeDtypeStruct
        state = tuple(
            [spec(v.shape, v.dtype, sharding=self._layouts[id(v)]) for v in group]
            for group in self._groups
        )
        parts = {
            name: spec(shape, dtype, sharding=self.mesh.layout(("batch",)))
            for name, (shape, dtype) in batch.items()
        }
        with self.mesh.scope():
            return self._step.lower(state, parts)

    def _value_of(self, variable: keras.Variable) -> jax.Array:
        # A value that lies where it should, but says so in other words, as one that was assigned
        # may, would make JAX compile the step once more.
        import jax

        if variable._value is None:
            raise ValueError(
                f"{variable.path} has no value: make the model by distribution.build_model, and "
                "the optimizer by build_optimizer"
            )
        value, layout = variable.value, self._layouts[id(variable)]
        as_told = value.committed and value.sharding == layout
        return value if as_told else jax.device_put(value, layout)

    def _require_groups(self, batch_size: int) -> None:
        if self.mesh.size > 1:  # one device splits nothing
            require_groups(self.model, self.mesh, batch_size)

    def _take(self, state: tuple, batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        import jax

        trainable, others, slots = state

        def total(trainable: list[Any]) -> tuple[Any, tuple]:
            with effects.collect_metrics() as updates:
                outputs, others_after, losses = self.model.stateless_call(
                    trainable, others, batch["image"], training=True, return_losses=True
                )
                logits, router_loss = models.logits_and_router_loss(
                    self.model, outputs, batch["label"]
                )
            metrics = {metric.name: value for metric, value, _ in updates}
            loss = kops.mean(self.loss(batch["label"], logits))
            auxiliary = sum((kops.cast(x, "float32") for x in losses), router_loss)
            return loss + auxiliary, (loss, auxiliary, logits, others_after, metrics)

        compute = jax.value_and_grad(total, has_aux=True)
        (_, (loss, auxiliary, logits, others, metrics)), gradients = compute(trainable)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        results = {
            "loss": loss,
            "auxiliary_loss": auxiliary,
            "accuracy": kops.mean(hits(batch["label"], self.predict(logits))),
            **metrics,
        }
        return (list(trainable), list(others), list(slots)), results


def hits(labels: Any, logits: Any) -> Any:
    """1.0 for each image whose class has the highest logit, 0.0 for the others, `[b]`.

    Args:
        labels: class ids `[b]`, or probabilities `[b, classes]`.
        logits: `[b, classes]`.
    """
    classes = labels if len(labels.shape) == 1 else kops.argmax(labels, -1)
    found = kops.equal(kops.argmax(logits, -1), kops.cast(classes, "int32"))
    return kops.cast(found, "float32")
