"""A mesh of JAX devices: the layouts of `keras.distribution`, and images split over both axes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_vmoe import ops
from keras_vmoe.distribution import storage
from keras_vmoe.distribution.grid import AXES, Grid, require_axes
from keras_vmoe.distribution.rules import EXPERT_RULES, Rule
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    import jax

Spec = tuple[Any, ...]


class JaxMesh(Grid):
    """JAX devices in a grid of `batch` rows and `expert` columns.

    Images are split over all devices, experts over the columns: the devices of a row hold each
    expert once, and tokens travel between them by all-to-all. Rows hold the same experts, and add
    up their gradients.

    Args:
        batch: rows.
        expert: columns, at most as many as a layer has experts.
        devices: `batch * expert` of them; `None` takes all that JAX has, of all processes.

    Raises:
        ValueError: sizes that do not make the number of devices.
        RuntimeError: another backend than JAX.

    Example:

    >>> from keras_vmoe import distribution
    >>> import functools
    >>> from keras_vmoe import models
    >>> make_model = functools.partial(models.VMoE.from_variant, "vmoe_s32", num_classes=10)
    >>> mesh = distribution.JaxMesh(batch=2, expert=4)  # doctest: +SKIP
    >>> model = distribution.build_model(make_model, mesh)  # doctest: +SKIP

    Reference: Lepikhin et al. 2020, arXiv 2006.16668 (GShard), section 3.3.
    """

    def __init__(
        self, batch: int = 1, expert: int = 1, devices: Sequence[jax.Device] | None = None
    ) -> None:
        super().__init__(batch, expert)
        if (backend := keras.backend.backend()) != "jax":
            raise RuntimeError(
                f"a JaxMesh needs the JAX backend, this is {backend!r}; set KERAS_BACKEND=jax "
                "before Keras is imported, or use distribution.Mesh"
            )
        import jax

        devices = jax.devices() if devices is None else list(devices)
        require(
            len(devices) == self.size,
            f"batch * expert must be the number of devices, {len(devices)}. "
            f"Received: {self}, which has {self.size}; name some by devices=; on a CPU, "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N makes N",
        )
        self.devices = np.array(devices).reshape(batch, expert)
        self.jax = jax.sharding.Mesh(self.devices, AXES)
        self.keras = keras.distribution.DeviceMesh((batch, expert), AXES, self.devices)

    @property
    def batch_parts(self) -> int:
        """The number of parts that images are split into: all devices."""
        return self.size

    def layout(self, axes: Sequence[str | None]) -> jax.sharding.NamedSharding:
        """JAX's layout of a tensor.

        Args:
            axes: for each leading axis `"batch"`, `"expert"` or `None`; the batch is split over
                the columns, too, unless the experts are.

        Raises:
            ValueError: an unknown axis.
        """
        import jax

        require_axes(len(axes), list(axes))
        batch = "batch" if "expert" in axes else AXES
        spec = [batch if axis == "batch" else axis for axis in axes]
        return jax.sharding.NamedSharding(self.jax, jax.sharding.PartitionSpec(*spec))

    def variable_layout(self, axes: Sequence[str | None]) -> jax.sharding.NamedSharding:
        """JAX's layout of a variable: `"batch"` is the rows alone.

        Args:
            axes: for each leading axis `"batch"`, `"expert"` or `None`.
        """
        import jax

        return jax.sharding.NamedSharding(self.jax, jax.sharding.PartitionSpec(*axes))

    def lay_out(self, tensor: Any, axes: Sequence[str | None]) -> Any:
        """A tensor in another layout; what `ops.lay_out` does within `scope`.

        Args:
            tensor: any tensor.
            axes: as of `layout`; of `()` the compiler decides, where DTensor has to be told.
        """
        import jax

        if not axes:
            return tensor
        return jax.lax.with_sharding_constraint(tensor, self.layout(axes))

    @contextlib.contextmanager
    def scope(self) -> Iterator[JaxMesh]:
        """Lays out what layers compute within a `with` block."""
        with ops.laid_out_by(self.lay_out):
            yield self

    def model_parallel(
        self, rules: Sequence[Rule] = EXPERT_RULES
    ) -> keras.distribution.ModelParallel:
        """Keras' own distribution of the same rules, for models that `fit` trains.

        Make a model of layers of your own a `models.FunctionalModel`, as those of this package are:
        the steps of `fit` are pure functions on JAX, out of which a plain `keras.Model` carries no
        metric that a layer updates, so it would show all routing metrics as 0.0.

        Args:
            rules: see `rules.axes_of`; here no two of them may match the same variable.

        Example:

        >>> import keras
        >>> from keras_vmoe import distribution, layers, models
        >>> mesh = distribution.JaxMesh(batch=2, expert=4)  # doctest: +SKIP
        >>> with mesh.scope(), mesh.model_parallel().scope():  # doctest: +SKIP
        ...     inputs = keras.Input((16, 32))
        ...     x = layers.MoEMLP(layers.TopKRouter(num_experts=8), hidden_dim=64)(inputs)
        ...     x = keras.layers.GlobalAveragePooling1D()(x)
        ...     model = models.FunctionalModel(inputs, keras.layers.Dense(10, "softmax")(x))
        ...     model.compile("adamw", "sparse_categorical_crossentropy")
        ...     model.fit(tokens, labels)
        """
        layouts = keras.distribution.LayoutMap(self.keras)
        for pattern, axes in rules:
            # Keras wants a pattern of the whole path, ours may match any part.
            layouts[f".*(?:{pattern}).*"] = keras.distribution.TensorLayout(axes, self.keras)
        # Keras splits data over one axis; the layers split it further.
        axis = "batch" if self.batch > 1 else "expert"
        return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name=axis)

    def place(self, variable: keras.Variable, axes: Sequence[str | None]) -> None:
        """Moves a variable to the mesh; one without a value is made there, part by part.

        Args:
            variable: a Keras variable, with a value or without one yet.
            axes: as of `layout`.
        """
        layout = self.variable_layout(axes)
        initializer = storage.initializer_of(variable)
        if initializer is None:
            value = keras.distribution.distribute_tensor(variable.value, layout)
        else:
            value = self._made(variable, layout, storage.parts_of(initializer, variable))
        # Keras keeps to it whenever the variable is assigned.
        variable._layout = layout
        storage.set_storage(variable, value)

    def _made(
        self,
        variable: keras.Variable,
        layout: jax.sharding.NamedSharding,
        part_of: Callable[[storage.Borders], Any],
    ) -> jax.Array:
        """An array on the mesh; the host holds one part of it at a time, drawn once."""
        import jax

        shape = tuple(variable.shape)
        owners: dict[storage.Borders, list[jax.Device]] = {}
        for device, index in layout.addressable_devices_indices_map(shape).items():
            borders = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
            owners.setdefault(borders, []).append(device)
        arrays = []
        for borders, devices in owners.items():
            part = np.asarray(part_of(borders))
            arrays += [jax.device_put(part, device) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, layout, arrays)

    def split(self, values: Any) -> Any:
        """Puts a batch on the mesh, its first axis split over the devices.

        In a job of several processes, each gives the share of its own devices.

        Args:
            values: arrays `[b, ...]`, alone or in dicts, lists or tuples.

        Raises:
            ValueError: a batch that does not divide into equal parts.
        """
        import jax

        parts = len(self.jax.local_devices)
        layout = self.layout(("batch",))

        def split_one(value: Any) -> jax.Array:
            value = np.asarray(value)
            self.require_batch(len(value), "the batch", parts)
            return jax.make_array_from_process_local_data(layout, value)

        return jax.tree.map(split_one, values)

    def gather(self, tensor: Any) -> np.ndarray:
        """The whole of a tensor, from all devices of the mesh.

        Args:
            tensor: a tensor, of this mesh or not.
        """
        import jax

        if isinstance(tensor, jax.Array) and not tensor.is_fully_addressable:
            from jax.experimental import multihost_utils

            tensor = multihost_utils.process_allgather(tensor, tiled=True)
        return np.asarray(tensor)

    def assign(self, variable: keras.Variable, value: np.ndarray) -> None:
        """Gives a variable another value of its shape; it stays where it is."""
        variable.assign(value)

    def shards(self, variable: keras.Variable) -> list[Any]:
        """What this process' devices hold of a variable."""
        return [shard.data for shard in variable.value.addressable_shards]
