"""What each modality does with the experts of one MoE layer, from its routing record.

Axis letters: b pairs, t tokens of a pair, e experts, m modalities (`record.modalities`, in order).
"""

from __future__ import annotations

import numpy as np

from keras_vmoe.analysis.records import RoutingRecord
from keras_vmoe.ops.validation import require


def _tokens(record: RoutingRecord) -> list[np.ndarray]:
    """For each modality `[b, t]` bool, its tokens that count."""
    require(
        record.modality is not None,
        "record must be of a router that tells modalities apart, such as LIMoE's. Received: "
        f"that of layer {record.layer!r}, which does not",
    )
    counted = True if record.mask is None else record.mask
    return [(record.modality == m) & counted for m in range(len(record.modalities))]


def modality_counts(record: RoutingRecord) -> np.ndarray:
    """`[e, m]` int, the tokens of each modality that each expert took.

    With several choices a token (k), it counts at each expert that took it.

    Args:
        record: of a router that tells modalities apart.

    Raises:
        ValueError: a record of another router.

    Example:

    >>> from keras_vmoe import analysis
    >>> expert = np.array([[[0], [0], [1], [1]]])
    >>> record = analysis.RoutingRecord(
    ...     layer="moe",
    ...     router="top_k",
    ...     expert=expert,
    ...     weight=np.full((1, 4, 1), 0.75),
    ...     kept=np.array([[[True], [False], [True], [True]]]),
    ...     slot=np.zeros((1, 4, 1), int),
    ...     gates=np.where(expert == np.arange(2), 0.75, 0.25),
    ...     modality=np.array([[0, 0, 0, 1]]),
    ...     modalities=("image", "text"),
    ... )
    >>> analysis.modality_counts(record).tolist()
    [[1, 0], [1, 1]]
    >>> analysis.modality_shares(record)[:, 0].tolist()
    [1.0, 0.5]
    >>> analysis.success_rates(record).round(3).tolist()
    [0.667, 1.0]
    >>> analysis.effective_experts(record).round(3).tolist()
    [1.972, 1.755]
    """
    counts = [
        np.bincount(record.expert[own][record.kept[own]], minlength=record.num_experts)
        for own in _tokens(record)
    ]
    return np.stack(counts, axis=-1)


def modality_shares(record: RoutingRecord) -> np.ndarray:
    """`[e, m]`, of the tokens that an expert took the share of each modality; NaN of none.

    Args:
        record: as of `modality_counts`, which has an example.
    """
    counts = modality_counts(record)
    totals = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def success_rates(record: RoutingRecord) -> np.ndarray:
    """`[m]`, the share of the choices of each modality's tokens that got a slot; NaN of no tokens.

    Args:
        record: as of `modality_counts`, which has an example.

    Reference: Mustafa et al. 2022, arXiv 2206.02770, section 4 (success rates).
    """
    kept = [record.kept[own] for own in _tokens(record)]
    return np.array([own.mean() if own.size else np.nan for own in kept])


def effective_experts(record: RoutingRecord) -> np.ndarray:
    """`[m]`, how many experts the tokens of each modality use: `exp(H(mean gates))`, 1 to e.

    It is what the threshold of the global entropy loss is a minimum of. NaN of no tokens.

    Args:
        record: as of `modality_counts`, which has an example.

    Reference: Mustafa et al. 2022, arXiv 2206.02770, section 2.2.1 and eq. 2.
    """
    found = []
    for own in _tokens(record):
        if not own.any():
            found.append(np.nan)
            continue
        mean = record.gates[own].mean(axis=0, dtype="float64")
        mean = mean[mean > 0]
        found.append(np.exp(-np.sum(mean * np.log(mean))))
    return np.array(found)
