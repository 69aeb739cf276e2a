"""A training run on the JAX backend: data, training, evaluation, results; nothing to resume.

It takes the steps of `run` on TensorFlow and writes the same rows. What it lacks is refused, where
results depend on it; `checkpoint_every` and the like go unheard, as a note at the start says.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe import data, distribution, models
from keras_vmoe.distribution.grid import parse_sizes
from keras_vmoe.trainers import announcements, gin_config, optimizers, results
from keras_vmoe.trainers.averaging import averaged_weights
from keras_vmoe.trainers.config import MESH, ONE_DEVICE, TrainConfig
from keras_vmoe.trainers.jax_evaluation import JaxEvaluation, mean_of_each
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.progress import Progress
from keras_vmoe.trainers.stopping import StopRequested, StopSignal
from keras_vmoe.trainers.tasks import Classification, verify
from keras_vmoe.trainers.workdir import OF_MEASURING, Workdir

Batch = Mapping[str, np.ndarray]

_NOTE = (
    "JAX trains without checkpoints and TensorBoard logs: a run that is interrupted cannot go on"
)
_DEVICES = (
    "training on JAX has no replicas, and takes all devices of this machine, TPUs too; leave it out"
)


class JaxRun:
    """Everything of one run. Making it builds the model; `execute` trains it.

    Args:
        config: the run's parameters.
        workdir: the run's folder.
        stop: tells of Ctrl-C and SIGTERM.

    Raises:
        ValueError: a wrong parameter, one that training on JAX lacks, or a folder with a run.
        OSError: data or folder that cannot be read or written.
    """

    def __init__(self, config: TrainConfig, workdir: Workdir, stop: StopSignal) -> None:
        require_supported(config)
        self.config, self.workdir, self._stop = config, workdir, stop
        tf.config.set_visible_devices([], "GPU")  # the data alone is TensorFlow's
        self.mesh = make_mesh(config.mesh)
        keras.utils.set_random_seed(config.seed)
        self.source = config.dataset()
        if isinstance(self.source, Pairs | data.BoxSource):
            what = "image-text pairs" if isinstance(self.source, Pairs) else "images with boxes"
            raise ValueError(
                f"{self.source.name!r} holds {what}, on which training on JAX is not "
                "built; train on TensorFlow: unset KERAS_BACKEND"
            )
        self.task = Classification(config, self.source)
        self.steps_per_epoch = self.source.train.steps_per_epoch(config.batch_size)
        self.total_steps, self.step = config.total_steps(self.steps_per_epoch), 0
        self.model, self._optimizer = self._build()
        self.config_text = gin_config.operative()
        if not self.finished():
            require_empty(workdir)
        if self.mesh.size > 1:
            distribution.require_groups(self.model, self.mesh, config.batch_size)
        self._train_step = distribution.JaxTrainStep(
            self.mesh,
            self.model,
            self._optimizer,
            config.image_losses,
            predict=config.class_logits,
        )
        self._evaluation = JaxEvaluation(
            self.mesh, self.model, config.image_losses, config.class_logits
        )
        self._eval_batch_size = self._whole_shares(
            min(config.eval_batch_size, self.source.eval.num_examples)
        )
        self._progress: Progress | None = None

    def finished(self) -> bool:
        """Tells whether the folder holds all that this run would make."""
        differ = set(self.workdir.changes(self.config_text)) - OF_MEASURING
        return (
            not differ
            and not any(self.workdir.checkpoints.glob("*"))  # which a run on TensorFlow leaves
            and self.workdir.metrics.last("eval", self.total_steps) is not None
            and zipfile.is_zipfile(self.workdir.model)
        )

    def execute(self) -> None:
        """Trains to the end, and writes the results.

        Raises:
            StopRequested: after a signal.
            OSError: if something cannot be written.
        """
        self.workdir.write_config(self.config_text)
        self._progress = Progress(self.total_steps, self.config.batch_size)
        try:
            self._alternate()
        except tf.errors.OpError:
            verify(self.source)
            raise
        finally:
            self._progress.close()
        with self._averaged_weights():
            self._draw_routing()
            self.task.save(self.model, self.workdir)

    def _alternate(self) -> None:
        every, feed = self.config.eval_every, self._training_batches()
        while self.step < self.total_steps:
            self._take_round(feed)
            if self.step >= self.total_steps or (every and self.step % every == 0):
                self._evaluate()

    def _take_round(self, feed: Iterator[Batch]) -> None:
        """Takes the steps of one row of training metrics, and writes it."""
        config, first = self.config, self.step
        # As on TensorFlow, whose rounds end at checkpoints, too.
        intervals = (config.log_every, config.eval_every, config.checkpoint_every)
        ends = [(first // n + 1) * n for n in intervals if n]
        end = min(self.total_steps, *ends)
        began, steps = time.monotonic(), []
        while self.step < end:
            self._stop.check()
            steps.append(self._train_step(next(feed)))
            self.step += 1
            # The host is one step ahead, and not more: batches would pile up.
            steps[max(len(steps) - 2, 0)]["loss"].block_until_ready()
            self._progress.update(self.step)
            if self.step == 1 < end:  # it compiled, and is no measure of speed
                began, first = time.monotonic(), 1
        found = mean_of_each(steps)
        found["learning_rate"] = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        seconds = time.monotonic() - began
        found["images_per_second"] = (self.step - first) * config.batch_size / seconds
        self._write_row("train", found)
        self._progress.set_metrics(found)
        bad = [i for i, step in enumerate(steps) if not np.isfinite(step["loss"])]
        if bad:
            raise self._diverged("the training loss", self.step - len(steps) + 1 + bad[0])

    def _evaluate(self) -> None:
        began = time.monotonic()
        with self._averaged_weights():
            found = self._evaluation.means(
                self._held_out_batches().as_numpy_iterator(), self._stop.check
            )
        seconds = time.monotonic() - began
        found["images_per_second"] = self.source.eval.num_examples / seconds
        self._write_row("eval", found)
        self._progress.pause(seconds)
        self._progress.note(announcements.of_evaluation(found, self.step, self.total_steps))
        if not math.isfinite(found["loss"]):
            raise self._diverged("the held-out loss", self.step)

    def _write_row(self, split: str, found: Mapping[str, float]) -> None:
        head = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "split": split}
        first = {name: found[name] for name in ("loss", "accuracy", "auxiliary_loss")}
        self.workdir.metrics.append({**head, **first, **found})

    def _diverged(self, what: str, step: int) -> ValueError:
        rate = optimizers.learning_rate_at(self._optimizer, step - 1)
        return ValueError(
            f"the run diverged: {what} is not finite at step {step}, learning rate {rate:.3g}. "
            "Try a lower learning rate, a longer warm-up or a smaller clipnorm, in another "
            "--workdir"
        )

    def _draw_routing(self) -> None:
        count = self.config.routing_images
        if count and models.is_sparse(self.model):
            images, records = results.record_routing(
                self.model, self.task, self._held_out_batches(), count, self._eval_batch_size
            )
            results.draw_routing(images, records, count, self.workdir)

    # The parts.

    def _build(self) -> tuple[keras.Model, keras.optimizers.Optimizer]:
        optimizer = self.config.optimizer(
            total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        model = distribution.build_model(self._make_model, self.mesh)
        return model, distribution.build_optimizer(optimizer, model, self.mesh)

    def _make_model(self) -> keras.Model:
        return self.task.make_model()

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        return averaged_weights(self.model, self._optimizer)

    def _training_batches(self) -> Iterator[Batch]:
        return self.task.training_batches().as_numpy_iterator()

    def _held_out_batches(self) -> tf.data.Dataset:
        return self.task.held_out_batches(self._eval_batch_size)

    def _whole_shares(self, batch_size: int) -> int:
        """The size of a padded batch that the devices can share, groups and all."""
        if self.mesh.size == 1:
            return batch_size
        groups = [layer.images_per_group for layer in models.moe_layers(self.model)]
        share = math.lcm(*groups) * self.mesh.batch_parts
        return math.ceil(batch_size / share) * share


def require_supported(config: TrainConfig) -> None:
    """Raises a `ValueError` for a parameter that only training on TensorFlow has."""
    for given, message in (
        (
            config.distribution not in (ONE_DEVICE, MESH),
            f"train.distribution={config.distribution!r}: {_DEVICES}",
        ),
        (config.tpu is not None, f"train.tpu={config.tpu!r}: {_DEVICES}"),
        (
            config.init_from is not None,
            f"train.init_from={config.init_from!r}: training on JAX draws its first weights; leave "
            "it out",
        ),
        (
            bool(config.retokenization),
            f"train.retokenization={config.retokenization!r}: training on JAX has one graph; leave "
            "it out",
        ),
        *(
            (
                True,
                f"{one.parameter}: training on JAX has no {one.label.partition(' ')[0]} "
                f"measurement; leave it out, and use keras-vmoe {one.command} --workdir=DIR (on "
                "TensorFlow) afterwards",
            )
            for one in config.measurements
        ),
    ):
        if given:
            raise ValueError(f"{message}, or train on TensorFlow: unset KERAS_BACKEND")


def require_empty(workdir: Workdir) -> None:
    """Raises a `ValueError` for a folder with measurements, a model or checkpoints of a run."""
    saved = (workdir.model, *workdir.checkpoints.glob("*"))
    if workdir.metrics.rows() or any(path.exists() for path in saved):
        raise ValueError(
            f"--workdir={workdir.path} holds a run; training on JAX cannot go on from it, and "
            "would replace it: use another --workdir, or remove this one"
        )


def make_mesh(text: str | None) -> distribution.JaxMesh:
    """Returns the mesh of a `train.mesh`; where there is none, rows of all devices.

    Where the CPU is all there is, it is cut into as many devices, if JAX has not started yet.

    Args:
        text: such as "batch:2,expert:4".

    Raises:
        ValueError: another text, other sizes than the devices have, or several processes.
    """
    import jax

    sizes = {} if text is None else parse_sizes(text)
    if sizes and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started; the mesh counts its devices
            jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
    if jax.process_count() > 1:
        raise ValueError(
            f"training on JAX is for one process, this job has {jax.process_count()}; for several, "
            "distribution.JaxTrainStep takes each one's share of a batch"
        )
    return distribution.JaxMesh(**(sizes or {"batch": jax.device_count()}))


def execute(config: TrainConfig, workdir: Workdir) -> int:
    """Trains from the beginning to the end.

    Args:
        config: the run's parameters.
        workdir: its folder, without a run or with this one, finished.

    Returns:
        The exit code: 0, or 130 / 143 after a signal.
    """
    began = time.monotonic()
    with workdir.locked(), StopSignal() as stop:
        run = JaxRun(config, workdir, stop)
        if run.finished():
            print(announcements.of_finished(workdir, run.total_steps, run.total_steps))
            return 0
        further = [("devices", f"{run.mesh}, JAX on {run.mesh.devices.flat[0].device_kind}")]
        further.append(("note", _NOTE))
        announcements.introduce(
            config, run.source, run.task, run.model, run.total_steps, workdir, further
        )
        try:
            run.execute()
        except StopRequested as request:
            print(
                f"stopped by {request} at step {run.step} of {run.total_steps}; what it measured "
                f"is in {workdir.path}, its weights are lost; to train anew use another --workdir "
                "or remove it",
                file=sys.stderr,
            )
            return request.exit_code
    announcements.conclude(run.source, workdir, time.monotonic() - began)
    return 0
