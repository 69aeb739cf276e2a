"""How well a classifier knows what it does not know: likelihood, Brier score, calibration error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.ops.validation import require, require_positive_int

#: Bins of equal width, as Guo et al. 2017 take them.
NUM_BINS = 15


class Calibration(NamedTuple):
    """What `calibration` measures; n images.

    Attributes:
        nll: mean negative log-likelihood of the right class, nats.
        brier: mean squared distance of the probabilities from the right class, 0 to 2.
        ece: expected calibration error, 0 to 1.
    """

    nll: float
    brier: float
    ece: float


def calibration(logits: Any, labels: Any, num_bins: int = NUM_BINS) -> Calibration:
    """Negative log-likelihood, Brier score and calibration error of predictions.

    Args:
        logits: `[n, classes]`, whose softmax are the probabilities (of probabilities p give
            `np.log(p)`); of the members of an ensemble `[n, m, classes]`, whose mean probability
            counts.
        labels: class ids `[n]`, or probabilities `[n, classes]`.
        num_bins: bins of the calibration error.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: no images, not as many labels as images, labels that are no class ids, no bins.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> found = evaluation.calibration(np.log([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
    >>> round(found.nll, 4), round(found.brier, 4), round(found.ece, 4)
    (0.9163, 0.68, 0.3)

    Reference: Guo et al. 2017, arXiv 1706.04599, eq. 3; Brier 1950.
    """
    running = RunningCalibration(num_bins)
    running.add(logits, labels)
    return running.result()


def negative_log_likelihood(logits: Any, labels: Any) -> float:
    """Mean negative log-likelihood of the right class, nats; arguments as for `calibration`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> round(evaluation.negative_log_likelihood(np.log([[0.8, 0.2]]), np.array([1])), 4)
    1.6094
    """
    return calibration(logits, labels).nll


def brier_score(logits: Any, labels: Any) -> float:
    """Mean squared distance of the probabilities from the right class, 0 to 2.

    Arguments as for `calibration`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> round(evaluation.brier_score(np.log([[0.8, 0.2]]), np.array([1])), 4)
    1.28

    Reference: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    return calibration(logits, labels).brier


def expected_calibration_error(logits: Any, labels: Any, num_bins: int = NUM_BINS) -> float:
    """Mean distance of confidence from accuracy, over bins of equal width in the confidence.

    The confidence of an image is the probability of the predicted class; a bin `(a, b]` counts
    with its share of the images. Arguments as for `calibration`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> logits, labels = np.log([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])
    >>> round(evaluation.expected_calibration_error(logits, labels), 4)
    0.3

    Reference: Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    return calibration(logits, labels, num_bins).ece


class RunningCalibration:
    """The sums of `calibration`, batch by batch.

    Args:
        num_bins: bins of the calibration error.
    """

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        require_positive_int("num_bins", num_bins)
        self._images, self._nll, self._brier = 0, 0.0, 0.0
        self._gaps = np.zeros(num_bins)  # of each bin: summed confidence less summed hits

    def add(self, logits: Any, labels: Any) -> None:
        """Counts some more images; arguments as for `calibration`."""
        log_p = _log_probabilities(logits)
        labels = np.asarray(kops.convert_to_numpy(labels))
        require(
            labels.shape in (log_p.shape[:1], log_p.shape),
            f"labels must have shape {log_p.shape[:1]} or {log_p.shape}, a class or its "
            f"probabilities for each image. Received: labels of shape {labels.shape}",
        )
        if labels.ndim == 1:
            labels = _one_hot(labels, log_p.shape[-1])
        p, best = np.exp(log_p), log_p.argmax(-1)
        confidence = p.max(-1)
        # A class that cannot be right may have any probability, 0 too.
        self._nll -= float(np.sum(labels * np.where(labels > 0, log_p, 0.0)))
        self._brier += float(np.sum((p - labels) ** 2))
        count = len(self._gaps)
        bins = np.clip(np.ceil(confidence * count).astype(int) - 1, 0, count - 1)
        np.add.at(self._gaps, bins, confidence - (best == labels.argmax(-1)))
        self._images += len(log_p)

    def result(self) -> Calibration:
        """What was found so far.

        Raises:
            ValueError: if there was no image.
        """
        n = self._images
        require(n > 0, "logits must be of at least one image. Received: none")
        return Calibration(self._nll / n, self._brier / n, float(np.abs(self._gaps).sum() / n))


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """`[n, classes]` of class ids `[n]`."""
    require(
        labels.dtype.kind in "iu",
        f"labels must be integer class ids. Received: labels of dtype {labels.dtype}",
    )
    # An id of -1, which often marks a missing label, would count as the last class.
    outside = labels[(labels < 0) | (labels >= num_classes)]
    require(
        not outside.size,
        f"labels must be class ids from 0 to {num_classes - 1}. "
        f"Received: labels with {', '.join(map(str, np.unique(outside)[:3]))}; "
        "leave images without a label out",
    )
    return np.eye(num_classes)[labels]


def _log_probabilities(logits: Any) -> np.ndarray:
    """`[n, classes]` in float64; of an ensemble, of the mean probability."""
    logits = np.asarray(kops.convert_to_numpy(logits))
    if logits.ndim == 3:
        logits = np.asarray(kops.convert_to_numpy(ops.ensemble_logits(logits)))
    require(
        logits.ndim == 2,
        "logits must have shape [images, classes] or [images, members, classes]. "
        f"Received: logits of shape {logits.shape}",
    )
    logits = logits.astype("float64")
    logits = logits - logits.max(-1, keepdims=True, initial=-np.inf)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
