"""Mixup against the reference's numbers; CutMix against its own area."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.data import CutMix, Mixup, mix_with_weights
from keras_vmoe.data.mixes import as_one_mix
from tests.support import golden

IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 9, 12, 3)).astype(np.float32)
LABELS = np.eye(6, 8, dtype=np.float32)


def seed(number):
    return tf.constant([7, number], tf.int64)


def apply(mix, number=0):
    images, labels = mix(tf.constant(IMAGES), tf.constant(LABELS), seed(number))
    return images.numpy(), labels.numpy()


def test_images_and_labels_are_the_references():
    wanted = golden.load("07_extras").under("mixup")
    # The reference sorts what it sampled, the largest first.
    weights = np.sort(wanted["alpha_sampled"][0])[::-1].copy()
    images, labels = mix_with_weights(wanted["images"], wanted["labels"], weights)
    np.testing.assert_allclose(images, wanted["images_mixed"], atol=1e-6)
    np.testing.assert_allclose(labels, wanted["labels_mixed"], atol=1e-6)


def test_three_images_are_mixed_around_the_end_of_the_batch():
    weights = np.array([0.5, 0.3, 0.2], np.float32)
    images, labels = mix_with_weights(IMAGES, LABELS, weights)
    for j in range(6):
        following = [(j + i) % 6 for i in range(3)]
        np.testing.assert_allclose(
            images[j], np.tensordot(weights, IMAGES[following], 1), atol=1e-6
        )
        np.testing.assert_allclose(labels[j], weights @ LABELS[following], atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("concentration", [0.2, 1.0, 1e-3])
def test_weights_are_sorted_shares(size, concentration):
    mixup = Mixup(concentration, size)
    weights = np.stack([mixup.weights(seed(i)).numpy() for i in range(50)])
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert np.all(np.diff(weights, axis=1) <= 0)
    assert np.all(weights >= 0)


def test_weights_are_dirichlet_distributed():
    mixup = Mixup(concentration=0.5, size=3)
    found = np.stack([mixup.weights(seed(i)).numpy() for i in range(600)])
    wanted = np.random.default_rng(0).dirichlet([0.5] * 3, 20_000)
    wanted = np.sort(wanted)[:, ::-1]
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=0.025)
    np.testing.assert_allclose(found.std(0), wanted.std(0), atol=0.02)


def test_mixup_mixes_by_its_weights():
    images, labels = apply(Mixup(0.5), 3)
    weights = Mixup(0.5).weights(seed(3))
    expected = mix_with_weights(IMAGES, LABELS, weights)
    np.testing.assert_allclose(images, expected[0], atol=1e-6)
    np.testing.assert_allclose(labels, expected[1], atol=1e-6)


@pytest.mark.parametrize("number", range(12))
def test_cutmix_labels_follow_the_area_that_was_pasted(number):
    images, labels = apply(CutMix(), number)
    following = np.roll(IMAGES, -1, axis=0)
    pasted = np.all(images == following, axis=(0, 3))
    kept = np.all(images == IMAGES, axis=(0, 3))
    assert np.all(pasted ^ kept)
    rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
    assert pasted.sum() == len(rows) * len(columns)
    for run in (rows, columns):
        assert len(run) == 0 or run[-1] - run[0] == len(run) - 1
    share = pasted.mean()
    np.testing.assert_allclose(
        labels, (1 - share) * LABELS + share * np.roll(LABELS, -1, 0), atol=1e-6
    )


def test_cutmix_draws_its_area():
    shares = [1 - apply(CutMix(), number)[1][0, 0] for number in range(150)]
    # Uniform in [0, 1] before the border cuts some off.
    assert 0.25 < np.mean(shares) < 0.45
    assert len(np.unique(shares)) > 30
    small = [1 - apply(CutMix(alpha=100.0), number)[1][0, 0] for number in range(30)]
    assert np.max(small) < 0.7


@pytest.mark.parametrize("mix", [Mixup(0.5), CutMix(), as_one_mix([Mixup(0.5), CutMix()])])
def test_the_seed_alone_decides(mix):
    results = []
    for global_seed in (0, 1):
        tf.random.set_seed(global_seed)
        results.append(apply(mix, 5))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert not np.array_equal(apply(mix, 6)[1], results[0][1])


def test_one_of_several_is_drawn():
    class Marks:
        def __init__(self, mark):
            self.mark = mark

        def __call__(self, images, labels, seed):
            return images, labels + self.mark

    mix = as_one_mix([Marks(1.0), Marks(2.0), Marks(4.0)])
    marks = [apply(mix, number)[1][0, 1] for number in range(90)]
    counts = [marks.count(mark) for mark in (1.0, 2.0, 4.0)]
    assert sum(counts) == 90
    assert min(counts) > 15


def test_nothing_or_one_needs_no_choice():
    assert as_one_mix(None) is None
    assert as_one_mix(()) is None
    assert as_one_mix((Mixup(),)) == Mixup()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixup(concentration=0.0), "concentration=0.0.*mix=None mixes nothing"),
        (lambda: Mixup(size=1), "size=1"),
        (lambda: Mixup(size=2.5), "size=2.5"),
        (lambda: CutMix(alpha=-1), "alpha=-1"),
        (lambda: as_one_mix(Mixup), "is no mix: make one.*train.mix = @Mixup"),
        (lambda: as_one_mix([Mixup(), apply]), "is no mix"),
        (lambda: as_one_mix(["mixup"]), "mix='mixup' is no mix"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
