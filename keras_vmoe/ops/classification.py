"""The loss and the prediction of image classification, for one model or an ensemble in one model.

Axis letters: b images, m members.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_vmoe.ops.validation import require, require_fraction

LOSSES = ("softmax", "sigmoid")


def _require_kind(kind: str) -> None:
    known = ", ".join(repr(name) for name in LOSSES)
    require(kind in LOSSES, f"kind={kind!r} is no loss of classification; known: {known}")


def _require_logits(logits: Any) -> None:
    shape = tuple(logits.shape)
    require(
        len(shape) in (2, 3) and shape[-1] is not None,
        "logits must have shape [images, classes] or [images, members, classes]. "
        f"Received: logits of shape {shape}",
    )


def classification_loss(
    labels: Any, logits: Any, kind: str = "softmax", label_smoothing: float = 0.0
) -> Any:
    """Returns the cross entropy of each image; of an ensemble, the mean over its members.

    It is linear in the labels: the loss of a mixture is the mixture of the losses, smoothed or not.

    Args:
        labels: class ids `[b]`, or probabilities `[b, classes]` (as MixUp makes); for "softmax"
            they sum to 1, for "sigmoid" any number of classes may be right.
        logits: `[b, classes]`, or `[b, m, classes]` of the members of an ensemble, each of which
            learns the same labels.
        kind: "softmax", or "sigmoid" for the sum of one binary cross entropy a class, as the
            V-MoE paper pre-trains with.
        label_smoothing: share of the probability that is spread over all classes.

    Returns:
        `[b]`, float32.

    Raises:
        ValueError: for another kind, a share outside [0, 1), or logits of another rank.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> loss = ops.classification_loss(np.array([1]), np.array([[0.0, 0.0]]), "softmax")
    >>> round(float(loss[0]), 4)  # log 2
    0.6931
    >>> members = np.array([[[0.0, 0.0], [-100.0, 100.0]]])
    >>> round(float(ops.classification_loss(np.array([1]), members)[0]), 4)
    0.3466

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 3.3; ensembles: Allingham et al.
    2021, arXiv 2110.03360, section 4.
    """
    _require_kind(kind)
    require_fraction("label_smoothing", label_smoothing)
    labels, logits = ops.convert_to_tensor(labels), ops.cast(logits, "float32")
    _require_logits(logits)
    classes = logits.shape[-1]
    if len(labels.shape) == 1:
        labels = ops.one_hot(labels, classes)
    labels = ops.cast(labels, "float32") * (1.0 - label_smoothing) + label_smoothing / classes
    if len(logits.shape) == 3:
        labels = ops.broadcast_to(ops.expand_dims(labels, 1), ops.shape(logits))
    if kind == "softmax":
        losses = ops.categorical_crossentropy(labels, logits, from_logits=True)
    else:
        # log(sigmoid(x)) and log(1 - sigmoid(x)), in the form that does not overflow.
        binary = ops.maximum(logits, 0) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
        losses = ops.sum(binary, axis=-1)
    return ops.mean(losses, axis=1) if len(logits.shape) == 3 else losses


def ensemble_logits(logits: Any, kind: str = "softmax") -> Any:
    """The logits of what the members of an ensemble predict together: their mean probability.

    The softmax (or the sigmoid) of the result is the mean of the members' softmaxes (sigmoids), so
    whatever reads the logits of one model reads these: the loss of `classification_loss` is that
    of the ensemble's prediction, the largest one is its class.

    Args:
        logits: `[b, m, classes]`; `[b, classes]`, of one model, are given back as they are.
        kind: "softmax" or "sigmoid", what the members were trained with.

    Returns:
        `[b, classes]`, float32: for "softmax" the log of the mean probability.

    Raises:
        ValueError: for another kind, or logits of another rank.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> members = np.log(np.array([[[0.9, 0.1], [0.5, 0.5]]], "float32"))
    >>> np.exp(np.array(ops.ensemble_logits(members), "float64")).round(3).tolist()
    [[0.7, 0.3]]

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 2.2.
    """
    _require_kind(kind)
    _require_logits(logits)
    if len(logits.shape) == 2:
        return logits
    logits = ops.cast(logits, "float32")
    if kind == "softmax":
        return _log_mean_exp(ops.log_softmax(logits, axis=-1))
    yes, no = _log_mean_exp(ops.log_sigmoid(logits)), _log_mean_exp(ops.log_sigmoid(-logits))
    return yes - no


def _log_mean_exp(values: Any) -> Any:
    return ops.logsumexp(values, axis=1) - math.log(values.shape[1])
