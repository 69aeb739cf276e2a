"""The exported file beside the Keras model, on random inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vmoe import layers, models
from keras_vmoe.serving.loading import ExportedModel

#: Of the largest output, or of 1 where that is smaller.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
#: The same where the file holds its weights in fewer bits than the model.
WEIGHT_TOLERANCE = {"float32": 0.0, "float16": 5e-3, "int8": 0.1}
# An open axis of images gets this size; other axes cannot be open but for those of a Classifier.
_OPEN_SIDE = 40
_TRIES = 3

Draw = Callable[[int, np.random.Generator], np.ndarray]


def compute_dtypes(model: keras.Model) -> set[str]:
    """The dtypes that a model's layers compute in, but for those in full precision at any rate."""
    found = {layer.compute_dtype for layer in model._flatten_layers() if layer.weights}
    return found - {"float32"} or {"float32"}


def compare_with_keras(
    model: keras.Model,
    exported: ExportedModel,
    draw: Draw | None = None,
    prepare: Callable[[np.ndarray], Any] = lambda inputs: inputs,
) -> float:
    """Runs both on random inputs.

    A choice of expert that hangs by less than the rounding may fall either way. That is rare, so a
    batch on which they differ is followed by others, and what differs on all of them is an error.
    Where images go to experts, another expert is a difference too.

    Args:
        model: the Keras model.
        exported: what was made of it.
        draw: gives random inputs of a number of rows, by a generator; by default numbers in the
            range of values.
        prepare: makes of the exported model's inputs those of the Keras model.

    Returns:
        The largest difference, as a share of the largest output (or of 1).

    Raises:
        RuntimeError: they differ.
    """
    tolerance = max(TOLERANCE[dtype] for dtype in compute_dtypes(model))
    tolerance = max(tolerance, WEIGHT_TOLERANCE[exported.metadata.precision])
    draw = draw or functools.partial(_random_inputs, exported)
    facts = exported.metadata
    routed = models.with_router_outputs(model) if facts.experts_name else None

    def in_keras(inputs: np.ndarray) -> dict[str, np.ndarray]:
        with layers.routing_metrics(False):
            outputs = (routed or model)(prepare(inputs), training=False)
        if routed is None:
            return {facts.output_name: np.asarray(keras.ops.convert_to_numpy(outputs), "float64")}
        named = {facts.output_name: outputs["logits"], facts.experts_name: outputs["experts"]}
        return {
            name: np.asarray(keras.ops.convert_to_numpy(x), "float64") for name, x in named.items()
        }

    return max(
        _verify_batch(in_keras, exported, draw, size, tolerance)
        for size in _batch_sizes(model, exported)
    )


def _batch_sizes(model: keras.Model, exported: ExportedModel) -> tuple[int, ...]:
    """One image, and where the batch is open a full routing group and one image more."""
    if exported.metadata.batch_size is not None:
        return (exported.metadata.batch_size,)
    return (1, 1 + max((m.images_per_group for m in models.moe_layers(model)), default=1))


def _verify_batch(
    in_keras: Callable[[np.ndarray], dict[str, np.ndarray]],
    exported: ExportedModel,
    draw: Draw,
    size: int,
    tolerance: float,
) -> float:
    differences = []
    for seed in range(_TRIES):
        inputs = draw(size, np.random.default_rng(seed))
        outputs = exported.outputs(inputs)
        differences.append(
            max(
                _difference(exported, name, wanted, np.asarray(outputs[name], "float64"))
                for name, wanted in in_keras(inputs).items()
            )
        )
        if differences[-1] <= tolerance:
            return differences[-1]
    raise RuntimeError(
        f"{exported.path.name} differs from the Keras model by {min(differences):.2g} of the "
        f"largest output (inf: in the experts of an image), on each of {_TRIES} random batches of "
        f"{size}; {tolerance:.0e} is rounding. Nothing was kept; try another format or precision, "
        "or dispatch='einsum' in the MoE layers"
    )


def _difference(exported: ExportedModel, name: str, wanted: np.ndarray, given: np.ndarray) -> float:
    if given.shape != wanted.shape:
        raise RuntimeError(
            f"{exported.path.name} gives outputs of shape {given.shape}, Keras of "
            f"{wanted.shape}. Nothing was kept; report this, with the model"
        )
    if name == exported.metadata.experts_name and (given != wanted).any():
        return math.inf
    return float(np.abs(given - wanted).max()) / max(1.0, float(np.abs(wanted).max()))


def _random_inputs(exported: ExportedModel, size: int, random: np.random.Generator) -> np.ndarray:
    facts = exported.metadata
    shape = (size, *(_OPEN_SIDE if axis is None else axis for axis in facts.input_shape[1:]))
    low, high = facts.value_range or (-1.0, 1.0)
    return random.uniform(low, high, shape).astype(facts.input_dtype)
