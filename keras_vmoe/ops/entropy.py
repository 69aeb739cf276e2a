"""Entropy losses of a router that serves several modalities, each alone.

They are of all groups together, for a group holds few tokens of a text; under tf.distribute of
those of one replica, so that the forward passes of replicas need no exchange.

Axis letters: g groups, s tokens per group, e experts, m modalities.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_vmoe.ops.losses import (
    safe_divide,
    squared_coefficient_of_variation,
    token_weights,
)
from keras_vmoe.ops.validation import require, require_rank


def token_entropy(probabilities: Any) -> Any:
    """Entropy over the last axis, nats; `[..., e]` to `[...]`. 0 log 0 is 0, with a gradient of 0.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> [round(float(h), 4) for h in ops.token_entropy(np.array([[1.0, 0.0], [0.5, 0.5]]))]
    [0.0, 0.6931]
    """
    probabilities = ops.convert_to_tensor(probabilities)
    positive = probabilities > 0
    safe = ops.where(positive, probabilities, ops.ones_like(probabilities))
    return ops.sum(ops.where(positive, -safe * ops.log(safe), ops.zeros_like(safe)), axis=-1)


def of_modality(modality: Any, index: int, mask: Any = None) -> Any:
    """`[g, s]` bool, the tokens of one modality that count.

    Args:
        modality: `[g, s]` ints, the modality of each token.
        index: which modality.
        mask: optional `[g, s]` bool; false tokens are of none.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> np.asarray(ops.of_modality(np.array([[0, 0, 1]]), 1)).tolist()
    [[False, False, True]]
    """
    found = ops.equal(modality, index)
    return found if mask is None else ops.logical_and(found, ops.cast(mask, "bool"))


def mean_gates(gates: Any, mask: Any = None) -> Any:
    """Mean gates over the tokens of all groups, `[e]`; zeros where there is no token.

    Args:
        gates: `[g, s, e]`.
        mask: optional `[g, s]` bool, such as the tokens of one modality.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[1.0, 0.0], [0.5, 0.5]]], "float32")
    >>> np.asarray(ops.mean_gates(gates)).tolist()
    [0.75, 0.25]
    """
    require_rank("gates", gates, 3, "[groups, tokens, experts]")
    gates = ops.convert_to_tensor(gates)
    weights = token_weights(gates, mask)
    sums = ops.sum(gates * ops.expand_dims(weights, -1), axis=(0, 1))
    return safe_divide(sums, ops.broadcast_to(ops.sum(weights), ops.shape(sums)))


def local_entropy_loss(gates: Any, mask: Any = None) -> Any:
    """Mean entropy of the tokens' gates, nats: small where the router is sure of each token.

    Args:
        gates: `[g, s, e]`, the softmax of the router.
        mask: optional `[g, s]` bool, the tokens of one modality.

    Returns:
        A scalar, between 0 and log e; 0 without tokens.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> float(ops.local_entropy_loss(np.array([[[1.0, 0.0], [0.0, 1.0]]], "float32")))
    0.0

    Reference: Mustafa et al. 2022, arXiv 2206.02770, eq. 2.
    """
    require_rank("gates", gates, 3, "[groups, tokens, experts]")
    gates = ops.convert_to_tensor(gates)
    weights = token_weights(gates, mask)
    return safe_divide(ops.sum(token_entropy(gates) * weights), ops.sum(weights))


def global_entropy_loss(gates: Any, mask: Any = None, threshold: float | None = None) -> Any:
    """Minus the entropy of the mean gates: small where the tokens together use many experts.

    With a threshold of `log(n)` nats it is `max(0, log(n) + loss)`: it pushes until the tokens
    use about n experts, and asks no more; n is a soft minimum.

    Args:
        gates: `[g, s, e]`, the softmax of the router.
        mask: optional `[g, s]` bool, the tokens of one modality.
        threshold: nats, at most log e; `None` leaves it out.

    Returns:
        A scalar; 0 without tokens.

    Raises:
        ValueError: a threshold that no mean gates can reach.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[1.0, 0.0], [0.0, 1.0]]], "float32")
    >>> round(float(ops.global_entropy_loss(gates)), 4)
    -0.6931
    >>> float(ops.global_entropy_loss(gates, threshold=float(np.log(2))))
    0.0

    Reference: Mustafa et al. 2022, arXiv 2206.02770, eq. 2 and section 2.2.1 (thresholds).
    """
    gates = ops.convert_to_tensor(gates)
    entropy = token_entropy(mean_gates(gates, mask))
    if threshold is None:
        return -entropy
    experts = gates.shape[-1]
    require(
        0 <= threshold <= math.log(experts) + 1e-6,
        f"threshold must be between 0 and log({experts}) = {math.log(experts):.4f} nats, the "
        f"largest entropy of {experts} experts. Received: threshold={threshold}",
    )
    loss = ops.maximum(threshold - entropy, 0.0)
    # Without tokens there is no entropy, and nothing to ask for.
    some = ops.sum(token_weights(gates, mask)) > 0
    return ops.where(some, loss, ops.zeros_like(loss))


def balanced_importance_loss(probabilities: Any, masks: list[Any]) -> Any:
    """Importance loss in which each modality counts alike, however many tokens it has.

    The importance of an expert is the sum over modalities of the mean probability of their tokens.

    Args:
        probabilities: `[g, s, e]`, the noise-free softmax.
        masks: `[g, s]` bool of each modality.

    Returns:
        `[g]`, the squared coefficient of variation over experts.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], "float32")
    >>> text = np.array([[False, False, True]])
    >>> float(ops.balanced_importance_loss(gates, [~text, text])[0])
    0.0
    """
    require_rank("probabilities", probabilities, 3, "[groups, tokens, experts]")
    probabilities = ops.convert_to_tensor(probabilities)
    importance = 0.0
    for mask in masks:
        weights = ops.expand_dims(token_weights(probabilities, mask), -1)
        sums = ops.sum(probabilities * weights, axis=1)
        importance += safe_divide(sums, ops.broadcast_to(ops.sum(weights, axis=1), ops.shape(sums)))
    return squared_coefficient_of_variation(importance)
