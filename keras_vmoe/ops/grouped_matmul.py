"""Rows sorted by expert times stacked kernels: the `ragged_dot` that Keras lacks.

The TensorFlow branch works on contiguous slices, one matmul an expert, so that no row is padded
and no kernel is gathered per row. `tf.unstack` and not `kernels[e]`: the gradient of indexing
makes one full-size zero tensor per expert, that of unstacking is one stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vmoe.ops.validation import concrete, require, require_rank


def _require_backend() -> str:
    backend = keras.backend.backend()
    require(
        backend in ("tensorflow", "jax"),
        f"grouped_matmul runs on TensorFlow and JAX. Received: KERAS_BACKEND={backend!r}; "
        "use dispatch='gather'.",
    )
    return backend


def _check_groups(rows: Any, kernels: Any, group_sizes: Any) -> None:
    require_rank("rows", rows, 2, "[rows, d]")
    require_rank("kernels", kernels, 3, "[experts, d, h]")
    require_rank("group_sizes", group_sizes, 1, "[experts]")
    require(
        rows.shape[-1] == kernels.shape[1],
        f"rows and kernels must agree in width. Received: rows {tuple(rows.shape)}, "
        f"kernels {tuple(kernels.shape)}",
    )
    require(
        group_sizes.shape[0] in (None, kernels.shape[0]),
        f"group_sizes must have one entry per kernel, {kernels.shape[0]}. "
        f"Received: {tuple(group_sizes.shape)}",
    )
    sizes = concrete(group_sizes)
    if sizes is not None and rows.shape[0] is not None:
        require(
            sizes.min(initial=0) >= 0 and sizes.sum() <= rows.shape[0],
            f"group_sizes must be non-negative and add up to at most the {rows.shape[0]} rows. "
            f"Received: group_sizes={sizes.tolist()}",
        )


def _map_slices(
    function: Callable[..., Any], rows: Any, stacked: list[Any], group_sizes: Any, width: int
) -> Any:
    """TensorFlow: `function(slice, *parameters)` on each expert's rows; the rest gives zero."""
    import tensorflow as tf

    rest = tf.shape(rows)[0] - tf.reduce_sum(group_sizes)
    count = stacked[0].shape[0]
    slices = tf.split(rows, tf.concat([group_sizes, [rest]], 0), num=count + 1)
    parameters = zip(*(tf.unstack(part) for part in stacked), strict=True)
    outputs = [function(part, *own) for part, own in zip(slices[:-1], parameters, strict=True)]
    return tf.concat(outputs + [tf.zeros([rest, width], rows.dtype)], 0)


def _dense(part: Any, kernel: Any, bias: Any) -> Any:
    import tensorflow as tf

    if part.dtype.size < 4:  # the gradient of BiasAdd adds up halves in halves, one row at a time
        return tf.matmul(part, kernel) + bias
    # BiasAdd and not +: TensorFlow fuses only the former into the matmul.
    return tf.nn.bias_add(tf.matmul(part, kernel), bias)


# Below this many rows an expert, a training step moves kernels and their gradients about for longer
# than it multiplies. Measured: at 25 rows the gradient below takes 0.8 of the time of automatic
# differentiation, at 49 the same, at 196 it takes 1.2.
FEW_ROWS = 32


def has_few_rows(choices: tuple[int | None, ...], num_experts: int, slots: Any) -> bool:
    """Whether so many choices make fewer than `FEW_ROWS` rows an expert, and never many for one.

    Rows are padded to the longest group, so an expert that all tokens may choose would cost as much
    for every expert: it may have four times `FEW_ROWS` slots at most.

    Args:
        choices: `[g, s, k]`, the shape of a plan's weights; where an axis is not known, the answer
            is no.
        num_experts: experts (e).
        slots: of an expert in a group; where it is a tensor, the answer is no.

    Example:

    >>> has_few_rows((2, 400, 1), 32, slots=16), has_few_rows((2, 400, 1), 32, slots=400)
    (True, False)
    """
    if None in choices or not isinstance(slots, int):
        return False
    most = choices[0] * slots
    return math.prod(choices) < FEW_ROWS * num_experts and most <= 4 * FEW_ROWS


def _dense_of_few_rows(rows: Any, kernels: Any, biases: Any, group_sizes: Any) -> Any:
    """TensorFlow: `_dense` on each expert's rows, with a gradient written by hand.

    Automatic differentiation makes each expert's kernel gradient, holds all of them, and copies
    them into one stack. Here one batched matmul of padded rows writes that stack.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def dense(rows: Any, kernels: Any, biases: Any, sizes: Any) -> tuple[Any, Any]:
        def gradient(upstream: Any) -> tuple[Any, Any, Any, None]:
            with tf.name_scope("experts_gradient"):  # profiles know operations by their scopes
                return (*_few_rows_gradient(rows, kernels, sizes, upstream), None)

        return _map_slices(_dense, rows, [kernels, biases], sizes, kernels.shape[-1]), gradient

    # A variable that is read inside would be another argument to TensorFlow.
    return dense(*map(tf.convert_to_tensor, (rows, kernels, biases, group_sizes)))


def _few_rows_gradient(rows: Any, kernels: Any, sizes: Any, upstream: Any) -> tuple[Any, Any, Any]:
    """Gradients of rows, kernels and biases, from that of the products, `[m, h]`."""
    import tensorflow as tf

    count, largest = kernels.shape[0], tf.reduce_max(sizes)
    expert = tf.repeat(tf.range(count), sizes)  # of each row that is one's
    starts, place = tf.cumsum(sizes, exclusive=True), tf.range(largest)
    index = tf.minimum(tf.expand_dims(starts, 1) + place, tf.shape(rows)[0] - 1)  # [e, largest]
    filled = tf.expand_dims(place < tf.expand_dims(sizes, 1), -1)
    inputs, outer = tf.gather(rows, index), tf.gather(upstream, index)
    # What `outer` has in rows that nobody fills meets these zeros.
    inputs = tf.where(filled, inputs, tf.zeros_like(inputs))
    padded = tf.reshape(tf.matmul(outer, kernels, transpose_b=True), [-1, rows.shape[-1]])
    kept = tf.shape(expert)[0]
    exact = tf.cast(upstream[:kept], tf.float64 if upstream.dtype == tf.float64 else tf.float32)
    of_biases = tf.math.unsorted_segment_sum(exact, expert, count)  # sums of halves lose digits
    row = tf.gather(tf.range(count) * largest - starts, expert) + tf.range(kept)
    return (
        tf.pad(tf.gather(padded, row), [[0, tf.shape(rows)[0] - kept], [0, 0]]),
        tf.matmul(inputs, outer, transpose_a=True),
        tf.cast(of_biases, upstream.dtype),
    )


def grouped_matmul(rows: Any, kernels: Any, group_sizes: Any) -> Any:
    """Multiplies consecutive groups of rows, each by its own kernel.

    Args:
        rows: `[m, d]`; the first `group_sizes[0]` rows belong to kernel 0, and so on.
        kernels: `[e, d, h]`.
        group_sizes: `[e]` ints; may be zero; their sum may be below m.

    Returns:
        `[m, h]`; zero for the rows beyond the last group. The cost is that of m rows, not e * m.

    Raises:
        ValueError: ranks or widths that do not fit, sizes (in eager mode) that exceed the rows, a
            backend other than TensorFlow and JAX.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> rows = np.ones((3, 2), "float32")
    >>> kernels = np.stack([np.eye(2), 2 * np.eye(2)]).astype("float32")
    >>> np.array(ops.grouped_matmul(rows, kernels, np.array([1, 2])))[:, 0].tolist()
    [1.0, 2.0, 2.0]

    Reference: Gale et al. 2022, arXiv 2211.15841 (MegaBlocks), for the idea of not padding.
    """
    backend = _require_backend()
    rows, kernels = ops.convert_to_tensor(rows), ops.convert_to_tensor(kernels)
    group_sizes = ops.cast(group_sizes, "int32")
    _check_groups(rows, kernels, group_sizes)
    if backend == "jax":
        import jax

        return jax.lax.ragged_dot(rows, kernels, group_sizes)
    return _map_slices(
        lambda part, kernel: ops.matmul(part, kernel),
        rows,
        [kernels],
        group_sizes,
        kernels.shape[-1],
    )


def grouped_mlp(
    rows: Any,
    group_sizes: Any,
    hidden_kernel: Any,
    hidden_bias: Any,
    output_kernel: Any,
    output_bias: Any,
    activation: Callable[[Any], Any],
    dropout: Callable[[Any], Any] | None = None,
    few_rows: bool = False,
) -> Any:
    """Two-layer expert MLPs on rows sorted by expert.

    One slice runs through both layers before the next begins, so the `[m, h]` hidden layer is
    never put together, unless for the gradient of few rows.

    Args:
        rows: `[m, d]`.
        group_sizes: `[e]` ints.
        hidden_kernel: `[e, d, h]`.
        hidden_bias: `[e, h]`.
        output_kernel: `[e, h, d]`.
        output_bias: `[e, d]`.
        activation: applied to the hidden layer.
        dropout: optional, applied after the activation.
        few_rows: on TensorFlow take the gradient that is made for fewer than `FEW_ROWS` rows an
            expert, and none with many (`has_few_rows`): it saves memory and traffic of kernel
            gradients. The values are the same.

    Returns:
        `[m, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> one = np.ones((1, 2, 2), "float32")
    >>> bias = np.zeros((1, 2), "float32")
    >>> out = ops.grouped_mlp(np.ones((3, 2), "float32"), np.array([3]), one, bias, one, bias, abs)
    >>> np.array(out)[0].tolist()
    [4.0, 4.0]
    """
    backend = _require_backend()
    rows = ops.convert_to_tensor(rows)
    group_sizes = ops.cast(group_sizes, "int32")
    _check_groups(rows, hidden_kernel, group_sizes)
    dropout = dropout or (lambda x: x)
    if backend == "jax":
        sizes = group_sizes
        # Rows beyond the last group are clipped to the last bias; nobody reads them.
        expert = ops.searchsorted(ops.cumsum(sizes), ops.arange(rows.shape[0]), side="right")
        expert = ops.minimum(expert, hidden_kernel.shape[0] - 1)
        hidden = grouped_matmul(rows, hidden_kernel, sizes) + ops.take(hidden_bias, expert, axis=0)
        hidden = dropout(activation(hidden))
        return grouped_matmul(hidden, output_kernel, sizes) + ops.take(output_bias, expert, axis=0)

    if few_rows:
        hidden = _dense_of_few_rows(rows, hidden_kernel, hidden_bias, group_sizes)
        hidden = dropout(activation(hidden))
        return _dense_of_few_rows(hidden, output_kernel, output_bias, group_sizes)

    def mlp(part: Any, kernel_in: Any, bias_in: Any, kernel_out: Any, bias_out: Any) -> Any:
        return _dense(dropout(activation(_dense(part, kernel_in, bias_in))), kernel_out, bias_out)

    stacked = [hidden_kernel, hidden_bias, output_kernel, output_bias]
    return _map_slices(mlp, rows, stacked, group_sizes, output_kernel.shape[-1])
