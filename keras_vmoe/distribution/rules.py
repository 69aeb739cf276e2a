"""Layout rules: which axes of which variables are split over the mesh."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import keras

from keras_vmoe.distribution.grid import AXES, Grid
from keras_vmoe.ops.validation import require

Axes = tuple[str | None, ...]
Rule = tuple[str, Axes]

#: Kernels and biases of `MoEMLP`'s experts are split over the experts, all else is on each device.
EXPERT_RULES: tuple[Rule, ...] = ((r"experts/(hidden|output)_(kernel|bias)$", ("expert",)),)


def axes_of(
    variables: Sequence[keras.Variable],
    mesh: Grid,
    rules: Sequence[Rule] = EXPERT_RULES,
    experts: Collection[int] = (),
) -> list[Axes]:
    """The axes that each variable is split along.

    Args:
        variables: of a model.
        mesh: whose devices they go to.
        rules: pairs of a regex over the variables' paths (`re.search`) and, for each leading axis,
            `"expert"`, `"batch"` or `None`; the first that matches decides, and a variable that
            none matches is on every device.
        experts: ids of the variables that hold one part for each expert.

    Returns:
        For each variable its axes; `()` where it is on every device.

    Raises:
        ValueError: a rule that matches no variable or names more axes than a variable has, an axis
            of a variable that the mesh does not divide, an expert variable that is not split over
            the experts though the mesh has several devices for them.

    Example:

    >>> import keras
    >>> from keras_vmoe import distribution
    >>> from keras_vmoe.distribution import rules
    >>> kernel = keras.Variable(keras.ops.zeros((4, 2, 2)), name="kernel")
    >>> mesh = distribution.Mesh(device_type="CPU")
    >>> rules.axes_of([kernel], mesh, [("kernel", ("expert",))])
    [('expert',)]
    """
    for pattern, axes in rules:
        require(
            all(axis is None or axis in AXES for axis in axes) and not isinstance(axes, str),
            f"a rule's axes must be a tuple of 'batch', 'expert' or None. Received: {axes!r} for "
            f"{pattern!r}",
        )
        require(
            any(re.search(pattern, variable.path) for variable in variables),
            f"rules hold {pattern!r}, which matches no variable; the variables are "
            + ", ".join(variable.path for variable in variables),
        )
    found = [_first_match(variable.path, rules) for variable in variables]
    for variable, axes in zip(variables, found, strict=True):
        _require_divides(variable, axes, mesh, id(variable) in experts)
        require(
            mesh.expert == 1 or id(variable) not in experts or "expert" in axes,
            f"rules leave the experts of {variable.path} on every device, though {mesh} has "
            f"{mesh.expert} devices for them; add a rule such as {EXPERT_RULES[0]}",
        )
    return found


def _first_match(path: str, rules: Sequence[Rule]) -> Axes:
    return next((tuple(axes) for pattern, axes in rules if re.search(pattern, path)), ())


def _require_divides(variable: keras.Variable, axes: Axes, mesh: Grid, of_experts: bool) -> None:
    shape = tuple(variable.shape)
    require(
        len(axes) <= len(shape),
        f"rules give {variable.path} the axes {axes}, but its shape is {shape}",
    )
    for place, (axis, size) in enumerate(zip(axes, shape, strict=False)):
        parts = 1 if axis is None else mesh.devices_along(axis)
        first = of_experts and place == 0
        what = f"num_experts={size}, the first axis" if first else f"the {size} parts"
        require(
            size % parts == 0,
            f"{axis}={parts} of {mesh} must divide {what} of {variable.path}, of shape {shape}",
        )
