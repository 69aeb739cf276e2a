"""Gradients on whichever backend Keras runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vmoe import checkpoints
from tests.support.golden import max_error


def value_and_gradients(
    function: Callable[..., Any], *arrays: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`function(*tensors)`, a scalar, and its gradient with respect to each of the arrays."""
    if keras.backend.backend() == "jax":
        import jax

        tensors = [jax.numpy.asarray(array) for array in arrays]
        differentiated = jax.value_and_grad(function, argnums=tuple(range(len(arrays))))
        value, found = jax.jit(differentiated)(*tensors)
        return np.asarray(value), [np.asarray(gradient) for gradient in found]
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(array) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    found = tape.gradient(value, tensors, unconnected_gradients="zero")
    return value.numpy(), [tf.convert_to_tensor(gradient).numpy() for gradient in found]


def layer_gradients(
    layer: keras.layers.Layer, loss: Callable[[Any, list[Any]], Any], inputs: Any, **arguments: Any
) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """Runs a built layer and differentiates `loss(outputs, layer.losses)`.

    Returns:
        The outputs, the gradient of each trainable variable by path, and that of the inputs.
    """
    variables = layer.trainable_variables
    if keras.backend.backend() == "jax":
        import jax

        def run(values: list[Any], x: Any) -> tuple[Any, Any]:
            outputs, _, losses = layer.stateless_call(
                values,
                [v.value for v in layer.non_trainable_variables],
                x,
                return_losses=True,
                **arguments,
            )
            return loss(outputs, losses), outputs

        differentiated = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
        (_, outputs), (found, of_inputs) = differentiated(
            [v.value for v in variables], jax.numpy.asarray(inputs)
        )
    else:
        import tensorflow as tf

        x = tf.convert_to_tensor(inputs)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, **arguments)
            value = loss(outputs, layer.losses)
        values = [v.value for v in variables]
        *found, of_inputs = tape.gradient(value, [*values, x], unconnected_gradients="zero")
        found = [tf.convert_to_tensor(gradient) for gradient in found]
    by_path = {v.path: np.asarray(gradient) for v, gradient in zip(variables, found, strict=True)}
    return outputs, by_path, np.asarray(of_inputs)


def assert_gradients_of_the_reference(
    model: keras.Model, gradients: dict[str, np.ndarray], wanted: dict[str, np.ndarray]
) -> None:
    """The gradients of a model by path are the reference's, `wanted["grad_params/NAME"]`."""
    # Key biases have no gradient but rounding: the softmax does not see them.
    scale = max(np.abs(wanted[k]).max() for k in wanted if k.startswith("grad_params"))
    for name, variable in checkpoints.reference_variables(model).items():
        gradient = wanted[f"grad_params/{name}"]
        if np.abs(gradient).max() < 1e-6 * scale:
            assert np.abs(gradients[variable.path]).max() < 1e-6 * scale, name
        else:
            assert max_error(gradients[variable.path], gradient) < 1e-4, name
