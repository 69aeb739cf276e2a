"""A run on a mesh of devices: its mesh, its loop, and weights that come from elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import tensorflow as tf
from tensorflow.experimental import dtensor

from keras_vmoe import distribution
from keras_vmoe.distribution.grid import parse_sizes
from keras_vmoe.trainers.loop import TrainingLoop
from keras_vmoe.trainers.tasks import Batch


def make_mesh(text: str) -> distribution.Mesh:
    """Returns the mesh of a `train.mesh`, before TensorFlow's first use.

    Without an accelerator, the CPU is cut into as many devices.

    Args:
        text: such as "batch:2,expert:4".

    Raises:
        ValueError: another text, other sizes than the devices have, or several processes.
    """
    sizes = parse_sizes(text)
    if dtensor.num_clients() > 1:
        raise ValueError(
            f"train.mesh={text!r} is for one process, but DTENSOR_JOBS names "
            f"{dtensor.num_clients()}; unset it, and give this process all the devices"
        )
    if dtensor.preferred_device_type() == "CPU":
        distribution.virtual_cpus(sizes.get("batch", 1) * sizes.get("expert", 1))
    return distribution.Mesh(**sizes)


class MeshLoop(TrainingLoop):
    """The same steps on a mesh: the data comes from the host, each device takes its part.

    Args:
        mesh: where model and optimizer are.
        **parts: as of `TrainingLoop`; its strategy has one replica, the mesh.
    """

    def __init__(self, *, mesh: distribution.Mesh, **parts: object) -> None:
        super().__init__(**parts)
        distribution.place_metrics(self.metrics, mesh)
        self._mesh = mesh
        self._train_on_mesh = mesh.function(functools.partial(self._replica_train_step, self.model))
        self._eval_on_mesh = mesh.function(self._replica_eval_step)

    def compiled(self, step: Callable) -> Callable:
        """The step itself: only its part on the mesh is a graph."""
        return step

    def train_step(
        self, model: keras.Model, iterator: tf.data.Iterator, signal: tf.Tensor
    ) -> tf.Tensor:
        """Takes one step of the one graph; returns the signal, for there is one process."""
        self._train_on_mesh(self._split(next(iterator)))
        self.global_step.assign_add(1)
        return signal

    def eval_step(self, iterator: tf.data.Iterator) -> None:
        """Evaluates one batch."""
        self._eval_on_mesh(self._split(next(iterator)))

    def _split(self, batch: Batch) -> Batch:
        return self._mesh.split({name: value.numpy() for name, value in batch.items()})

    def reset(self) -> None:
        """Empties all running means."""
        with self._mesh.scope():
            super().reset()

    def _results(self) -> dict[str, float]:
        with self._mesh.scope():
            return super()._results()


def copy_to_mesh(model: keras.Model, meshed: keras.Model, mesh: distribution.Mesh) -> None:
    """Gives a model on a mesh the weights of one that is not.

    Args:
        model: on this machine.
        meshed: one like it, on the mesh.
        mesh: where that is.
    """
    for ours, theirs in zip(model.weights, meshed.weights, strict=True):
        distribution.assign(theirs, keras.ops.convert_to_numpy(ours), mesh)
