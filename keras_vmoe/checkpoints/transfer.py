"""A model that starts from the weights of another: other resolution, other classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_vmoe import layers, models
from keras_vmoe.checkpoints.reference import reference_variables
from keras_vmoe.ops.validation import require

# What a fine-tuned model makes anew, or leaves behind.
FRESH = ("head/", "pre_logits/")
# A class token, by our name and the reference's: pooling may come with one, or without.
_CLASS_TOKEN = ("class_token/token", "cls")


class Transfer(NamedTuple):
    """What `transfer` did, as lists of names.

    Attributes:
        copied: taken over as they are.
        resized: position embeddings taken over on another grid.
        fresh: variables of the model that keep their initial values.
        left_out: arrays of the source that the model has no use for.
        shared_out: routers of one model that were shared out among the members of an ensemble.
    """

    copied: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    shared_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.copied)} arrays copied"]
        for name in ("resized", "shared_out", "fresh", "left_out"):
            if names := getattr(self, name):
                parts.append(f"{name.replace('_', ' ')}: {', '.join(names)}")
        return "; ".join(parts)


def transfer(
    model: keras.Model,
    source: keras.Model | Mapping[str, Any],
    fresh: Sequence[str] = FRESH,
    strict: bool = True,
    grid: tuple[int, int] | None = None,
) -> Transfer:
    """Fills a model with the weights of another one, as fine-tuning begins. All or nothing.

    Routers and experts are taken over as they are. Where an `EfficientEnsemble` starts from a V-MoE
    with as many experts, each member gets its part of them with their columns of the router. A
    learned position embedding of another grid is
    resized linearly with aligned corners, the class token's kept; where only the model has a class
    token, its position keeps its initial value.

    Args:
        model: what is filled: a `ViT`, `VMoE`, `EfficientEnsemble` or any model with named layers.
        source: a model, or arrays by name: by `variable.path`, or by the reference's names
            (`"Encoder/encoderblock_0/LayerNorm_0/scale"`, with or without `"params/"` before it).
        fresh: regular expressions; a variable whose path begins with one of them keeps its initial
            value, and the source's is left out. By default the head and `pre_logits`.
        strict: whether other names that only one side has are an error.
        grid: rows and columns of patches that the source's positions are of, where it is arrays;
            `None`: as many rows as columns.

    Returns:
        The names that were copied, resized, left as they were and left out.

    Raises:
        ValueError: listing every other name that is missing, left over or of the wrong shape (of
            the wrong shape only, where not `strict`).

    Example:

    >>> from keras_vmoe import checkpoints, models
    >>> size = dict(patch_size=8, num_layers=1, width=16, mlp_dim=32, num_heads=2)
    >>> small = models.ViT(image_size=32, num_classes=10, **size)
    >>> large = models.ViT(image_size=48, num_classes=3, **size)
    >>> done = checkpoints.transfer(large, small)
    >>> done.resized, done.fresh
    (('position_embedding/embedding',), ('head/kernel', 'head/bias'))

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.2; Riquelme et al. 2021, arXiv
    2106.05974, section 3.4; ensembles: Allingham et al. 2021, arXiv 2110.03360, section 5.
    """
    arrays = _arrays(source)
    variables = _variables(model, arrays)
    positions = _positions(model)
    is_fresh = re.compile("|".join(f"(?:{pattern})" for pattern in fresh) or r"(?!)").match
    plan: dict[str, Any] = {}
    routers = _member_routers(model)
    resized, shared_out, problems = [], [], []
    for name, variable in variables.items():
        if is_fresh(variable.path):
            continue
        if name not in arrays and name in _CLASS_TOKEN:
            continue
        if name not in arrays:
            problems += [f"missing: {name}"] if strict else []
            continue
        # Read when it is assigned: a large source comes array by array from its files.
        array, shape = arrays[name], tuple(variable.shape)
        if np.shape(array) != shape and variable.path in positions:
            theirs = _their_positions(source, arrays, np.shape(array)[1], grid, variable.path)
            array = _resized(np.asarray(array), positions[variable.path], *theirs)
            resized.append(name)
        if np.shape(array) == routers.get(variable.path):
            array = np.asarray(array).reshape(shape)
            shared_out.append(name)
        if np.shape(array) != shape:
            problems.append(f"wrong shape: {name} is {np.shape(array)}, the model needs {shape}")
        plan[name] = array
    left = [name for name in arrays if name not in plan]
    problems += [
        f"left over: {name}"
        for name in left
        if strict and not (is_fresh(name) or name in _CLASS_TOKEN)
    ]
    require(
        not problems,
        f"the source does not fit model {model.name!r}:\n  " + "\n  ".join(sorted(problems)),
    )
    for name, array in plan.items():
        variables[name].assign(np.asarray(array))
    return Transfer(
        copied=tuple(name for name in plan if name not in (*resized, *shared_out)),
        resized=tuple(resized),
        fresh=tuple(name for name in variables if name not in plan),
        left_out=tuple(left),
        shared_out=tuple(shared_out),
    )


def _arrays(source: keras.Model | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, keras.Model):
        return {variable.path: variable for variable in source.weights}
    return {name.removeprefix("params/"): array for name, array in source.items()}


def _variables(model: keras.Model, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The model's variables, under the names that the arrays have."""
    by_path = {variable.path: variable for variable in model.weights}
    # The reference has no LIMoE, and so no names for it.
    theirs = {} if isinstance(model, models.LIMoE) else reference_variables(model)
    # Some names, such as those of the head, are of both kinds.
    found = max((by_path, theirs), key=lambda names: len(names.keys() & arrays.keys()))
    require(
        bool(found.keys() & arrays.keys()),
        f"source must hold arrays by the names of model {model.name!r} (such as "
        f"{next(iter(by_path))!r}) or by those of the reference. Received: "
        f"{', '.join(repr(name) for name in list(arrays)[:3])}, ...",
    )
    return found


def _positions(model: keras.Model) -> dict[str, layers.PositionEmbedding]:
    """The learned position embeddings of a model, by the paths of their variables."""
    found = (x for x in model._flatten_layers() if isinstance(x, layers.PositionEmbedding))
    return {layer.embedding.path: layer for layer in found if layer.kind == "learned"}


def _member_routers(model: keras.Model) -> dict[str, tuple[int, int]]:
    """Paths of the routers' kernels of an ensemble, with the shape of one V-MoE's."""
    found = (x for x in model._flatten_layers() if isinstance(x, layers.EnsembleTopKRouter))
    return {x.kernel.path: (x.kernel.shape[0], x.num_experts) for x in found}


def _their_positions(
    source: keras.Model | Mapping[str, Any],
    arrays: Mapping[str, Any],
    tokens: int,
    grid: tuple[int, int] | None,
    path: str,
) -> tuple[int, tuple[int, int]]:
    """How many tokens stand before the patches of a source, and the rows and columns of those."""
    if isinstance(source, keras.Model):
        positions = _positions(source)
        # A model of images and texts has positions of both.
        layer = positions.get(path) or next(iter(positions.values()))
        return layer.num_prefix_tokens, layer.built_grid
    if any(name in arrays for name in _CLASS_TOKEN):
        prefix = 1
    elif "embedding/kernel" in arrays:
        prefix = 0  # a whole model, which has no class token
    else:
        prefix = tokens - math.isqrt(tokens) ** 2
    side = math.isqrt(tokens - prefix)
    return prefix, grid or (side, side)


def _resized(
    array: np.ndarray, layer: layers.PositionEmbedding, their_prefix: int, grid: tuple[int, int]
) -> np.ndarray:
    """The embedding on the layer's grid, with the layer's own prefix where the source has none."""
    prefix = layer.num_prefix_tokens
    same_width = array.shape[2:] == tuple(layer.embedding.shape[2:])
    fits = their_prefix + math.prod(grid) == array.shape[1] and their_prefix in (0, 1, prefix)
    if not (fits and same_width):
        return array
    resized = layers.resize_position_embedding(array, grid, layer.built_grid, their_prefix)
    own = keras.ops.convert_to_numpy(layer.embedding)[:, :prefix]
    kept = resized[:, :their_prefix] if their_prefix == prefix else own
    return np.concatenate([kept, resized[:, their_prefix:]], axis=1)
