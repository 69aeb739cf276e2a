"""The values of Keras variables on a mesh: made there part by part, and read from there.

What leans on private parts of Keras 3.15 is the first three functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.experimental import dtensor

from keras_vmoe.distribution.mesh import Mesh
from keras_vmoe.ops.validation import require

# The first index and the one after the last, along each axis of a variable.
Borders = tuple[tuple[int, int], ...]

# These give each element the same whatever the shape.
_ELEMENTWISE = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
)


@contextlib.contextmanager
def unallocated() -> Iterator[None]:
    """Variables that are made within a `with` block have names and shapes, but no values yet."""
    before = list(global_state.get_global_attribute("uninitialized_variables", []) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would make up for it, in one piece, as soon as the next such scope ends.
        global_state.set_global_attribute("uninitialized_variables", before)


def set_storage(variable: keras.Variable, value: dtensor.DVariable) -> None:
    """Gives a Keras variable another storage: the swap that all of mesh mode rests on.

    Raises:
        RuntimeError: if Keras does not keep the value where it did in 3.15.
    """
    if "_value" not in vars(variable) or "_initializer" not in vars(variable):
        raise RuntimeError(
            f"Keras {keras.__version__} keeps the value of a variable elsewhere than 3.15 did; "
            "the mesh cannot place it"
        )
    variable._value, variable._initializer = value, None


def initializer_of(variable: keras.Variable) -> Callable[..., Any] | None:
    """What a variable without a value yet will be made by; `None` where it has one."""
    return variable._initializer if variable._value is None else None


def place(variable: keras.Variable, mesh: Mesh, axes: Sequence[str | None]) -> None:
    """Moves a variable to the mesh; one without a value is made there, part by part.

    Args:
        variable: a Keras variable, with a value or without one yet.
        mesh: where it goes to.
        axes: as of `Mesh.layout`.

    Raises:
        ValueError: a variable that was placed otherwise before.
    """
    layout = mesh.layout(len(variable.shape), axes)
    initializer = initializer_of(variable)
    if initializer is not None:
        part_of = _parts_of(initializer, variable)
    elif not isinstance(variable.value, dtensor.DVariable):
        part_of = _slices_of(keras.ops.convert_to_numpy(variable.value))
    elif variable.value.layout == layout:
        return
    else:
        raise ValueError(
            f"{variable.path} lies on a mesh already, otherwise than it should now: a model is "
            "placed once, by one list of rules"
        )
    value = _packed(variable, layout, part_of)
    set_storage(
        variable, dtensor.DVariable(value, trainable=variable.trainable, name=variable.name)
    )


def assign(variable: keras.Variable, value: Any, mesh: Mesh) -> None:
    """Gives a variable on the mesh another value; each device gets its part alone.

    Args:
        variable: a Keras variable that was placed.
        value: an array of its shape.
        mesh: where it is.

    Raises:
        ValueError: another shape.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vmoe import distribution
    >>> mesh = distribution.Mesh(device_type="CPU")
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    >>> distribution.place_model(model, mesh, rules=())
    >>> distribution.assign(model.variables[1], np.array([1.0, 2.0]), mesh)
    >>> distribution.to_numpy(model.variables[1], mesh).tolist()
    [1.0, 2.0]
    """
    value = np.asarray(value)
    require(
        value.shape == tuple(variable.shape),
        f"value must have shape {tuple(variable.shape)}, that of {variable.path}. "
        f"Received: {value.shape}",
    )
    packed = _packed(variable, variable.value.layout, _slices_of(value))
    with dtensor.default_mesh(mesh.dtensor):
        variable.value.assign(packed)


def _packed(
    variable: keras.Variable, layout: dtensor.Layout, part_of: Callable[[Borders], Any]
) -> tf.Tensor:
    """A tensor on the mesh; the host holds one part of it at a time."""
    devices = layout.mesh.local_devices()
    owners: dict[Borders, list[int]] = {}
    for i, where in enumerate(layout.mesh.local_device_locations()):
        owners.setdefault(_borders(tuple(variable.shape), layout, where), []).append(i)
    tensors: list[Any] = [None] * len(devices)
    for borders, indices in owners.items():
        part = tf.cast(part_of(borders), variable.dtype)
        for i in indices:
            with tf.device(devices[i]):
                tensors[i] = tf.identity(part)
    return dtensor.pack(tensors, layout)


def _borders(shape: tuple[int, ...], layout: dtensor.Layout, where: dict[str, int]) -> Borders:
    """What a device has of a variable."""
    borders = []
    for size, name in zip(shape, layout.sharding_specs, strict=True):
        parts = 1 if name == dtensor.UNSHARDED else layout.mesh.dim_size(name)
        first = 0 if name == dtensor.UNSHARDED else where[name] * (size // parts)
        borders.append((first, first + size // parts))
    return tuple(borders)


def _slices_of(whole: np.ndarray) -> Callable[[Borders], Any]:
    return lambda borders: whole[tuple(slice(*border) for border in borders)]


def _parts_of(
    initializer: Callable[..., Any], variable: keras.Variable
) -> Callable[[Borders], Any]:
    """A function that draws a part of a variable's first value."""
    shape = tuple(variable.shape)

    def made(borders: Borders) -> Any:
        sizes = tuple(end - first for first, end in borders)
        if sizes == shape or isinstance(initializer, _ELEMENTWISE):
            return initializer(sizes, dtype=variable.dtype)
        along_experts = sizes[1:] == shape[1:]
        if along_experts and hasattr(initializer, "part"):
            return initializer.part(shape, *borders[0], dtype=variable.dtype)
        # An initializer that knows no parts: the host holds the whole for a moment.
        whole = initializer(shape, dtype=variable.dtype)
        return _slices_of(keras.ops.convert_to_numpy(whole))(borders)

    return made


def to_numpy(variable: keras.Variable, mesh: Mesh) -> np.ndarray:
    """The whole value of a variable on the mesh.

    Args:
        variable: a Keras variable that was placed.
        mesh: where it is.
    """
    return mesh.gather(variable.value)


def shards(variable: keras.Variable, mesh: Mesh) -> list[tf.Tensor]:
    """What this process' devices hold of a variable, in the order of the mesh."""
    with dtensor.default_mesh(mesh.dtensor):
        return list(dtensor.unpack(variable.value.read_value()))


def bytes_per_device(variables: Iterable[keras.Variable], mesh: Mesh) -> list[int]:
    """The bytes that variables take on each device of this process, read from what lies there.

    Args:
        variables: Keras variables that were placed.
        mesh: where they are.

    Example:

    >>> import keras
    >>> from keras_vmoe import distribution
    >>> mesh = distribution.Mesh(device_type="CPU")
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> distribution.place_model(model, mesh, rules=())
    >>> distribution.bytes_per_device(model.variables, mesh)
    [32]
    """
    totals = [0] * mesh.dtensor.num_local_devices()
    for variable in variables:
        for device, shard in enumerate(shards(variable, mesh)):
            totals[device] += int(np.prod(shard.shape)) * shard.dtype.size
    return totals
