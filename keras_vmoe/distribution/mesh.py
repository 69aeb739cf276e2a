"""A mesh of devices: one axis for the batch, one for the experts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.dtensor.python import accelerator_util
from tensorflow.experimental import dtensor

from keras_vmoe import ops
from keras_vmoe.distribution import storage
from keras_vmoe.distribution.grid import Grid, require_axes
from keras_vmoe.ops.validation import require, require_choice, require_positive_int

DEVICE_TYPES = ("CPU", "GPU", "TPU")

# With this pass of DTensor, an optimizer reads moments from before their update: wrong, and
# without a word. It is on unless the variable is 0; DTensor reads it whenever it traces.
COMBINE_ALL_REDUCES = "DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION"


def virtual_cpus(count: int) -> None:
    """Cuts the CPU into devices, to try a mesh on one machine. Before TensorFlow's first use.

    Args:
        count: devices.

    Raises:
        ValueError: a count below 1.
        RuntimeError: if TensorFlow has started with another number of devices.

    Example:

    >>> from keras_vmoe import distribution
    >>> distribution.virtual_cpus(8)  # doctest: +SKIP
    """
    require_positive_int("count", count)
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise RuntimeError(
                f"virtual_cpus({count}) comes too late: TensorFlow has started already; call it "
                "before any tensor or model is made"
            ) from error


class Mesh(Grid):
    """Devices in a grid: images are split over one axis, experts over the other.

    Images (and the groups that they are routed in) are split over the `batch` axis, and every
    device of a row along `expert` works on the same images. With `batch=1` the images are split
    over the `expert` axis, too: then each device has its own images and its own experts, and
    tokens travel between them by all-to-all.

    Making a mesh sets `DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION=0` in the environment:
    with that pass of DTensor, optimizers train wrong without a word. On a TPU, and in a job of
    several processes (`DTENSOR_JOBS`, `DTENSOR_CLIENT_ID`), the first mesh also starts the devices
    and connects the processes: make it before anything else of TensorFlow.

    Args:
        batch: devices that the images are split over.
        expert: devices that the experts of a layer are split over.
        device_type: `"CPU"`, `"GPU"` or `"TPU"`; `None` takes the best there is.
        devices: names of this process' devices such as `"CPU:0"`; `None` takes all of the type.

    Raises:
        ValueError: sizes that do not make the number of devices, an unknown device type.
        RuntimeError: another backend than TensorFlow; on a TPU or with several processes, if
            TensorFlow has started already.

    Example:

    >>> from keras_vmoe import distribution
    >>> import numpy as np
    >>> mesh = distribution.Mesh(batch=1, expert=1, device_type="CPU")
    >>> mesh
    Mesh(batch=1, expert=1)
    >>> images = mesh.split(np.array([[1.0], [2.0]]))
    >>> mesh.gather(images).tolist()
    [[1.0], [2.0]]

    Reference: Lepikhin et al. 2020, arXiv 2006.16668 (GShard), section 3.3.
    """

    def __init__(
        self,
        batch: int = 1,
        expert: int = 1,
        device_type: str | None = None,
        devices: Sequence[str] | None = None,
    ) -> None:
        super().__init__(batch, expert)
        if (backend := keras.backend.backend()) != "tensorflow":
            raise RuntimeError(
                f"a Mesh needs the TensorFlow backend, this is {backend!r}; JAX has JaxMesh"
            )
        kind = (device_type or dtensor.preferred_device_type()).upper()
        require_choice("device_type", kind, DEVICE_TYPES)
        self.device_type = kind
        _require_devices(self, devices)
        os.environ[COMBINE_ALL_REDUCES] = "0"
        _start(kind)
        self.dtensor = _grid(self, devices)

    @property
    def batch_axis(self) -> str:
        """The axis of the mesh that images are split over."""
        return "batch" if self.batch > 1 else "expert"

    @property
    def batch_parts(self) -> int:
        """The number of parts that images are split into."""
        return self.dtensor.dim_size(self.batch_axis)

    @property
    def local_parts(self) -> list[int]:
        """Which of those parts the devices of this process have."""
        places = self.dtensor.local_device_locations()
        return sorted({place[self.batch_axis] for place in places})

    def layout(self, rank: int, axes: Sequence[str | None] = ()) -> dtensor.Layout:
        """DTensor's layout of a tensor, where no axis of the mesh splits two axes of the tensor.

        Args:
            rank: of the tensor.
            axes: for each leading axis `"batch"`, `"expert"` or `None`; of two that would be split
                over the same axis of the mesh, the first is.

        Raises:
            ValueError: an unknown axis, or more axes than the rank.
        """
        require_axes(rank, axes)
        names: list[str] = []
        for axis in axes:
            name = self.batch_axis if axis == "batch" else axis
            names.append(dtensor.UNSHARDED if name is None or name in names else name)
        return dtensor.Layout(names + [dtensor.UNSHARDED] * (rank - len(names)), self.dtensor)

    def lay_out(self, tensor: Any, axes: Sequence[str | None]) -> Any:
        """A tensor on the mesh in another layout; what `ops.lay_out` does within `scope`.

        Args:
            tensor: a tensor on this mesh.
            axes: as of `layout`.
        """
        return dtensor.relayout(tensor, self.layout(len(tensor.shape), axes))

    @contextlib.contextmanager
    def scope(self) -> Iterator[Mesh]:
        """Puts what is computed within a `with` block on the mesh.

        Raises:
            RuntimeError: if the pass that trains wrong was switched on again.
        """
        self.require_safe()
        with dtensor.default_mesh(self.dtensor), ops.laid_out_by(self.lay_out):
            yield self

    @staticmethod
    def require_safe() -> None:
        """Raises a `RuntimeError` if DTensor may combine all-reduces."""
        value = os.environ.get(COMBINE_ALL_REDUCES)
        if value != "0":
            raise RuntimeError(
                f"{COMBINE_ALL_REDUCES} must be 0, or optimizers train wrong without a word. "
                f"Received: {value!r}; the mesh had set it to 0, and something changed it"
            )

    def function(self, python_function: Callable[..., Any]) -> Callable[..., Any]:
        """A `tf.function` that is traced and run on the mesh.

        Args:
            python_function: takes and returns tensors on the mesh.
        """
        compiled = tf.function(python_function, autograph=False)

        def call(*args: Any) -> Any:
            with self.scope():
                return compiled(*args)

        return call

    def split(self, values: Any) -> Any:
        """Puts a batch on the mesh, its first axis split over the devices.

        In a job of several processes, each gives the share of its own devices (`local_parts` of
        `batch_parts`); processes with the same parts give the same images.

        Args:
            values: arrays `[b, ...]`, alone or in dicts, lists or tuples.

        Raises:
            ValueError: a batch that does not divide into equal parts.
        """
        return tf.nest.map_structure(self._split_one, values)

    def _split_one(self, value: Any) -> tf.Tensor:
        value = np.asarray(value)
        places = self.dtensor.local_device_locations()
        rows = self.local_parts
        self.require_batch(len(value), "the batch", len(rows))
        parts = dict(zip(rows, np.split(value, len(rows)), strict=True))
        layout = self.layout(value.ndim, ("batch",))
        return dtensor.pack([tf.constant(parts[p[self.batch_axis]]) for p in places], layout)

    def gather(self, tensor: Any) -> np.ndarray:
        """The whole of a tensor, from all devices of the mesh.

        Args:
            tensor: a tensor on this mesh, or a variable.
        """
        if not dtensor.is_dtensor(tensor):
            return np.asarray(tensor)
        with dtensor.default_mesh(self.dtensor):
            whole = dtensor.relayout(tf.identity(tensor), self.layout(len(tensor.shape)))
        return dtensor.unpack(whole)[0].numpy()

    def place(self, variable: keras.Variable, axes: Sequence[str | None]) -> None:
        """Moves a variable to the mesh; one without a value is made there, part by part.

        Args:
            variable: a Keras variable, with a value or without one yet.
            axes: as of `layout`.

        Raises:
            ValueError: a variable that was placed otherwise before.
        """
        layout = self.layout(len(variable.shape), axes)
        initializer = storage.initializer_of(variable)
        if initializer is not None:
            part_of = storage.parts_of(initializer, variable)
        elif not isinstance(variable.value, dtensor.DVariable):
            part_of = storage.slices_of(keras.ops.convert_to_numpy(variable.value))
        elif variable.value.layout == layout:
            return
        else:
            raise ValueError(
                f"{variable.path} lies on a mesh already, otherwise than it should now: a model "
                "is placed once, by one list of rules"
            )
        value = _packed(variable, layout, part_of)
        storage.set_storage(
            variable, dtensor.DVariable(value, trainable=variable.trainable, name=variable.name)
        )

    def assign(self, variable: keras.Variable, value: np.ndarray) -> None:
        """Gives a variable on the mesh another value of its shape, each device its part alone."""
        packed = _packed(variable, variable.value.layout, storage.slices_of(value))
        with dtensor.default_mesh(self.dtensor):
            variable.value.assign(packed)

    def shards(self, variable: keras.Variable) -> list[tf.Tensor]:
        """What this process' devices hold of a variable, in the order of the mesh."""
        with dtensor.default_mesh(self.dtensor):
            return list(dtensor.unpack(variable.value.read_value()))


def _packed(
    variable: keras.Variable,
    layout: dtensor.Layout,
    part_of: Callable[[storage.Borders], Any],
) -> tf.Tensor:
    """A tensor on the mesh; the host holds one part of it at a time."""
    devices = layout.mesh.local_devices()
    owners: dict[storage.Borders, list[int]] = {}
    for i, where in enumerate(layout.mesh.local_device_locations()):
        owners.setdefault(_borders(tuple(variable.shape), layout, where), []).append(i)
    tensors: list[Any] = [None] * len(devices)
    for borders, indices in owners.items():
        part = tf.cast(part_of(borders), variable.dtype)
        for i in indices:
            with tf.device(devices[i]):
                tensors[i] = tf.identity(part)
    return dtensor.pack(tensors, layout)


def _borders(
    shape: tuple[int, ...], layout: dtensor.Layout, where: dict[str, int]
) -> storage.Borders:
    """What a device has of a variable."""
    borders = []
    for size, name in zip(shape, layout.sharding_specs, strict=True):
        parts = 1 if name == dtensor.UNSHARDED else layout.mesh.dim_size(name)
        first = 0 if name == dtensor.UNSHARDED else where[name] * (size // parts)
        borders.append((first, first + size // parts))
    return tuple(borders)


def _require_devices(mesh: Mesh, devices: Sequence[str] | None) -> None:
    kind = mesh.device_type
    if kind == "TPU" and not tf.config.list_physical_devices("TPU"):
        raise ValueError("device_type='TPU', but there is no TPU on this machine")
    local = dtensor.num_local_devices(kind) if devices is None else len(devices)
    count = local * dtensor.num_clients()
    hint = "; distribution.virtual_cpus(n) makes n devices of a CPU" if kind == "CPU" else ""
    require(
        count == mesh.size,
        f"batch * expert must be the number of devices, {count} of type {kind}. "
        f"Received: {mesh}, which has {mesh.size}{hint}",
    )


def _start(kind: str) -> None:
    """Starts what DTensor must start itself: a TPU, and the cluster of several processes."""
    if accelerator_util.is_initialized() or (kind != "TPU" and dtensor.num_clients() == 1):
        return
    try:
        dtensor.initialize_accelerator_system(kind)
    except ValueError as error:
        if "TensorFlow has already been initialized" not in str(error):
            raise
        raise RuntimeError(
            f"a Mesh of {kind}s in {dtensor.num_clients()} processes comes too late: TensorFlow "
            "has started already; make the mesh before any tensor or model"
        ) from error


def _grid(mesh: Mesh, devices: Sequence[str] | None) -> dtensor.Mesh:
    sizes = [("batch", mesh.batch), ("expert", mesh.expert)]
    names = None if devices is None else list(devices)
    if dtensor.num_clients() == 1 and mesh.device_type != "TPU":
        return dtensor.create_mesh(sizes, devices=names, device_type=mesh.device_type)
    return dtensor.create_distributed_mesh(sizes, local_devices=names, device_type=mesh.device_type)
