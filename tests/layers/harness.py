"""What every layer has to do. Each check takes a `LayerCase`; test files run them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np

from tests.support.gradients import layer_gradients


class LayerCase(NamedTuple):
    """A layer to check: its class, arguments and the shape of its input (batch first).

    `also` holds arrays that its call needs besides, by the names of the arguments.
    """

    layer: type[keras.layers.Layer]
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    also: Mapping[str, np.ndarray] = MappingProxyType({})

    def make(self, **overrides: Any) -> keras.layers.Layer:
        return self.layer(**{**self.arguments, **overrides})

    def inputs(self) -> np.ndarray:
        return np.random.default_rng(0).normal(size=self.shape).astype("float32")

    def call(self, layer: keras.layers.Layer, **kwargs: Any) -> Any:
        return layer(self.inputs(), **self.also, **kwargs)

    def symbolic(self, batch: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A `keras.Input` for the input and one for each further argument."""
        also = {
            name: keras.Input(batch_shape=(batch, *value.shape[1:]), dtype=value.dtype.name)
            for name, value in self.also.items()
        }
        return keras.Input(batch_shape=(batch, *self.shape[1:])), also

    def built(self, **overrides: Any) -> keras.layers.Layer:
        """The layer with weights that are all different and far from zero."""
        layer = self.make(**overrides)
        layer.build(self.shape)
        rng = np.random.default_rng(1)
        for weight in layer.weights:
            if not weight.path.split("/")[-1].startswith("seed_generator"):
                weight.assign(0.3 * rng.normal(size=weight.shape))
        return layer


def flat(outputs: Any) -> list[Any]:
    """The tensors of an output: one, or those of a plan."""
    return keras.tree.flatten(outputs)


def total(outputs: Any, losses: list[Any]) -> Any:
    """A loss through which all that is differentiable gets a gradient."""
    value = sum(losses) if losses else 0.0
    for i, part in enumerate(flat(outputs)):
        if "float" in keras.backend.standardize_dtype(part.dtype):
            cotangent = np.random.default_rng(i).normal(size=part.shape)
            value = value + keras.ops.sum(
                keras.ops.cast(part, "float32") * cotangent.astype("float32")
            )
    return value


def without_shapes(config: Any) -> Any:
    """A config without the shapes that Keras notes for sublayers that are built."""
    if isinstance(config, dict):
        return {k: without_shapes(v) for k, v in config.items() if k != "build_config"}
    return config


def config_round_trip(case: LayerCase) -> None:
    layer = case.built()
    config = layer.get_config()
    json.dumps(config)  # nothing in it that a file could not hold
    again = case.layer.from_config(layer.get_config())
    assert again.get_config() == config
    fresh = case.make(name=layer.name).get_config()
    assert without_shapes(fresh) == without_shapes(config), "building changed the config"
    again.build(case.shape)
    again.set_weights(layer.get_weights())
    for found, wanted in zip(flat(case.call(again)), flat(case.call(layer)), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def saved_model_round_trip(case: LayerCase, folder: Any) -> None:
    layer = case.built()
    inputs, also = case.symbolic()
    model = keras.Model([inputs, *also.values()], layer(inputs, **also))
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    arrays = [case.inputs(), *case.also.values()]
    wanted, found = model(arrays), again(arrays)
    for one, other in zip(flat(wanted), flat(found), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def symbolic_shape_is_eager_shape(case: LayerCase) -> None:
    layer = case.built()
    eager = flat(case.call(layer))
    for batch in (case.shape[0], None):
        inputs, also = case.symbolic(batch)
        symbolic = flat(layer(inputs, **also))
        assert len(symbolic) == len(eager)
        for one, other in zip(symbolic, eager, strict=True):
            assert len(one.shape) == len(other.shape)
            agree = [s in (None, e) for s, e in zip(one.shape, other.shape, strict=True)]
            assert all(agree), f"{one.shape} in a graph, {other.shape} outside"
            assert one.dtype == keras.backend.standardize_dtype(other.dtype)


def half_precision(case: LayerCase) -> None:
    """Under mixed_bfloat16 weights stay float32, outputs are bfloat16 and near the float32 ones."""
    layer, half = case.built(), case.built(dtype="mixed_bfloat16")
    half.set_weights(layer.get_weights())
    assert all(w.dtype == "float32" for w in half.trainable_variables)
    for training in (False, True):
        kwargs = {"training": training} if half._call_has_training_arg else {}
        outputs = case.call(half, **kwargs)
        plan = isinstance(outputs, tuple)
        for part in flat(outputs):
            dtype = keras.backend.standardize_dtype(part.dtype)
            # Routing is float32 whatever the policy.
            assert dtype == "bfloat16" if not plan else dtype in ("float32", "int32", "bool")
            assert np.isfinite(np.asarray(keras.ops.cast(part, "float32"))).all()
    for one, other in zip(flat(case.call(half)), flat(case.call(layer)), strict=True):
        one, other = (np.asarray(keras.ops.cast(part, "float32")) for part in (one, other))
        assert np.abs(one - other).max() < 0.05 * max(np.abs(other).max(), 1.0)


def every_weight_learns(case: LayerCase) -> None:
    """One step: every trainable weight has a finite gradient that is not all zero."""
    layer = case.built()
    kwargs = {"training": True} if layer._call_has_training_arg else {}
    _, gradients, _ = layer_gradients(layer, total, case.inputs(), **case.also, **kwargs)
    for path, gradient in gradients.items():
        assert np.isfinite(gradient).all(), path
        # A key's bias moves all logits of a query alike, which the softmax does not see.
        assert gradient.any() or path.endswith("key/bias"), path


def numbers(case: LayerCase) -> dict[str, np.ndarray]:
    """Outputs and gradients, for comparison between backends."""
    layer = case.built()
    outputs, gradients, of_inputs = layer_gradients(layer, total, case.inputs(), **case.also)
    parts = {f"output {i}": np.asarray(part) for i, part in enumerate(flat(outputs))}
    ordered = {f"gradient {i}": gradient for i, gradient in enumerate(gradients.values())}
    return {**parts, **ordered, "gradient of inputs": of_inputs}


CHECKS: dict[str, Callable[[LayerCase], None]] = {
    check.__name__: check
    for check in (
        config_round_trip,
        saved_model_round_trip,
        symbolic_shape_is_eager_shape,
        half_precision,
        every_weight_learns,
    )
}


def run(check: str, case: LayerCase, folder: Any) -> None:
    """Runs the check of that name."""
    if check == "saved_model_round_trip":
        saved_model_round_trip(case, folder)
    else:
        CHECKS[check](case)
