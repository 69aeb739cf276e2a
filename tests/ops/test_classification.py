"""The task losses and the predictions of ensembles, by hand and by the reference."""

import numpy as np
import pytest

from keras_vmoe import ops
from keras_vmoe.ops import classification_loss
from tests.support.golden import load

ENSEMBLE = load("06_eee_token_k1_m2")

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


# ---------------------------------------------------------------------------------- ensembles


def members():
    return ENSEMBLE["det/logits"].reshape(4, 2, 10)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_loss_of_an_ensemble_is_the_references(kind):
    wanted = ENSEMBLE[f"det/ensemble/{kind}_xent_train"].reshape(4, 2).mean(1)
    for labels in (ENSEMBLE["in/labels"], ENSEMBLE["in/onehot"]):
        found = np.asarray(classification_loss(labels, members(), kind))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    main = ENSEMBLE[f"det/{kind}_xent/main_loss"]
    assert found.mean() == pytest.approx(float(main), rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_prediction_of_an_ensemble_is_the_references(kind):
    logits = ops.ensemble_logits(members(), kind)
    found = np.asarray(classification_loss(ENSEMBLE["in/labels"], logits, kind))
    np.testing.assert_allclose(found, ENSEMBLE[f"det/ensemble/{kind}_xent_eval"], rtol=1e-5)
    predicted = np.asarray(logits).argmax(-1)
    np.testing.assert_array_equal(predicted, ENSEMBLE[f"det/ensemble/label_pred_{kind}"])


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("kind", "link"), [("softmax", softmax), ("sigmoid", sigmoid)])
def test_the_mean_is_of_probabilities(kind, link):
    logits = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("float32")
    found = np.asarray(ops.ensemble_logits(logits, kind), "float64")
    mean = link(logits.astype("float64")).mean(1)
    np.testing.assert_allclose(link(found), mean, rtol=1e-5)
    if kind == "softmax":
        np.testing.assert_allclose(found, np.log(mean), atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_one_member_is_a_model(kind):
    one = LOGITS[:, None]
    for labels in (LABELS, targets(0.0)):
        np.testing.assert_allclose(
            np.asarray(classification_loss(labels, one, kind, 0.1)),
            np.asarray(classification_loss(labels, LOGITS, kind, 0.1)),
            rtol=1e-6,
        )
    loss = classification_loss(LABELS, ops.ensemble_logits(one, kind), kind)
    np.testing.assert_allclose(loss, classification_loss(LABELS, LOGITS, kind), rtol=1e-5)
    assert ops.ensemble_logits(LOGITS, kind) is LOGITS


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_members_that_are_sure_of_the_contrary_stay_finite(kind):
    logits = np.array([[[300.0, -300.0], [-300.0, 300.0]]], "float32")
    together = np.asarray(ops.ensemble_logits(logits, kind))
    np.testing.assert_allclose(together[0, 0], together[0, 1], atol=1e-4)
    loss = np.asarray(classification_loss(np.array([0]), together, kind))
    assert loss == pytest.approx(np.log(2) * (2 if kind == "sigmoid" else 1), rel=1e-4)


def test_the_loss_of_the_prediction_is_below_that_of_the_members():
    logits = np.random.default_rng(1).normal(size=(6, 4, 3)).astype("float32")
    labels = np.arange(6) % 3
    for kind in ("softmax", "sigmoid"):
        apart = np.asarray(classification_loss(labels, logits, kind))
        together = np.asarray(classification_loss(labels, ops.ensemble_logits(logits, kind), kind))
        assert (together < apart).all()


def test_wrong_shapes_kinds_and_shares_are_named():
    with pytest.raises(ValueError, match=r"logits of shape \(3,\)"):
        classification_loss(LABELS, np.zeros(3, "float32"), "softmax")
    with pytest.raises(ValueError, match=r"logits of shape \(1, 2, 3, 4\)"):
        ops.ensemble_logits(np.zeros((1, 2, 3, 4)))
    with pytest.raises(ValueError, match="kind='mean' is no loss"):
        ops.ensemble_logits(LOGITS, "mean")
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        classification_loss(LABELS, LOGITS, "softmax", 1.0)
