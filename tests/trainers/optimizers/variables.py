"""Variables with paths, and steps that are taken with given gradients."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import tensorflow as tf

# An expert kernel and bias, a plain kernel and bias: [e, d, h], [e, h], [d, h], [h].
SHAPES = {
    "moe/experts/hidden_kernel": (6, 4, 5),
    "moe/experts/hidden_bias": (6, 5),
    "head/kernel": (4, 5),
    "head/bias": (5,),
}


def arrays(seed: int, scale: float = 1.0, shapes=None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = shapes or SHAPES
    return {n: (scale * rng.normal(size=s)).astype("float32") for n, s in shapes.items()}


def variable(path: str, value: np.ndarray) -> keras.Variable:
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(value, name=name)


def variables(values: dict[str, np.ndarray]) -> list[keras.Variable]:
    return [variable(path, value) for path, value in values.items()]


def values(of: list[keras.Variable]) -> dict[str, np.ndarray]:
    return {v.path: v.numpy() for v in of}


def averages(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    return [v.numpy() for v in optimizer._model_variables_moving_average]


def stepper(optimizer, of: list[keras.Variable], **options):
    """A compiled function that takes a step with gradients by path."""
    optimizer.build(of)
    apply = tf.function(lambda gs: optimizer.apply(gs, of), autograph=False, **options)
    return lambda gradients: apply([tf.constant(gradients[v.path]) for v in of])


def take(optimizer, start, gradients, **options) -> list[dict[str, np.ndarray]]:
    """The values after each step."""
    of = variables(start)
    step, trail = stepper(optimizer, of, **options), []
    for each in gradients:
        step(each)
        trail.append(values(of))
    return trail


def assert_close(found, wanted, **tolerance) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], err_msg=name, **tolerance)
