"""A training run: from a config and a folder to a trained model, and on from where it stopped."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import orbit
import tensorflow as tf

from keras_vmoe import checkpoints, distribution, models
from keras_vmoe.trainers import (
    announcements,
    errors,
    gin_config,
    meshed,
    optimizers,
    results,
    strategies,
)
from keras_vmoe.trainers.averaging import averaged_weights
from keras_vmoe.trainers.checkpointing import Checkpoints, NotFiniteError, written_after
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.initialize import initialize
from keras_vmoe.trainers.loop import TrainingLoop
from keras_vmoe.trainers.measurement import Measurement
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.progress import Progress
from keras_vmoe.trainers.retokenization import Retokenization, phases_of
from keras_vmoe.trainers.stopping import StopRequested, StopSignal
from keras_vmoe.trainers.summaries import Summaries, begin_session
from keras_vmoe.trainers.tasks import make_task, verify
from keras_vmoe.trainers.workdir import Workdir

if TYPE_CHECKING:
    from keras_vmoe import data


class Run:
    """Everything of one run. Making it builds the model; `execute` trains it.

    Args:
        config: the run's parameters.
        workdir: the run's folder.
        stop: tells of Ctrl-C and SIGTERM.
        chief: the folder that this one is a worker's part of, where there are several processes.

    Raises:
        ValueError: a wrong parameter, or a folder with a run of another configuration.
        OSError: data or folder that cannot be read or written.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: Workdir,
        stop: StopSignal,
        chief: Workdir | None = None,
    ) -> None:
        self.config, self.workdir = config, workdir
        self._chief = chief or workdir
        # Before anything else of TensorFlow.
        self._mesh = None if config.mesh is None else meshed.make_mesh(config.mesh)
        self._strategy = strategies.make_strategy(config.distribution, config.tpu)
        stop.listen_again()
        replicas = self._strategy.num_replicas_in_sync
        strategies.check_batch_size("batch_size", config.batch_size, replicas)
        keras.utils.set_random_seed(config.seed)
        self.source = self._load_source()
        self.task = make_task(config, self.source)
        self._measurements = (*config.measurements, *self.task.measurements)
        self.steps_per_epoch = self.source.train.steps_per_epoch(config.batch_size)
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.notices = [line for one in self._measurements for line in one.prepare(self.source)]
        with self._strategy.scope():
            self.model, self._optimizer = self._build()
        if replicas > 1:
            strategies.separate_noise(self.model)
        self.config_text = gin_config.operative()
        self.changes = self._chief.check_config(self.config_text)
        # Evaluation is padded: the replicas get whole shares of what is there.
        size = min(config.eval_batch_size, self.source.eval.num_examples)
        self._eval_batch_size = math.ceil(size / replicas) * replicas
        self._eval_steps = math.ceil(self.source.eval.num_examples / self._eval_batch_size)
        self._progress: Progress | None = None
        self._evaluated = 0
        if self._mesh is not None:
            self._require_groups()
        self.phases = self._phases()
        self.loop = self._make_loop(
            strategy=self._strategy,
            model=self.model,
            optimizer=self._optimizer,
            task=self.task,
            eval_batches=self._distribute(self._batches, self._eval_batch_size),
            batch_size=config.batch_size,
            stop=stop,
            on_step=self._on_step,
            on_eval_step=self._on_eval_step,
            phases=self.phases,
        )
        self.checkpoints = Checkpoints(
            self.loop,
            workdir.checkpoints,
            config.keep_checkpoints,
            warn=errors.warn,
            restore_from=self._chief.checkpoints,
        )
        self.first_step = self._restore()
        self.transfer: checkpoints.Transfer | None = None
        if config.init_from and not self.first_step:
            model = self._model_here()
            self.transfer = initialize(model, config.init_from, config.keep_head, config.upcycle)
            if self._mesh is not None:
                meshed.copy_to_mesh(model, self.model, self._mesh)
        self.loop.feed(self._distribute(self._training_batches, config.batch_size))

    def _load_source(self) -> data.ImageSource | data.BoxSource | Pairs:
        """The data; of pairs with the tokenizer that the run, if there is one, was begun with."""
        source = self.config.dataset()
        if isinstance(source, Pairs) and self._chief.has_checkpoints():
            source.take_tokenizer(self._chief.tokenizer)
        return source

    def _restore(self) -> int:
        """Returns the step of the checkpoint to go on from; 0 where there is none."""
        step = self.checkpoints.restore()
        if not step and self._chief.model.exists():
            raise ValueError(
                f"--workdir={self._chief.path} holds a trained model.keras, but no checkpoint to "
                "go on from, and training anew would replace it; use another --workdir, or remove "
                "this one"
            )
        if self.loop.several_processes:
            strategies.check_agreement(self._strategy, step)
        return step

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return int(self.loop.global_step.numpy())

    @property
    def devices(self) -> str:
        """What the run trains on, in words."""
        if self._mesh is None:
            return strategies.describe(self._strategy)
        return f"{self._mesh}, TensorFlow on {self._mesh.device_type}"

    def finished(self) -> bool:
        """Tells whether the folder holds all that this run would make."""
        return (
            self.first_step >= self.total_steps
            and self._chief.metrics.last("eval", self.first_step) is not None
            and zipfile.is_zipfile(self._chief.model)
            and written_after(self._chief.model, self.checkpoints.latest)
        )

    def execute(self) -> None:
        """Trains from the step that was restored to the end, and writes the results.

        Raises:
            StopRequested: after a signal; a checkpoint of the step reached has been saved.
            ConnectionError: if another process of the run died or cannot be reached.
            OSError: if something cannot be written.
        """
        self.workdir.metrics.keep_until(self.first_step)
        self.workdir.write_config(self.config_text)
        if isinstance(self.source, Pairs):
            self.source.tokenizer.save(self.workdir.tokenizer)
        self._progress = Progress(self.total_steps, self.config.batch_size, self.first_step)
        for part in ("train", "eval"):
            begin_session(self.workdir.tensorboard / part, self.first_step)
        self._summaries = Summaries(self.workdir.tensorboard / "eval")
        self._summaries.config(self.config_text, self.first_step)
        try:
            self._alternate()
        except StopRequested:
            self._save(self.checkpoints.save)
            raise
        except tf.errors.UnavailableError as error:
            raise ConnectionError(
                f"another worker does not answer after step {self.step}; start all of them again "
                f"with the same command, and they go on from {self.checkpoints.latest or 'step 0'}"
            ) from error
        except tf.errors.OpError:
            verify(self.source)
            raise
        finally:
            self._progress.close()
            self._summaries.close()
        self._write_results()

    def _alternate(self) -> None:
        config, controller = self.config, self._controller()
        intervals = [n for n in (config.eval_every, config.checkpoint_every) if n]
        if self._evaluation_is_due():
            self._evaluate(controller)
        else:
            self._keep_best()  # a run that died before it could
        while self.step < self.total_steps:
            ends = [(self.step // n + 1) * n for n in intervals]
            with _without_stdout():
                controller.train(min([self.total_steps, *ends]), checkpoint_at_completion=False)
            if self._is_due(config.checkpoint_every):
                self._save(self.checkpoints.save)
            if self._evaluation_is_due():
                self._evaluate(controller)

    def _is_due(self, interval: int | None) -> bool:
        at_interval = interval is not None and self.step > 0 and self.step % interval == 0
        return at_interval or self.step >= self.total_steps

    def _evaluation_is_due(self) -> bool:
        # A run that was killed between a checkpoint and its evaluation makes up for it.
        done = self.workdir.metrics.last("eval", self.step) is not None
        return self._is_due(self.config.eval_every) and not done

    def _evaluate(self, controller: orbit.Controller) -> None:
        began = time.monotonic()
        self._evaluated = 0
        with _without_stdout(), self._averaged_weights():
            # By count: at the end of the data a strategy hands out one more batch, an empty one,
            # which the metrics of the layers would take for a batch of zeros.
            controller.evaluate(self._eval_steps)
            self._show_routing(drawn=self._is_due(self.config.picture_every))
        self._keep_best()
        self._progress.pause(time.monotonic() - began)

    def _keep_best(self) -> None:
        now = self.workdir.metrics.last("eval", self.step)
        if not self.config.keep_best or now is None:
            return
        # Between the steps of several processes nothing is measured but the accuracy.
        score = next((name for name in self.task.scores if name in now), "accuracy")
        # Of the best checkpoint's own evaluation; a resume may have cut that one off.
        best_step = self.checkpoints.best_step
        best = None if best_step is None else self.workdir.metrics.last("eval", best_step)
        if best is None or now[score] > best[score]:
            self._save(self.checkpoints.save_best)

    def _due_measurements(self) -> list[Measurement]:
        ended = self.step >= self.total_steps
        if self.loop.several_processes:
            return []
        return [one for one in self._measurements if ended or one.is_due(self.step)]

    def _bring_back_workdir(self) -> None:
        """Makes a workdir again that vanished while the run goes on."""
        if not self.workdir.config.exists():
            self.workdir.path.mkdir(parents=True, exist_ok=True)
            self.workdir.write_config(self.config_text)

    def _save(self, save: Callable[[], object]) -> None:
        self._bring_back_workdir()
        try:
            save()
        except NotFiniteError as error:
            raise self._diverged(f"{error} is not finite", self.step) from error

    def _show_routing(self, drawn: bool) -> None:
        if not models.is_sparse(self.model):
            return
        count = self.config.routing_images
        images, records = results.record_routing(
            self._model_here(), self.task, self._batches(), count, self._eval_batch_size
        )
        self._summaries.expert_load(records, self.step)
        if drawn and count:
            results.draw_routing(images, records, count, self.workdir)
            self._summaries.picture("routing", self.workdir.routing, self.step)

    def _write_results(self) -> None:
        with self._averaged_weights():
            self.task.save(self._model_here(), self.workdir)

    # The parts.

    def _build(self) -> tuple[keras.Model, keras.optimizers.Optimizer]:
        config = self.config
        optimizer = config.optimizer(
            total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        if self._mesh is not None:
            model = distribution.build_model(self._make_model, self._mesh)
            return model, distribution.build_optimizer(optimizer, model, self._mesh)
        model = self._make_model()
        optimizer.build(model.trainable_variables)
        return model, optimizer

    def _make_model(self) -> keras.Model:
        return self.task.make_model()

    def _phases(self) -> Retokenization | None:
        coarse = phases_of(self.config.retokenization)
        if not coarse:
            return None
        return Retokenization(self.model, coarse, self.steps_per_epoch, self.total_steps)

    def _make_loop(self, **parts: Any) -> TrainingLoop:
        if self._mesh is None:
            return TrainingLoop(**parts)
        return meshed.MeshLoop(mesh=self._mesh, **parts)

    def _require_groups(self) -> None:
        asked, size = self.config.eval_batch_size, self._eval_batch_size
        cut = "" if size == asked else f" (at most the {size} images held out)"
        for name, count in (
            ("train.batch_size", self.config.batch_size),
            (f"train.eval_batch_size{cut}", size),
        ):
            distribution.require_groups(self.model, self._mesh, count, name)

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        return averaged_weights(self.model, self._optimizer, self._mesh)

    def _model_here(self) -> keras.Model:
        """The model; of one on a mesh, a copy on this machine."""
        if self._mesh is None:
            return self.model
        return distribution.gather_model(self.model, self._mesh)

    def _distribute(
        self, make: Callable[[int, int], tf.data.Dataset], batch_size: int
    ) -> tf.data.Dataset:
        return strategies.distribute(self._strategy, make, batch_size)

    def _batches(self, num_shards: int = 1, shard_index: int = 0) -> tf.data.Dataset:
        return self.task.held_out_batches(self._eval_batch_size, num_shards, shard_index)

    def _training_batches(self, num_shards: int = 1, shard_index: int = 0) -> tf.data.Dataset:
        return self.task.training_batches(self.first_step, num_shards, shard_index)

    def _controller(self) -> orbit.Controller:
        every = self.config.log_every
        return orbit.Controller(
            global_step=self.loop.global_step,
            trainer=self.loop,
            evaluator=self.loop,
            strategy=self._strategy,
            # Rounds end at multiples of log_every, also after a resume in between.
            steps_per_loop=lambda step: every - int(step) % every,
            train_actions=[lambda output: self._record("train", output)],
            eval_actions=[lambda output: self._record("eval", output)],
            summary_dir=str(self.workdir.tensorboard / "train"),
            eval_summary_dir=str(self.workdir.tensorboard / "eval"),
        )

    # What is told while it runs.

    def _on_step(self, step: int) -> None:
        self._progress.update(step)

    def _on_eval_step(self) -> None:
        self._evaluated += 1
        self._progress.aside("evaluating", self._evaluated, self._eval_steps)

    def _diverged(self, what: str, step: int) -> ValueError:
        rate = optimizers.learning_rate_at(self._optimizer, step - 1)
        good = self.checkpoints.latest
        saved = f"the last good checkpoint is {good}" if good else "no checkpoint was saved before"
        return ValueError(
            f"the run diverged: {what} at step {step}, learning rate {rate:.3g}; {saved}. Try a "
            "lower learning rate, a longer warm-up or a smaller clipnorm, in another --workdir"
        )

    def _record(self, split: str, output: Mapping[str, float]) -> None:
        step = self.step
        measured = self._measure() if split == "eval" else {}
        output = {**output, **measured}
        bad_step = self.loop.first_bad_step
        head = {"step": step, "epoch": step / self.steps_per_epoch, "split": split}
        self._bring_back_workdir()
        self.workdir.metrics.append({**head, **output})
        if split == "train":
            self._progress.set_metrics(output)
            if bad_step is not None:
                raise self._diverged("the training loss is not finite", bad_step)
        else:
            self._progress.note(
                announcements.of_evaluation(output, step, self.total_steps)
                + "".join(f"  {name} {value:.2%}" for name, value in measured.items())
            )

    def _measure(self) -> dict[str, float]:
        """What is measured at evaluations beside them, if it is due."""
        measured: dict[str, float] = {}
        due = self._due_measurements()
        model = self._model_here() if due else None
        for one in due:
            count = itertools.count(1)

            def on_batch(one: Measurement = one, count: Iterator[int] = count) -> None:
                self.loop.stop.check()
                self._progress.aside(one.label, next(count), one.passes)

            measured |= one.measure(model, self.source, on_batch)
        self._summaries.scalars(measured, self.step)
        return measured


def execute(config: TrainConfig, workdir: Workdir) -> int:
    """Trains, or says that there is nothing left to train.

    Args:
        config: the run's parameters.
        workdir: its folder; a run that it holds goes on.

    Returns:
        The exit code: 0, or 130 / 143 after a signal.
    """
    began = time.monotonic()
    workers, index = strategies.task(config.distribution)
    if workers > 1:
        for one in config.measurements:
            raise ValueError(
                f"{one.parameter}: between the steps of several processes there is no "
                f"{one.label.partition(' ')[0]} measurement; leave it out, and use keras-vmoe "
                f"{one.command} --workdir=DIR afterwards"
            )
    own = workdir.of_worker(index)
    with own.locked(), StopSignal() as stop:
        run = Run(config, own, stop, chief=workdir)
        if run.finished():
            steps, scores = (run.first_step, run.total_steps), run.task.scores
            print(announcements.of_finished(workdir, *steps, scores))
            return 0
        _introduce(run)
        try:
            run.execute()
        except StopRequested as request:
            print(
                f"stopped by {request} at step {run.step} of {run.total_steps}; saved in "
                f"{workdir.path}; the same command goes on from here",
                file=sys.stderr,
            )
            return request.exit_code
    announcements.conclude(run.source, own, time.monotonic() - began, run.task.scores)
    return 0


def _introduce(run: Run) -> None:
    further: list[tuple[str, object]] = [("devices", run.devices)]
    if run.phases:
        further.append(("tokens", str(run.phases)))
    if run.transfer:
        further.append(("weights", f"from {run.config.init_from}: {run.transfer}"))
    if run.first_step:
        further.append(("resume", f"from step {run.first_step:,}"))
    for change in run.changes:
        of_length = change.startswith(("train.epochs ", "train.steps "))
        meaning = ": the learning rate goes on by the schedule of the new length"
        further.append(("changed", f"{change}{meaning if of_length else ''}"))
    further += [("note", notice) for notice in run.notices]
    announcements.introduce(
        run.config, run.source, run.task, run.model, run.total_steps, run.workdir, further
    )


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    # Orbit prints each round; the progress bar tells the same in one line.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
