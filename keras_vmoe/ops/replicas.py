"""Numbers of all replicas of a training step that is run under `tf.distribute`.

Elsewhere, on one device or where one program holds the whole batch (a mesh, JAX), tensors are
handed back as they are.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def _context() -> Any | None:
    """TensorFlow's replica context where there are several replicas, else `None`."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def num_replicas() -> int:
    """How many replicas take this step together.

    Example:

    >>> from keras_vmoe import ops
    >>> ops.num_replicas()
    1
    """
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


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


def own_rows(values: Any) -> Any:
    """Where the rows of this replica are among those of `gather_from_replicas`.

    Args:
        values: `[b, ...]`.

    Returns:
        `[b, sum of b]` bool, one true in each row.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe.ops import replicas
    >>> np.asarray(replicas.own_rows(np.ones((2, 3)))).tolist()
    [[True, False], [False, True]]
    """
    rows = ops.arange(ops.shape(values)[0], dtype="int32")
    context = _context()
    if context is None:
        places = rows
    else:
        replica = context.replica_id_in_sync_group
        owners = context.all_gather(ops.zeros_like(rows) + replica, axis=0)
        mine = ops.cast(ops.equal(owners, replica), "int32")
        # Counted within this replica; -1 is no row.
        places = mine * ops.cumsum(mine) - 1
    return ops.equal(ops.expand_dims(rows, 1), ops.expand_dims(places, 0))
