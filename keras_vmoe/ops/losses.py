"""Auxiliary losses of routers. Each is computed per group, `[g]`, and masks count for nothing.

Axis letters: g groups, s tokens per group, e experts, k choices per token.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_vmoe.ops.layout import lay_out
from keras_vmoe.ops.top_k import top_k
from keras_vmoe.ops.validation import (
    require,
    require_positive_int,
    require_rank,
    require_same_axes,
)


def token_weights(values: Any, mask: Any) -> Any:
    """`[g, s]` ones, with zeros for masked tokens, in the dtype of `values`."""
    if mask is None:
        return ops.ones(ops.shape(values)[:2], dtype=values.dtype)
    require_same_axes("mask", mask, values)
    return ops.cast(mask, values.dtype)


def safe_divide(numerator: Any, denominator: Any) -> Any:
    """Division that gives zero, with a zero gradient, where the denominator is zero."""
    empty = ops.equal(denominator, 0)
    safe = ops.where(empty, ops.ones_like(denominator), denominator)
    return ops.where(empty, ops.zeros_like(numerator), numerator / safe)


def _token_mean(values: Any, mask: Any) -> Any:
    """Mean over the tokens of a group: `[g, s]` to `[g]`, or `[g, s, e]` to `[g, e]`."""
    if mask is None:
        return ops.mean(values, axis=1)
    weights = token_weights(values, mask)
    count = ops.sum(weights, axis=1)
    if len(values.shape) == 3:
        weights, count = ops.expand_dims(weights, -1), ops.expand_dims(count, -1)
    count = ops.broadcast_to(count, ops.shape(ops.sum(values * weights, axis=1)))
    return safe_divide(ops.sum(values * weights, axis=1), count)


def squared_coefficient_of_variation(values: Any) -> Any:
    """`(std / mean) ** 2` over the last axis, with the population's standard deviation."""
    mean = ops.mean(values, axis=-1)
    return safe_divide(ops.var(values, axis=-1), ops.square(mean))


def importance_loss(probabilities: Any, mask: Any = None) -> Any:
    """Squared coefficient of variation of the experts' importance.

    Args:
        probabilities: `[g, s, e]`, the noise-free softmax.
        mask: optional `[g, s]` bool.

    Returns:
        `[g]`; zero when every expert has the same total probability.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> float(ops.importance_loss(np.full((1, 4, 2), 0.5, "float32"))[0])
    0.0

    Reference: Shazeer et al. 2017, arXiv 1701.06538, eq. 6-7; Riquelme et al. 2021, appendix A.
    """
    require_rank("probabilities", probabilities, 3, "[groups, tokens, experts]")
    probabilities = ops.convert_to_tensor(probabilities)
    weights = ops.expand_dims(token_weights(probabilities, mask), -1)
    return squared_coefficient_of_variation(ops.sum(probabilities * weights, axis=1))


def load_loss(
    logits: Any, noisy_logits: Any, noise_std: float, num_selected: int, mask: Any = None
) -> Any:
    """Squared coefficient of variation of the experts' expected load.

    The load of an expert is the mean probability, over a new draw of its noise, that it would be
    among the k chosen; the threshold is the k-th largest noisy logit.

    Args:
        logits: `[g, s, e]`, without noise.
        noisy_logits: `[g, s, e]`, those that were routed.
        noise_std: standard deviation of the noise, above 0 (V-MoE: 1 / e).
        num_selected: choices per token (k).
        mask: optional `[g, s]` bool.

    Returns:
        `[g]`.

    Raises:
        ValueError: where `noise_std` is not above 0: without noise the loss is undefined; more
            choices than experts.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> logits = np.array([[[1.0, 0.0], [0.0, 1.0]]], "float32")
    >>> round(float(ops.load_loss(logits, logits, 0.5, num_selected=1)[0]), 6)
    0.0

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix A.
    """
    require_rank("logits", logits, 3, "[groups, tokens, experts]")
    require_positive_int("num_selected", num_selected)
    require(
        noise_std > 0,
        f"noise_std must be above 0 for the load loss. Received: noise_std={noise_std}",
    )
    logits = ops.convert_to_tensor(logits)
    require(
        num_selected <= logits.shape[-1],
        f"num_selected must be at most the number of experts, {logits.shape[-1]}. "
        f"Received: num_selected={num_selected}",
    )
    threshold = top_k(noisy_logits, num_selected)[0][..., -1:]
    margin = (threshold - logits) / (noise_std * math.sqrt(2.0))
    # A compiler that starts from the mean, a scalar, would gather all tokens first.
    chosen = lay_out(0.5 * (1.0 - ops.erf(lay_out(margin, "batch"))), "batch")
    return squared_coefficient_of_variation(_token_mean(chosen, mask))


def gshard_loss(gates: Any, mask: Any = None) -> Any:
    """GShard's load balancing loss, `e * sum_e f_e P_e`.

    `f_e` is the share of tokens whose first choice is e, `P_e` the mean gate of e. Gradients flow
    through the gates only.

    Args:
        gates: `[g, s, e]`.
        mask: optional `[g, s]` bool.

    Returns:
        `[g]`; one for a perfectly balanced router.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> gates = np.array([[[0.75, 0.25], [0.25, 0.75]]], "float32")
    >>> float(ops.gshard_loss(gates)[0])
    1.0

    Reference: Lepikhin et al. 2020, arXiv 2006.16668, section 2.2.
    """
    require_rank("gates", gates, 3, "[groups, tokens, experts]")
    gates = ops.convert_to_tensor(gates)
    experts = gates.shape[-1]
    first = ops.one_hot(ops.top_k(gates, 1)[1][..., 0], experts, dtype=gates.dtype)
    product = _token_mean(gates, mask) * ops.stop_gradient(_token_mean(first, mask))
    return experts**2 * ops.mean(product, axis=-1)


def router_z_loss(logits: Any, mask: Any = None) -> Any:
    """Mean over tokens of the squared log-partition of the router's logits.

    Args:
        logits: `[g, s, e]`.
        mask: optional `[g, s]` bool.

    Returns:
        `[g]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> round(float(ops.router_z_loss(np.zeros((1, 3, 2), "float32"))[0]), 6)
    0.480453

    Reference: Zoph et al. 2022, arXiv 2202.08906 (ST-MoE), eq. 5.
    """
    require_rank("logits", logits, 3, "[groups, tokens, experts]")
    logits = ops.convert_to_tensor(logits)
    return _token_mean(ops.square(ops.logsumexp(logits, axis=-1)), mask)


def group_mean(values: Any, mask: Any = None) -> Any:
    """Mean of a `[g]` loss over the groups that hold at least one token.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> mask = np.array([[True, False], [False, False]])
    >>> float(ops.group_mean(np.array([3.0, 0.0], "float32"), mask))
    3.0
    """
    values = ops.convert_to_tensor(values)
    if mask is None:
        return ops.mean(values)
    real = ops.cast(ops.any(mask, axis=1), values.dtype)
    return safe_divide(ops.sum(values * real), ops.sum(real))
