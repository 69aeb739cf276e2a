"""The values of Keras variables on a mesh: made there part by part, and read from there.

What leans on private parts of Keras 3.15 is the first three functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from keras_vmoe.distribution.jax_mesh import JaxMesh
    from keras_vmoe.distribution.mesh import Mesh

    AnyMesh = Mesh | JaxMesh

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


def set_storage(variable: keras.Variable, value: Any) -> None:
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


def assign(variable: keras.Variable, value: Any, mesh: AnyMesh) -> None:
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
    mesh.assign(variable, value)


def slices_of(whole: np.ndarray) -> Callable[[Borders], Any]:
    return lambda borders: whole[tuple(slice(*border) for border in borders)]


def parts_of(initializer: Callable[..., Any], variable: keras.Variable) -> Callable[[Borders], Any]:
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
        return slices_of(keras.ops.convert_to_numpy(whole))(borders)

    return made


def to_numpy(variable: keras.Variable, mesh: AnyMesh) -> np.ndarray:
    """The whole value of a variable on the mesh.

    Args:
        variable: a Keras variable that was placed.
        mesh: where it is.
    """
    return mesh.gather(variable.value)


def bytes_per_device(variables: Iterable[keras.Variable], mesh: AnyMesh) -> list[int]:
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
    totals: dict[int, int] = {}
    for variable in variables:
        size = np.dtype(variable.dtype).itemsize
        for device, shard in enumerate(mesh.shards(variable)):
            totals[device] = totals.get(device, 0) + int(np.prod(shard.shape)) * size
    return list(totals.values())
