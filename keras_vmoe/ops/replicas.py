"""Numbers of all replicas of a training step that is run under `tf.distribute`.

Elsewhere, on one device or where one program holds the whole batch (a mesh, JAX), tensors are
handed back as they are.
"""

from __future__ import annotations

from typing import Any

import keras


def _context() -> Any | None:
    """TensorFlow's replica context where there are several replicas, else `None`."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def sum_over_replicas(values: Any) -> Any:
    """The sum of a tensor over all replicas; gradients flow back to each.

    Args:
        values: a tensor of the same shape on every replica.

    Returns:
        The same tensor on every replica, shaped like `values`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> ops.sum_over_replicas(np.ones(3)).tolist()
    [1.0, 1.0, 1.0]
    """
    context = _context()
    return values if context is None else context.all_reduce("sum", values)


def gather_from_replicas(values: Any) -> Any:
    """The rows of all replicas, one replica after the other; gradients flow back to each.

    Args:
        values: `[b, ...]`; replicas may have different b.

    Returns:
        `[sum of b, ...]`, the same on every replica.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> ops.gather_from_replicas(np.ones((2, 3))).shape
    (2, 3)
    """
    context = _context()
    return values if context is None else context.all_gather(values, axis=0)
