"""One training step and one evaluation step, as Orbit drives them under a distribution strategy."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import orbit
import tensorflow as tf

from keras_vmoe import models
from keras_vmoe.trainers.retokenization import Retokenization
from keras_vmoe.trainers.stopping import StopRequested, StopSignal
from keras_vmoe.trainers.tasks import Batch, Task

Batches = tf.data.Dataset | tf.distribute.DistributedDataset


class TrainingLoop(orbit.StandardTrainer, orbit.StandardEvaluator):
    """Trains and evaluates a model, on one replica or many.

    The loss of a step is the sum over examples of the task's loss divided by the global batch size,
    plus the model's own (auxiliary) losses divided by the number of replicas: summed over
    replicas, both are means.

    Args:
        strategy: the distribution strategy in whose scope model and optimizer were made.
        model: of the task.
        task: what the model takes of a batch, and how its outputs are judged.
        optimizer: built with the model's trainable variables.
        eval_batches: batches with a `"mask"`, the held-out examples each once, spread over the
            replicas (`strategies.distribute`).
        batch_size: examples of one training step, over all replicas.
        stop: read between two steps.
        on_step: called with the step's number after each training step.
        on_eval_step: called after each evaluation step.
        phases: the graphs that the model is trained in, where there are several.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        task: Task,
        eval_batches: Batches,
        batch_size: int,
        stop: StopSignal,
        on_step: Callable[[int], None],
        on_eval_step: Callable[[], None] = lambda: None,
        phases: Retokenization | None = None,
    ) -> None:
        self.strategy, self.model, self.optimizer, self.task = strategy, model, optimizer, task
        self.batch_size, self.stop = batch_size, stop
        self.several_processes = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.on_step, self.on_eval_step = on_step, on_eval_step
        self._phases = phases
        # Evaluation pads its last batch: images that are no images must not be routed.
        judged = models.with_router_outputs(model) if models.routes_images(model) else model
        self._masked = models.with_image_mask(judged) if models.is_sparse(model) else None
        orbit.StandardTrainer.__init__(self, None)
        orbit.StandardEvaluator.__init__(self, eval_batches)
        with strategy.scope():
            self.global_step = orbit.utils.create_global_step()
            names = ("loss", "accuracy", "auxiliary_loss")
            self._means = {name: keras.metrics.Mean(name=name) for name in names}
            self._not_finite = keras.metrics.Sum(name="not_finite")
        # When the round began and at which step; the first step of all is left out if it can be.
        self._clock = (time.monotonic(), 0)
        self._traced: tuple[float, int] | None = None
        # The first step of the last round whose loss was not finite.
        self.first_bad_step: int | None = None

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All running means: the loop's own, then those of the model's layers."""
        # Keras lists the metric of a nested layer once for each layer around it.
        of_layers = {id(metric): metric for metric in self.model.metrics}
        return [*self._means.values(), self._not_finite, *of_layers.values()]

    # Training.

    def feed(self, train_batches: Batches) -> None:
        """Hands in the training data, once it is known at which step the run begins.

        Args:
            train_batches: endless batches, spread over the replicas.
        """
        self.train_dataset = train_batches

    def create_train_loop_fn(self) -> Callable:
        """Returns the loop over steps; a Python loop, so that a signal is heard between steps."""
        trained = (self.model,) if self._phases is None else self._phases.models
        step_functions = [
            self.compiled(functools.partial(self.train_step, model)) for model in trained
        ]
        traced_phase: int | None = None

        def checked_step(iterator: tf.data.Iterator) -> None:
            nonlocal traced_phase
            if not self.several_processes:
                self.stop.check()
            phase = self._phases.at(int(self.global_step.numpy())) if self._phases else 0
            if phase != traced_phase:
                self._traced, traced_phase = None, phase
            stop = step_functions[phase](iterator, tf.constant(self.stop.received))
            step = int(self.global_step.numpy())
            self.on_step(step)
            self._traced = self._traced or (time.monotonic(), step)
            # A signal to one process stops them all, after the same step.
            if self.several_processes and int(stop):
                raise StopRequested(int(stop))

        return orbit.utils.create_loop_fn(checked_step)

    def compiled(self, step: Callable) -> Callable:
        """What a step is run by: a graph, from the data to the update."""
        return tf.function(step, autograph=False)

    def train_loop_begin(self) -> None:
        """Starts the clock of a round of steps; the means go on where a checkpoint left them."""
        self._clock = (time.monotonic(), int(self.global_step.numpy()))

    def train_step(
        self, model: keras.Model, iterator: tf.data.Iterator, signal: tf.Tensor
    ) -> tf.Tensor:
        """Takes one step on every replica.

        Args:
            model: the graph of this phase.
            iterator: of the training data.
            signal: the number of a signal that this process has got, or 0.

        Returns:
            The highest number that a process has got, or 0.
        """

        def replica_step(batch: Batch) -> None:
            self._replica_train_step(model, batch)

        self.strategy.run(replica_step, args=(next(iterator),))
        self.global_step.assign_add(1)
        if not self.several_processes:
            return signal
        signals = self.strategy.run(lambda: _highest(signal))
        return self.strategy.experimental_local_results(signals)[0]

    def _replica_train_step(self, model: keras.Model, batch: Batch) -> None:
        # In their order: that which the optimizer was built with, whatever the graph of the phase.
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = model(self.task.inputs(batch), training=True)
            # Before the task exchanges anything between replicas, whose forward passes share the
            # layers that keep these.
            auxiliary = self._auxiliary(model)
            outputs, router_loss = self._without_router(batch, outputs)
            auxiliary += router_loss
            losses, hits = self.task.judge(batch, outputs, training=True)
            total = tf.reduce_sum(losses) / self.batch_size
            total += auxiliary / self.strategy.num_replicas_in_sync
        gradients = tape.gradient(total, [v.value for v in variables])
        self.optimizer.apply(gradients, variables)
        self._not_finite.update_state(tf.cast(~tf.math.is_finite(total), tf.float32))
        self._update_means(losses, hits, auxiliary)

    def _without_router(self, batch: Batch, outputs: Any) -> tuple[Any, tf.Tensor]:
        """The outputs that the task judges, and the loss of a router that labels teach."""
        return models.logits_and_router_loss(
            self.model, outputs, batch.get("label"), batch.get("mask")
        )

    def _auxiliary(self, model: keras.Model) -> tf.Tensor:
        return tf.add_n([tf.cast(x, tf.float32) for x in model.losses] or [0.0])

    def train_loop_end(self) -> dict[str, float]:
        """Returns the means of the round and forgets them."""
        step = int(self.global_step.numpy())
        # The first step traces the graph: where others follow it, it is no measure of speed.
        traced, first = self._traced, self._clock
        began, first_step = max(first, traced) if traced and traced[1] < step else first
        images = (step - first_step) * self.batch_size
        bad_steps = float(self._not_finite.result()) / self.strategy.num_replicas_in_sync
        # A loss that is not finite stays so: the bad steps are the last ones.
        self.first_bad_step = step - math.ceil(bad_steps) + 1 if bad_steps else None
        output = self._results()
        output["learning_rate"] = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        output["images_per_second"] = images / (time.monotonic() - began)
        if self._phases is not None:
            output["token_stride"] = float(self._phases.stride(step))
        return output

    # Evaluation.

    def create_eval_loop_fn(self, has_state: bool) -> Callable:
        """Returns the loop over the held-out batches."""
        step_function = self.compiled(self.eval_step)

        def checked_step(iterator: tf.data.Iterator) -> None:
            try:
                if not self.several_processes:
                    self.stop.check()
            except StopRequested:
                # Half an evaluation must not get into the training means of the checkpoint.
                self.reset()
                raise
            step_function(iterator)
            self.on_eval_step()

        return orbit.utils.create_loop_fn(checked_step)

    def eval_begin(self) -> None:
        """Empties the means and starts the clock."""
        self.reset()
        self._clock = (time.monotonic(), 0)

    def eval_step(self, iterator: tf.data.Iterator) -> None:
        """Evaluates one batch on every replica."""
        self.strategy.run(self._replica_eval_step, args=(next(iterator),))

    def _replica_eval_step(self, batch: Batch) -> None:
        inputs, mask = self.task.inputs(batch), batch["mask"]
        if self._masked is None:
            outputs = self.model(inputs, training=False)
        else:
            inputs = inputs if isinstance(inputs, dict) else {"images": inputs}
            outputs = self._masked({**inputs, "mask": mask}, training=False)
        outputs, router_loss = self._without_router(batch, outputs)
        auxiliary = self._auxiliary(self.model) + router_loss
        losses, hits = self.task.judge(batch, outputs, training=False)
        self._update_means(losses, hits, auxiliary, mask)

    def eval_end(self, *_: object) -> dict[str, float]:
        """Returns the means over the held-out images and forgets them."""
        images = float(keras.ops.convert_to_numpy(self._means["accuracy"].count))
        output = self._results()
        output["images_per_second"] = images / (time.monotonic() - self._clock[0])
        return output

    # Means.

    def reset(self) -> None:
        """Empties all running means."""
        for metric in self.metrics:
            metric.reset_state()

    def _update_means(
        self,
        losses: tf.Tensor,
        hits: tf.Tensor,
        auxiliary: tf.Tensor,
        mask: tf.Tensor | None = None,
    ) -> None:
        self._means["loss"].update_state(losses, sample_weight=mask)
        self._means["accuracy"].update_state(hits, sample_weight=mask)
        self._means["auxiliary_loss"].update_state(auxiliary)

    def _results(self) -> dict[str, float]:
        names = [m.name for m in self.metrics]
        output = {m.name: float(keras.ops.convert_to_numpy(m.result())) for m in self.metrics}
        output.pop(self._not_finite.name)
        if len(set(names)) != len(names):
            raise ValueError(f"two metrics of the model share a name: {sorted(names)}")
        self.reset()
        return output


def _highest(signal: tf.Tensor) -> tf.Tensor:
    """The highest value over all replicas."""
    context = tf.distribute.get_replica_context()
    gathered = context.all_gather(tf.reshape(signal, (1,)), axis=0)
    return tf.reduce_max(gathered)
