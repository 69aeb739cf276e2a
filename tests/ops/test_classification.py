"""The task losses against numbers by hand."""

import numpy as np
import pytest

from keras_vmoe.ops import classification_loss

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


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(kind, smoothing):
    share = np.array([0.7, 0.55], "float32")
    other = np.array([2, 0], "int32")
    mixed = share[:, None] * np.eye(3, dtype="float32")[LABELS]
    mixed += (1 - share)[:, None] * np.eye(3, dtype="float32")[other]
    first, second = (
        np.asarray(classification_loss(labels, LOGITS, kind, smoothing))
        for labels in (LABELS, other)
    )
    found = np.asarray(classification_loss(mixed, LOGITS, kind, smoothing))
    np.testing.assert_allclose(found, share * first + (1 - share) * second, rtol=1e-6)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind='softmx' is no loss"):
        classification_loss(LABELS, LOGITS, "softmx")
