"""What `fit` needs for an ensemble whose members have logits of their own, `[b, m, classes]`."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.models.base import column_as_row
from keras_vmoe.ops.classification import LOSSES
from keras_vmoe.ops.validation import require_choice, require_fraction


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EnsembleCrossentropy(keras.losses.Loss):
    """The mean of the members' cross entropies: each learns the same labels for itself.

    Args:
        kind: `"softmax"`, or `"sigmoid"` for one binary cross entropy a class.
        label_smoothing: share of the probability that is spread over all classes.
        reduction, name: as of a Keras loss.

    Call arguments:
        y_true: class ids `[b]`, or probabilities `[b, classes]`.
        y_pred: logits `[b, m, classes]`, or `[b, classes]` of one model.

    Raises:
        ValueError: another kind, or a share outside [0, 1).

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> loss = models.EnsembleCrossentropy()
    >>> round(float(loss(np.array([1]), np.array([[[0.0, 0.0], [-100.0, 100.0]]]))), 4)
    0.3466

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 4.
    """

    def __init__(
        self,
        kind: str = "softmax",
        label_smoothing: float = 0.0,
        reduction: str = "sum_over_batch_size",
        name: str = "ensemble_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)
        require_choice("kind", kind, LOSSES)
        require_fraction("label_smoothing", label_smoothing)
        self.kind = kind
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.classification_loss(
            column_as_row(y_true), y_pred, self.kind, self.label_smoothing
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "label_smoothing": self.label_smoothing,
        }


class _OfPrediction(keras.metrics.Mean):
    """A mean over images of a number for each, of what the members predict together."""

    def __init__(self, kind: str, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        require_choice("kind", kind, LOSSES)
        self.kind = kind

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        values = self._values(column_as_row(y_true), ops.ensemble_logits(y_pred, self.kind))
        super().update_state(values, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EnsembleAccuracy(_OfPrediction):
    """The share of images whose class has the highest mean probability of all members.

    Args:
        kind: `"softmax"` or `"sigmoid"`, what the members are trained with.
        name, dtype: as of a Keras metric.

    Call arguments:
        y_true: class ids `[b]`, or probabilities `[b, classes]`.
        y_pred: logits `[b, m, classes]`, or `[b, classes]` of one model.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> metric = models.EnsembleAccuracy()
    >>> metric.update_state(np.array([0]), np.array([[[3.0, 0.0], [0.0, 1.0]]]))
    >>> float(metric.result())
    1.0

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 2.2.
    """

    def __init__(self, kind: str = "softmax", name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(kind, name, dtype)

    def _values(self, labels: Any, logits: Any) -> Any:
        classes = labels if len(labels.shape) == 1 else kops.argmax(labels, axis=-1)
        hits = kops.equal(kops.argmax(logits, axis=-1), kops.cast(classes, "int32"))
        return kops.cast(hits, self.dtype)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EnsembleNLL(_OfPrediction):
    """The cross entropy of what the members predict together, their mean probability.

    It is at most the mean of the members' own, which `EnsembleCrossentropy` trains.

    Args:
        kind: `"softmax"` or `"sigmoid"`, what the members are trained with.
        name, dtype: as of a Keras metric.

    Call arguments:
        y_true: class ids `[b]`, or probabilities `[b, classes]`.
        y_pred: logits `[b, m, classes]`, or `[b, classes]` of one model.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> metric = models.EnsembleNLL()
    >>> metric.update_state(np.array([1]), np.array([[[0.0, 0.0], [-100.0, 100.0]]]))
    >>> round(float(metric.result()), 4)  # -log 3/4
    0.2877

    Reference: Allingham et al. 2021, arXiv 2110.03360, section 2.2.
    """

    def __init__(self, kind: str = "softmax", name: str = "nll", dtype: Any = None) -> None:
        super().__init__(kind, name, dtype)

    def _values(self, labels: Any, logits: Any) -> Any:
        return ops.classification_loss(labels, logits, self.kind)
