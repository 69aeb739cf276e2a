"""The exponential moving average of the weights, where it is evaluated and saved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_vmoe import distribution


@contextlib.contextmanager
def averaged_weights(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    mesh: distribution.Mesh | None = None,
) -> Iterator[None]:
    """Lets a `with` block see the averaged weights in the model; without an average, its own.

    Args:
        model: the model.
        optimizer: its optimizer, built with the model's trainable variables.
        mesh: where both are; None: not on a mesh.
    """
    # Before the first update the averages are zeros.
    if not optimizer.use_ema or int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        yield
        return
    # Keras' SwapEMAWeights callback reads the averages from here too.
    averages = optimizer._model_variables_moving_average
    pairs = list(zip(model.trainable_variables, averages, strict=True))
    if mesh is None:
        swap = functools.partial(_swap, pairs)
    else:
        swap = mesh.function(functools.partial(_swap_on_mesh, pairs))
    swap()
    try:
        yield
    finally:
        swap()


def _swap_on_mesh(pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    # All are read before any is written.
    values = [(tf.identity(weight.value), tf.identity(average.value)) for weight, average in pairs]
    for (weight, average), (weight_value, average_value) in zip(pairs, values, strict=True):
        weight.assign(average_value)
        average.assign(weight_value)


def _swap(pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    on_jax = keras.backend.backend() == "jax"  # where arrays never change
    for weight, average in pairs:
        weight_value = weight.value if on_jax else keras.ops.convert_to_numpy(weight.value)
        weight.assign(average.value)
        average.assign(weight_value)
