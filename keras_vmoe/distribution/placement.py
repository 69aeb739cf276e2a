"""Models, optimizers and metrics on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import keras

from keras_vmoe.distribution.jax_mesh import JaxMesh
from keras_vmoe.distribution.rules import EXPERT_RULES, Axes, Rule, axes_of
from keras_vmoe.distribution.storage import to_numpy, unallocated
from keras_vmoe.layers.experts import ExpertMLP
from keras_vmoe.models import is_sparse, moe_layers
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from keras_vmoe.distribution.storage import AnyMesh


def build_model(
    make: Callable[[], keras.Model], mesh: AnyMesh, rules: Sequence[Rule] | None = None
) -> keras.Model:
    """Makes a model whose weights are born on the mesh: no device ever holds all experts.

    Nor does the host: the weights of experts are drawn part by part, and are the same as without
    a mesh.

    Args:
        make: returns a built model, such as one of this package's; its variables have
            initializers, as those of `add_weight` do.
        mesh: whose devices the weights go to.
        rules: see `rules.axes_of`; `None` is `EXPERT_RULES` where the model has experts.

    Raises:
        ValueError: rules that do not fit model and mesh.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import distribution, models
    >>> mesh = distribution.Mesh(batch=1, expert=1, device_type="CPU")
    >>> sizes = dict(image_size=16, patch_size=8, width=8, mlp_dim=16, num_heads=2)
    >>> model = distribution.build_model(
    ...     lambda: models.VMoE(num_layers=2, num_experts=4, num_classes=3, **sizes), mesh
    ... )
    >>> images = mesh.split(np.zeros((1, 16, 16, 3), "float32"))
    >>> mesh.gather(mesh.function(model)(images)).shape
    (1, 3)
    """
    with unallocated():
        model = make()
    place_model(model, mesh, rules)
    return model


def place_model(model: keras.Model, mesh: AnyMesh, rules: Sequence[Rule] | None = None) -> None:
    """Moves a built model to the mesh, with its metrics; values stay as they are.

    Args:
        model: a built model.
        mesh: whose devices the weights go to.
        rules: see `rules.axes_of`; `None` is `EXPERT_RULES` where the model has experts.

    Raises:
        ValueError: rules that do not fit model and mesh, a dispatch of a MoE layer that cannot run
            on a mesh, on TensorFlow a model that routes whole images.
    """
    require(
        isinstance(mesh, JaxMesh) or bool(moe_layers(model)) or not is_sparse(model),
        f"model must route tokens, not whole images, to be on a mesh of TensorFlow. Received: "
        f"{model.name!r}, a {type(model).__name__}; train it on replicas "
        "(train.distribution='mirrored' or 'tpu'), as its experts are small, or on JAX",
    )
    for variable, axes in model_axes(model, mesh, rules):
        mesh.place(variable, axes)
    place_metrics(model.metrics, mesh)


def gather_model(model: keras.Model, mesh: AnyMesh) -> keras.Model:
    """An ordinary model with the weights of one on a mesh: to save, call, evaluate and export it.

    Keras can do none of these with a model whose variables are DTensor's, and its own loader has no
    mesh. The copy is on this machine, which must have room for all experts; in a job of several
    processes, each calls this and gets a copy. Nothing of it changes when the model on the mesh is
    trained on.

    Args:
        model: on the mesh; one that Keras can make from its config, as all of this package and all
            functional ones are.
        mesh: where it is.

    Returns:
        The model, not compiled; its metrics and random generators begin anew.

    Raises:
        NotImplementedError: a subclass of `keras.Model` without `get_config`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import distribution, models
    >>> mesh = distribution.Mesh(batch=1, expert=1, device_type="CPU")
    >>> sizes = dict(image_size=16, patch_size=8, width=8, mlp_dim=16, num_heads=2)
    >>> model = distribution.build_model(
    ...     lambda: models.VMoE(num_layers=2, num_experts=4, num_classes=3, **sizes), mesh
    ... )
    >>> ordinary = distribution.gather_model(model, mesh)
    >>> ordinary.predict(np.zeros((1, 16, 16, 3)), verbose=0).shape
    (1, 3)
    >>> ordinary.save("model.keras")
    """
    copy = type(model).from_config(model.get_config())
    copy.set_weights([to_numpy(weight, mesh) for weight in model.weights])
    return copy


def model_axes(
    model: keras.Model, mesh: AnyMesh, rules: Sequence[Rule] | None = None
) -> list[tuple[keras.Variable, Axes]]:
    """The variables of a model, each with the axes that it is split along.

    Args:
        model: a built model.
        mesh: where it lies or will lie.
        rules: see `rules.axes_of`; `None` is `EXPERT_RULES` where the model has experts.

    Raises:
        ValueError: rules that do not fit model and mesh, a dispatch of a MoE layer that cannot run
            on a mesh.
    """
    for layer in moe_layers(model):
        require(
            layer.dispatch in ("auto", "einsum"),
            f"dispatch of {layer.name!r} must be 'auto' or 'einsum' on a mesh: the others mix the "
            f"groups of all devices. Received: dispatch={layer.dispatch!r}",
        )
    variables, experts = model.variables, _expert_variables(model)
    if rules is None:
        rules = EXPERT_RULES if experts else ()
    axes = axes_of(variables, mesh, rules, experts)
    return list(zip(variables, axes, strict=True))


def _expert_variables(model: keras.Model) -> set[int]:
    layers = (layer for layer in model._flatten_layers() if isinstance(layer, ExpertMLP))
    return {id(variable) for layer in layers for variable in layer.weights}


def place_metrics(metrics: Iterable[keras.metrics.Metric], mesh: AnyMesh) -> None:
    """Moves the state of metrics to the mesh, where every device has it.

    Args:
        metrics: built metrics.
        mesh: where they go to.
    """
    for metric in metrics:
        for variable in metric.variables:
            mesh.place(variable, ())


def build_optimizer(
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    mesh: AnyMesh,
    rules: Sequence[Rule] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds an optimizer for a model on the mesh: its slots are split as their variables are.

    Args:
        optimizer: one that is not built yet.
        model: a model that was placed.
        mesh: where it is.
        rules: those that the model was placed by.

    Returns:
        The optimizer.

    Raises:
        ValueError: an optimizer that was built already: its slots would belong to other storage.

    Example:

    >>> import keras
    >>> from keras_vmoe import distribution
    >>> mesh = distribution.Mesh(device_type="CPU")
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> distribution.place_model(model, mesh, rules=())
    >>> optimizer = distribution.build_optimizer(keras.optimizers.Adam(), model, mesh, rules=())
    >>> distribution.bytes_per_device(optimizer.variables[2:], mesh)
    [64]
    """
    require(not optimizer.built, f"optimizer must not be built yet. Received: {optimizer.name!r}")
    with unallocated():
        optimizer.build(model.trainable_variables)
    place_optimizer(optimizer, model, mesh, rules)
    return optimizer


def place_optimizer(
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    mesh: AnyMesh,
    rules: Sequence[Rule] | None = None,
) -> None:
    """Moves the slots of an optimizer to the mesh.

    Args:
        optimizer: one that was built after the model was placed.
        model: the model.
        mesh: where it is.
        rules: those that the model was placed by.
    """
    for slot, axes in slot_axes(optimizer, model, mesh, rules):
        mesh.place(slot, axes)


def slot_axes(
    optimizer: keras.optimizers.Optimizer,
    model: keras.Model,
    mesh: AnyMesh,
    rules: Sequence[Rule] | None = None,
) -> list[tuple[keras.Variable, Axes]]:
    """The variables of a built optimizer, each with the axes that it is split along.

    Args:
        optimizer: a built one.
        model: whose variables it trains.
        mesh: where both lie or will lie.
        rules: of the model.
    """
    # Keras names a slot after the path of its variable.
    by_prefix = {
        variable.path.replace("/", "_") + "_": (variable, axes)
        for variable, axes in model_axes(model, mesh, rules)
    }
    return [(slot, _slot_axes(slot, by_prefix)) for slot in optimizer.variables]


def _slot_axes(slot: keras.Variable, by_prefix: dict[str, tuple[keras.Variable, Axes]]) -> Axes:
    """The leading axes that a slot has in common with its variable are split as there."""
    names = [prefix for prefix in by_prefix if slot.name.startswith(prefix)]
    if not names:
        return ()
    variable, axes = by_prefix[max(names, key=len)]
    shared: list[str | None] = []
    for size, variable_size, axis in zip(slot.shape, variable.shape, axes, strict=False):
        if size != variable_size:
            break
        shared.append(axis)
    return tuple(shared)
