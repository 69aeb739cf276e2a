"""The task losses against numbers by hand."""

import numpy as np
import pytest

from keras_vmoe.trainers.losses import classification_loss

LOGITS = np.array([[2.0, -1.0, 0.5], [-80.0, 0.0, 80.0]], "float32")
LABELS = np.array([0, 1], "int32")


def targets(smoothing):
    return np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax(smoothing):
    logits = LOGITS.astype("float64")
    log_p = logits - np.log(np.exp(logits - 80).sum(-1, keepdims=True)) - 80
    expected = -(targets(smoothing) * log_p).sum(-1)
    actual = classification_loss(LABELS, LOGITS, "softmax", smoothing)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid(smoothing):
    logits, t = LOGITS.astype("float64"), targets(smoothing)
    expected = (t * np.logaddexp(0, -logits) + (1 - t) * np.logaddexp(0, logits)).sum(-1)
    actual = classification_loss(LABELS, LOGITS, "sigmoid", smoothing)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6)


def test_labels_may_be_probabilities():
    for kind in ("softmax", "sigmoid"):
        np.testing.assert_allclose(
            np.asarray(classification_loss(targets(0.0).astype("float32"), LOGITS, kind)),
            np.asarray(classification_loss(LABELS, LOGITS, kind)),
            rtol=1e-6,
        )
