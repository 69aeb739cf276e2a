"""Contrastive losses by hand and by plain formulas; hits; pairs that are not there."""

import numpy as np
import pytest
from keras import ops as kops

from keras_vmoe import ops
from tests.support.gradients import value_and_gradients

IMAGES = np.array([[1, 0], [0.6, 0.8], [0, 1]])
TEXTS = np.array([[0.8, 0.6], [0.6, 0.8], [-0.6, 0.8]])


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def losses(images, texts, scale, bias=None, kind="softmax", mask=None):
    logits = ops.pair_logits(images, texts, scale, bias, mask)
    return np.asarray(ops.contrastive_loss(logits, kind))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_hand_computed_numbers():
    assert losses(IMAGES, TEXTS, 1.0).mean() == pytest.approx(0.879159, abs=1e-6)
    assert losses(IMAGES, TEXTS, 10.0).mean() == pytest.approx(0.558971, abs=1e-6)
    logits = ops.pair_logits(IMAGES, TEXTS, 1.0)
    ways = [
        np.mean(-np.diag(log_softmax(np.asarray(x)))) for x in (logits.to_texts, logits.to_images)
    ]
    assert ways == pytest.approx([0.885553, 0.872766], abs=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_are_the_formulas(kind):
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 5, 8), unit(rng, 5, 8)
    logits = 7.0 * images @ texts.T - 2.0
    if kind == "softmax":
        wanted = -0.5 * np.diag(log_softmax(logits) + log_softmax(logits.T))
    else:
        signs = 2 * np.eye(5) - 1
        wanted = np.log1p(np.exp(-signs * logits)).sum(1)
    # A scale and a bias for each pair, as a model gives them, are the same as one for all.
    for scale, bias in ((7.0, -2.0), (np.full(5, 7.0), np.full(5, -2.0))):
        np.testing.assert_allclose(losses(images, texts, scale, bias, kind), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_finite_differences(kind):
    rng = np.random.default_rng(1)
    # In float32, as the logits are whatever the embeddings; hence the large step.
    arrays = [unit(rng, 4, 3), unit(rng, 4, 3), np.float64(3.0), np.float64(-1.0)]
    arrays = [np.asarray(array, "float32") for array in arrays]

    def loss(*tensors):
        return kops.mean(ops.contrastive_loss(ops.pair_logits(*tensors), kind))

    _, gradients = value_and_gradients(loss, *arrays)
    directions = [rng.normal(size=array.shape).astype("float32") for array in arrays]
    for i, direction in enumerate(directions):
        ends = [
            float(loss(*(a + s * 1e-2 * direction if i == j else a for j, a in enumerate(arrays))))
            for s in (1, -1)
        ]
        slope = float((gradients[i] * direction).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2, abs=1e-3)
    # The bias moves all logits alike, which the softmax does not see.
    assert (np.abs(gradients[3]) > 1e-3) == (kind == "sigmoid")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_order_of_pairs_does_not_matter(kind):
    rng = np.random.default_rng(2)
    images, texts, order = unit(rng, 6, 4), unit(rng, 6, 4), rng.permutation(6)
    plain = losses(images, texts, 5.0, kind=kind)
    np.testing.assert_allclose(
        losses(images[order], texts[order], 5.0, kind=kind), plain[order], rtol=1e-5
    )
    if kind == "softmax":  # images and texts change roles
        np.testing.assert_allclose(losses(texts, images, 5.0), plain, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_padded_pairs_are_no_counterparts(kind):
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 5, 4), unit(rng, 5, 4)
    mask = np.array([True, False, True, True, False])
    alone = ops.pair_logits(images[mask], texts[mask], 9.0, -1.0)
    masked = ops.pair_logits(images, texts, 9.0, -1.0, mask)
    found = np.asarray(ops.contrastive_loss(masked, kind))
    np.testing.assert_allclose(
        found[mask], np.asarray(ops.contrastive_loss(alone, kind)), rtol=1e-5
    )
    assert np.isfinite(found).all()
    hits = np.asarray(ops.contrastive_hits(masked))
    np.testing.assert_array_equal(hits[mask], np.asarray(ops.contrastive_hits(alone)))


def test_hits_count_both_ways():
    """Text 0 is nearer to image 1; to image 2 two texts are equally near, a miss."""
    np.testing.assert_allclose(
        IMAGES @ TEXTS.T, [[0.8, 0.6, -0.6], [0.96, 1.0, 0.28], [0.6, 0.8, 0.8]]
    )
    found = np.asarray(ops.contrastive_hits(ops.pair_logits(IMAGES, TEXTS, 1.0)))
    np.testing.assert_array_equal(found, [0.5, 1, 0.5])


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_hits_of_many_pairs(scale):
    rng = np.random.default_rng(4)
    images = unit(rng, 200, 16)
    texts = images + 1.5 * unit(rng, 200, 16)
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    logits, own = images @ texts.T, np.arange(200)
    wanted = 0.5 * (logits.argmax(1) == own) + 0.5 * (logits.argmax(0) == own)
    assert 0.1 < wanted.mean() < 0.9
    found = np.asarray(ops.contrastive_hits(ops.pair_logits(images, texts, scale)))
    np.testing.assert_array_equal(found, wanted)


def test_a_tie_is_a_miss():
    same = np.full((4, 3), 3**-0.5)
    assert not np.asarray(ops.contrastive_hits(ops.pair_logits(same, same, 10.0))).any()
    texts = np.eye(4)[:, [0, 1, 2, 2]].T  # the last two pairs are the same
    found = np.asarray(ops.contrastive_hits(ops.pair_logits(texts, texts, 10.0)))
    np.testing.assert_array_equal(found, [1, 1, 0, 0])


def test_hits_compare_what_was_multiplied_alike():
    """Matrices of lower precision than `own`: the one rival of the first image is still nearer."""
    logits = ops.pair_logits(np.eye(2), np.eye(2), 1.0)
    coarse = np.array([[0.99, 1.0], [0.0, 0.99]], "float32")
    found = ops.contrastive_hits(logits._replace(to_texts=coarse))
    np.testing.assert_array_equal(np.asarray(found), [0.5, 1])


def test_logits_are_float32_whatever_the_embeddings():
    half = kops.cast(IMAGES, "bfloat16")
    for part in ops.pair_logits(half, half, kops.cast(2.0, "bfloat16"))[:3]:
        assert part.dtype == "float32"


def test_outputs_of_a_model():
    outputs = {
        "image_embedding": IMAGES,
        "text_embedding": TEXTS,
        "logit_scale": np.full(3, 10.0),
    }
    logits, kind = ops.contrastive_outputs(outputs)
    assert kind == "softmax"
    np.testing.assert_allclose(np.asarray(logits.to_texts), 10 * IMAGES @ TEXTS.T, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(logits.to_images), 10 * TEXTS @ IMAGES.T, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(logits.own), 10 * (IMAGES * TEXTS).sum(1), rtol=1e-6)
    mask = np.array([True, True, False])
    logits, kind = ops.contrastive_outputs({**outputs, "logit_bias": np.full(3, -4.0)}, mask)
    assert kind == "sigmoid"
    assert (np.asarray(logits.to_texts)[:, 2] < -1e8).all()
    np.testing.assert_allclose(np.asarray(logits.own), 10 * (IMAGES * TEXTS).sum(1) - 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.pair_logits(IMAGES[0], TEXTS, 1.0), "image_embeddings must have shape"),
        (lambda: ops.pair_logits(IMAGES, TEXTS[0], 1.0), "text_embeddings must have shape"),
        (lambda: ops.pair_logits(IMAGES, TEXTS[:2], 1.0), r"text_embeddings .*\(2, 2\)"),
        (lambda: losses(IMAGES, TEXTS, 1.0, kind="triplet"), "'softmax', 'sigmoid'.*'triplet'"),
        (lambda: ops.contrastive_outputs(IMAGES), "image_embedding and text_embedding.*ndarray"),
        (lambda: ops.contrastive_outputs({"logits": IMAGES}), r"\['logits'\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
