"""Checkpoints that a run can go on from as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_vmoe.trainers.loop import TrainingLoop

# The subfolder of the best checkpoint.
BEST = "best"


def step_of(path: str) -> int:
    """Returns the step of a checkpoint's path.

    Example:
        >>> step_of("run/checkpoints/ckpt-120")
        120
    """
    return int(path.rpartition("-")[2])


def seed_states(model: keras.Model) -> list[tf.Variable]:
    """Returns the states of a model's random number generators.

    TensorFlow's object graph does not reach them, yet dropout and router noise after a resume
    depend on them.

    Args:
        model: a built model.
    """
    weights = {id(v) for v in model.weights}
    return [v.value for v in model.variables if id(v) not in weights]


def newest_first(folder: Path) -> list[str]:
    """Returns the paths of the checkpoints in a folder, by the files themselves.

    The list that TensorFlow keeps beside them can be damaged too.
    """
    paths = (str(file.with_suffix("")) for file in folder.glob("ckpt-*.index"))
    return sorted(paths, key=step_of, reverse=True)


def written_after(file: Path, checkpoint: str) -> bool:
    """Whether a file was written at the time of a checkpoint or later.

    A run writes its model after its last checkpoint: an older one is of a shorter run.
    """
    return file.stat().st_mtime_ns >= Path(f"{checkpoint}.index").stat().st_mtime_ns


class NotFiniteError(ValueError):
    """A weight or slot that is NaN or infinite; the message is its path."""


class Checkpoints:
    """Saves and restores everything that a step depends on: weights, slots, step, seeds, means.

    Args:
        loop: what is trained.
        folder: where the checkpoints are; the best one lies in its subfolder `best`.
        keep: how many of the newest are kept.
        warn: called with a line of text when a damaged checkpoint is passed over.
        restore_from: where to look for checkpoints to go on from, if not in `folder`.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        folder: Path,
        keep: int,
        warn: Callable[[str], None] = print,
        restore_from: Path | None = None,
    ) -> None:
        self._restore_from = restore_from or folder
        self._step = loop.global_step
        self._variables = [*loop.model.weights, *loop.optimizer.variables]
        self._warn = warn
        self.checkpoint = tf.train.Checkpoint(
            model=loop.model,
            optimizer=loop.optimizer,
            step=loop.global_step,
            seeds=seed_states(loop.model),
            means=[v.value for metric in loop.metrics for v in metric.variables],
        )
        self._newest = tf.train.CheckpointManager(self.checkpoint, str(folder), max_to_keep=keep)
        self._best = tf.train.CheckpointManager(self.checkpoint, str(folder / BEST), max_to_keep=1)
        self._good: str | None = None

    @property
    def latest(self) -> str | None:
        """The path of the newest checkpoint that is known to be whole, or None."""
        return self._good if self._good is not None and _exists(self._good) else None

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, or None."""
        path = self._best.latest_checkpoint
        return step_of(path) if path is not None and _exists(path) else None

    def restore(self) -> int:
        """Restores the newest checkpoint that is whole, if there is one.

        Returns:
            The step to go on from; 0 for a new run.

        Raises:
            ValueError: if the checkpoints are not of this model and optimizer, or all damaged.
        """
        damaged: list[str] = []
        for path in newest_first(self._restore_from):
            reason = self._try_restore(path)
            if reason is None:
                self._good = path
                for line in damaged:
                    self._warn(f"{line}; going on from the one before, step {step_of(path):,}")
                return step_of(path)
            damaged.append(f"{path} is damaged ({reason})")
        if damaged:
            raise ValueError(
                f"cannot resume: {'; '.join(damaged)}; use another --workdir, or remove "
                f"{self._restore_from} to begin anew"
            )
        return 0

    def _try_restore(self, path: str) -> str | None:
        """Restores one checkpoint, or returns why its files cannot be read."""
        try:
            self.checkpoint.restore(path).assert_consumed()
        except (tf.errors.OpError, IndexError) as error:  # IndexError: a file that was cut short
            return str(error).splitlines()[0]
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"cannot resume from {path}: {str(error).splitlines()[0]}; it is of another model "
                "or optimizer: use another --workdir, or remove this one"
            ) from error
        return None

    def save(self) -> str:
        """Saves a checkpoint at the current step, unless the newest is of this step.

        A folder that has vanished is made again, with a warning.

        Returns:
            The path.

        Raises:
            NotFiniteError: if a weight is not finite; nothing is written then.
            OSError: if it cannot be written; those before are kept.
        """
        step = int(self._step.numpy())
        if self._good is None or step_of(self._good) != step or not _exists(self._good):
            self._good = self._write(self._newest, step)
        return self._good

    def save_best(self) -> str:
        """Saves a checkpoint at the current step as the best; the former best is removed after.

        Raises:
            NotFiniteError, OSError: as `save` does.
        """
        return self._write(self._best, int(self._step.numpy()))

    def _write(self, manager: tf.train.CheckpointManager, step: int) -> str:
        for variable in self._variables:
            # A sum is not finite as soon as one of its terms is not.
            if not np.isfinite(float(keras.ops.sum(keras.ops.cast(variable, "float32")))):
                raise NotFiniteError(variable.path)
        folder = Path(manager.directory)
        if manager.latest_checkpoint is not None and not folder.exists():
            self._warn(f"{folder} has vanished; making it again, from step {step:,} on")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            self._remove_parts(folder, step)
            before = "; the one before is whole" if self.latest else ""
            raise OSError(
                f"cannot save a checkpoint to {manager.directory} ({_reason(error)}){before}: free "
                "some space and give the same command to go on"
            ) from error

    @staticmethod
    def _remove_parts(folder: Path, step: int) -> None:
        # What a failed save leaves: half a file, and a folder of parts that were to be merged.
        for part in folder.glob(f"ckpt-{step}[._]*"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _exists(path: str) -> bool:
    """Whether a checkpoint still lies where it was saved."""
    return Path(f"{path}.index").exists()


def _reason(error: Exception) -> str:
    # TensorFlow puts the path before the system's words: "/…/part-0; No space left on device".
    return str(error).splitlines()[0].rpartition(";")[2].strip()
