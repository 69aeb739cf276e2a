"""Sparse upcycling: a sparse model that begins as a trained dense one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_vmoe import models
from keras_vmoe.checkpoints.reference import reference_variables
from keras_vmoe.checkpoints.transfer import Transfer, transfer
from keras_vmoe.models.base import argument_names
from keras_vmoe.ops.validation import require

_ROUTER = r".*/router/"
_MLP = re.compile(r"(Encoder/encoderblock_\d+/)Mlp/(Dense_[01]/\w+)")


def upcycle(
    dense_model: keras.Model,
    num_experts: int = 32,
    placement: str | Sequence[int] | None = None,
    router: str = "expert_choice",
    noise: float = 0.0,
    **overrides: Any,
) -> keras.Model:
    """A sparse model whose experts are copies of a dense model's MLPs.

    All that the dense model has is copied; each expert of a sparse block starts as that block's
    MLP; routers alone are new. As a token's weights are divided by their sum, the sparse model
    computes what the dense one did where every choice finds room.

    Args:
        dense_model: a `ViT`, or a `Classifier` of one.
        num_experts: experts per sparse block (e).
        placement: sparse blocks, as of `VMoE`; `None` is the last half of the blocks, the paper's
            in vision.
        router: `"expert_choice"` (the paper's in vision, with a capacity factor of 2 where none is
            given) or `"top_k"`.
        noise: standard deviation of normal noise that is added to each expert's copies. The paper
            found it neutral to harmful.
        **overrides: any other argument of `VMoE`, such as `capacity_factor` or `num_selected`.

    Returns:
        A `VMoE`, or a `Classifier` of one. The dense model stays as it is.

    Raises:
        ValueError: a model that is not a dense `ViT`, or arguments that do not fit.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import checkpoints, models
    >>> dense = models.from_variant("vit_ti16", image_size=32, num_layers=2, num_classes=10)
    >>> options = {"router": "top_k", "capacity_factor": 4.0}
    >>> sparse = checkpoints.upcycle(dense, num_experts=4, **options)
    >>> images = np.ones((2, 32, 32, 3), "float32")
    >>> bool(np.allclose(sparse(images), dense(images), atol=1e-5))
    True

    Reference: Komatsuzaki et al. 2022, arXiv 2212.05055, section 3.
    """
    if isinstance(dense_model, models.Classifier):
        inner = upcycle(dense_model.model, num_experts, placement, router, noise, **overrides)
        return models.Classifier(inner, dense_model.class_names, dense_model.value_range)
    require(
        isinstance(dense_model, models.ViT),
        "dense_model must be a ViT, or a Classifier of one. "
        f"Received: {type(dense_model).__name__} {getattr(dense_model, 'name', '')!r}",
    )
    arguments = {
        **dense_model.arguments,
        "num_experts": num_experts,
        "placement": _last_half(dense_model) if placement is None else placement,
        "router": router,
        "renormalise_gates": True,
    }
    if router == "expert_choice":
        arguments["capacity_factor"] = 2.0
    unknown = sorted(overrides.keys() - set(argument_names(models.VMoE)))
    require(not unknown, f"VMoE has no argument {', '.join(unknown)}")
    model = models.VMoE(**{**arguments, **overrides})
    upcycle_into(model, dense_model, noise)
    return model


def _last_half(model: keras.Model) -> str:
    return f"final_{max(model.arguments['num_layers'] // 2, 1)}"


def upcycle_into(
    model: keras.Model,
    source: keras.Model | Mapping[str, Any],
    noise: float = 0.0,
    fresh: Sequence[str] = (),
    router_stddev: float = 0.02,
) -> Transfer:
    """Fills a sparse model from a dense one, as `upcycle` does. All or nothing.

    Args:
        model: a `VMoE` of the dense model's sizes; its resolution and its classes may be others.
        source: a `ViT`, or its arrays by the reference's names.
        noise: as of `upcycle`.
        fresh: as of `transfer`; routers are fresh anyhow.
        router_stddev: of the routers' normal kernels. Small gates' differences let tokens spread
            over experts that are still alike.

    Returns:
        What was copied, resized, left as it was and left out, by the sparse model's names.
        Warns where a router does not renormalise its gates: the function is not kept then.

    Raises:
        ValueError: a model without sparse blocks, a source with some, or one that does not fit.

    Example:

    >>> from keras_vmoe import checkpoints, models
    >>> size = {"image_size": 32, "num_layers": 2, "num_classes": 10}
    >>> sparse = models.from_variant("vmoe_ti16", num_experts=4, **size)
    >>> done = checkpoints.upcycle_into(sparse, models.from_variant("vit_ti16", **size))
    >>> done.fresh
    ('Encoder/encoderblock_1/Moe/Router/dense/kernel',)

    Reference: Komatsuzaki et al. 2022, arXiv 2212.05055, section 3.
    """
    require(noise >= 0, f"noise must not be negative. Received: noise={noise}")
    require(
        bool(models.moe_layers(model)),
        f"model must hold sparse blocks of tokens to fill. {model.name!r} holds none",
    )
    arrays = reference_variables(source) if isinstance(source, keras.Model) else dict(source)
    sparse_ones = sorted(name for name in arrays if "/Moe/" in name)
    require(
        not sparse_ones,
        "source must be dense; sparse upcycling makes experts of its MLPs. It holds "
        f"{', '.join(map(repr, sparse_ones[:2]))}, ...",
    )
    for layer in models.moe_layers(model):
        if not getattr(layer.router, "renormalise_gates", False):
            warnings.warn(
                f"{layer.name} does not divide a token's weights by their sum, so the sparse model "
                "begins as another function than the dense one; set renormalise_gates=True",
                stacklevel=2,
            )
            break
    variables = reference_variables(model)
    tiled = dict(_tiled(name, array, variables, noise) for name, array in arrays.items())
    done = transfer(model, tiled, (_ROUTER, *fresh))
    for layer in models.moe_layers(model):
        kernel = layer.router.kernel
        kernel.assign(keras.random.normal(kernel.shape, stddev=router_stddev, dtype=kernel.dtype))
    return done


def _tiled(name: str, array: Any, variables: Mapping[str, Any], noise: float) -> tuple[str, Any]:
    """An array under its name in the sparse model; that of an MLP there, once for each expert."""
    match = _MLP.fullmatch(name)
    of_experts = match and f"{match[1]}Moe/Mlp/{match[2]}"
    if not match or of_experts not in variables:
        return name, array
    array = np.asarray(array)
    shape = (variables[of_experts].shape[0], *array.shape)
    tiled = np.broadcast_to(array, shape)
    if noise:
        drawn = keras.ops.convert_to_numpy(keras.random.normal(shape, stddev=noise))
        tiled = tiled + drawn
    return of_experts, tiled
