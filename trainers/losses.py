"""The loss of image classification, one number an image."""

from __future__ import annotations

import keras
from keras import ops

LOSSES = ("softmax", "sigmoid")


def classification_loss(
    labels: keras.KerasTensor, logits: keras.KerasTensor, kind: str, label_smoothing: float = 0.0
) -> keras.KerasTensor:
    """Returns the cross entropy of each image.

    It is linear in the labels: the loss of a mixture is the mixture of the losses, smoothed or not.

    Args:
        labels: class ids `[b]`, or probabilities `[b, classes]` (as MixUp makes); for "softmax"
            they sum to 1, for "sigmoid" any number of classes may be right.
        logits: `[b, classes]`.
        kind: "softmax", or "sigmoid" for the sum of one binary cross entropy a class, as the
            V-MoE paper pre-trains with.
        label_smoothing: share of the probability that is spread over all classes.

    Returns:
        `[b]`, float32.

    Raises:
        ValueError: for another kind.

    Reference:
        Riquelme et al., Scaling vision with sparse mixture of experts, 2021, section 3.3.

    Example:
        >>> loss = classification_loss(ops.array([1]), ops.array([[0.0, 0.0]]), "softmax")
        >>> round(float(loss[0]), 4)  # log 2
        0.6931
    """
    if kind not in LOSSES:
        known = ", ".join(repr(name) for name in LOSSES)
        raise ValueError(f"kind={kind!r} is no loss of classification; known: {known}")
    logits = ops.cast(logits, "float32")
    classes = logits.shape[-1]
    if len(labels.shape) == 1:
        labels = ops.one_hot(labels, classes)
    labels = ops.cast(labels, "float32") * (1.0 - label_smoothing) + label_smoothing / classes
    if kind == "softmax":
        return ops.categorical_crossentropy(labels, logits, from_logits=True)
    # log(sigmoid(x)) and log(1 - sigmoid(x)), in the form that does not overflow.
    binary = ops.maximum(logits, 0) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.sum(binary, axis=-1)
