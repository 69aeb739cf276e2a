"""The exponential moving average of the weights, where it is evaluated and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def averaged_weights(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Lets a `with` block see the averaged weights in the model; without an average, its own.

    Args:
        model: the model.
        optimizer: its optimizer, built with the model's trainable variables.
    """
    # Before the first update the averages are zeros.
    if not optimizer.use_ema or int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        yield
        return
    # Keras' SwapEMAWeights callback reads the averages from here too.
    averages = optimizer._model_variables_moving_average
    pairs = list(zip(model.trainable_variables, averages, strict=True))
    _swap(pairs)
    try:
        yield
    finally:
        _swap(pairs)


def _swap(pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    for weight, average in pairs:
        weight_value = keras.ops.convert_to_numpy(weight.value)
        weight.assign(average.value)
        average.assign(weight_value)
