"""Calls of layers and models as TensorFlow graphs that are ready to be timed.

No XLA: on a CPU it makes the matmuls of experts slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_vmoe.trainers.benchmark.timing import Candidate

Call = Callable[..., tuple[tf.Tensor, Sequence[tf.Tensor]]]


def trace(function: Any, *arguments: tf.Tensor) -> Callable[[], Any]:
    """Returns a function that runs a `tf.function` on fixed arguments.

    Args:
        function: the `tf.function`; it is traced here, once, and never looked up again.
        *arguments: what it runs on.
    """
    graph = function.get_concrete_function(*arguments)
    return lambda: graph(*arguments)


def forward(call: Call, inputs: tf.Tensor) -> Candidate:
    """Returns a candidate that runs `call(inputs)`.

    Args:
        call: from a tensor to an output and a list of losses, which are not computed here.
        inputs: the tensor.
    """

    @tf.function(autograph=False)
    def run(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs, _ = call(x)
        return outputs, _first(outputs)

    traced = trace(run, inputs)
    return lambda: traced()[1]


def forward_backward(
    call: Call,
    weights: Sequence[Any],
    inputs: tf.Tensor,
    upstream: tf.Tensor,
    *arguments: tf.Tensor,
) -> Candidate:
    """Returns a candidate that runs `call(inputs, *arguments)` and all its gradients.

    Args:
        call: from a tensor and arguments to an output and a list of losses.
        weights: Keras variables; gradients are taken of them and of the inputs.
        inputs: the tensor.
        upstream: the gradient that arrives at the output.
        *arguments: further tensors, of which no gradients are taken.
    """
    values = [weight.value for weight in weights]

    @tf.function(autograph=False)
    def run(x: tf.Tensor, upstream: tf.Tensor, *arguments: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs, losses = call(x, *arguments)
        gradients = tape.gradient(
            [outputs, *losses],
            [x, *values],
            output_gradients=[upstream, *(tf.ones_like(loss) for loss in losses)],
        )
        # The output too: a graph leaves out what nobody asks for, such as the last matmul.
        return outputs, gradients, _first(outputs)

    traced = trace(run, inputs, upstream, *arguments)
    return lambda: traced()[2]


def _first(tensor: tf.Tensor) -> tf.Tensor:
    # One number to fetch: a function's outputs are there together, and fetching all of them would
    # time a copy.
    return tf.reshape(tensor, [-1])[0]
