"""Checkpoints that a run can go on from as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import tensorflow as tf

from keras_vmoe.trainers.loop import ClassificationLoop


def seed_states(model: keras.Model) -> list[tf.Variable]:
    """Returns the states of a model's random number generators.

    TensorFlow's object graph does not reach them, yet dropout and router noise after a resume
    depend on them.

    Args:
        model: a built model.
    """
    weights = {id(v) for v in model.weights}
    return [v.value for v in model.variables if id(v) not in weights]


class Checkpoints:
    """Saves and restores everything that a step depends on: weights, slots, step, seeds, means.

    Args:
        loop: what is trained.
        folder: where the checkpoints are.
        keep: how many are kept.
    """

    def __init__(self, loop: ClassificationLoop, folder: Path, keep: int) -> None:
        self._step = loop.global_step
        self.checkpoint = tf.train.Checkpoint(
            model=loop.model,
            optimizer=loop.optimizer,
            step=loop.global_step,
            seeds=seed_states(loop.model),
            means=[v.value for metric in loop.metrics for v in metric.variables],
        )
        self._manager = tf.train.CheckpointManager(self.checkpoint, str(folder), max_to_keep=keep)

    @property
    def latest(self) -> str | None:
        """The path of the newest checkpoint, or None."""
        return self._manager.latest_checkpoint

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one.

        Returns:
            The step to go on from; 0 for a new run.

        Raises:
            ValueError: if the checkpoint is not of this model and optimizer, or is damaged.
        """
        if self.latest is None:
            return 0
        try:
            self.checkpoint.restore(self.latest).assert_consumed()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"cannot resume from {self.latest}: {reason}; "
                "use another --workdir, or remove this checkpoint to go on from the one before"
            ) from error
        return int(self._step.numpy())

    def save(self) -> str | None:
        """Saves a checkpoint at the current step, unless the newest is of this step.

        Returns:
            The path.

        Raises:
            OSError: if it cannot be written; those before are kept.
        """
        step = int(self._step.numpy())
        if self.latest and self.latest.endswith(f"-{step}"):
            return self.latest
        try:
            return self._manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            self._remove_parts(step)
            raise OSError(
                f"cannot save a checkpoint to {self._manager.directory} "
                f"({_reason(error)}); the one before is whole: free some space and give the same "
                "command to go on from it"
            ) from error

    def _remove_parts(self, step: int) -> None:
        # What a failed save leaves: half a file, and a folder of parts that were to be merged.
        for part in Path(self._manager.directory).glob(f"ckpt-{step}[._]*"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    # TensorFlow puts the path before the system's words: "/…/part-0; No space left on device".
    return str(error).splitlines()[0].rpartition(";")[2].strip()
