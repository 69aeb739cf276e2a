"""Retrieval against a loop over sorted lists, and what must hold for any embeddings."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import evaluation


def by_loop(images, texts, owners, k):
    """R@k in both directions from sorted lists, as COCO is evaluated."""
    images, texts = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (images, texts))
    scores = images @ texts.T
    found_text = [
        any(owners[j] == i for j in sorted(range(len(texts)), key=lambda j: -row[j])[:k])
        for i, row in enumerate(scores)
    ]
    found_image = [
        owners[j] in sorted(range(len(images)), key=lambda i: -column[i])[:k]
        for j, column in enumerate(scores.T)
    ]
    return np.mean(found_text), np.mean(found_image)


def pairs(images, captions, seed, noise=1.0, width=5):
    """Images, and texts near them in any order; some images have one caption more."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(images, width))
    owners = np.r_[np.tile(np.arange(images), captions), rng.integers(0, images, 2)]
    owners = rng.permutation(owners)
    return z, 3 * (z[owners] + noise * rng.normal(size=(len(owners), width))), owners


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 4), st.integers(0, 99))
def test_recalls_are_the_loops(count, captions, seed):
    images, texts, owners = pairs(count, captions, seed)
    ks = (1, 2, 5, 10, len(owners))
    ks = tuple(dict.fromkeys(ks))
    found = evaluation.retrieval_recalls(images, texts, owners, ks)
    for k in ks:
        wanted = by_loop(images, texts, owners, k)
        assert (found.image_to_text[k], found.text_to_image[k]) == pytest.approx(wanted)
    for recalls in (found.image_to_text, found.text_to_image):
        assert list(recalls.values()) == sorted(recalls.values()), "R@k grows with k"
        assert recalls[len(owners)] == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_the_order_of_images_and_texts_changes_nothing(count, captions, seed):
    images, texts, owners = pairs(count, captions, seed)
    rng = np.random.default_rng(seed)
    by_image, by_text = rng.permutation(count), rng.permutation(len(owners))
    place = np.argsort(by_image)
    found = evaluation.retrieval_recalls(images, texts, owners)
    moved = evaluation.retrieval_recalls(images[by_image], texts[by_text], place[owners[by_text]])
    assert moved.to_dict() == found.to_dict()
    np.testing.assert_array_equal(moved.image_to_text_ranks, found.image_to_text_ranks[by_image])
    np.testing.assert_array_equal(moved.text_to_image_ranks, found.text_to_image_ranks[by_text])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_that_gives_everything_one_embedding_finds_nothing(dtype):
    one = np.random.default_rng(0).normal(size=37).astype(dtype)
    found = evaluation.retrieval_recalls(np.tile(one, (50, 1)), np.tile(2 * one, (50, 1)))
    assert set(found.image_to_text.values()) == set(found.text_to_image.values()) == {0.0}
    assert found.image_to_text_median_rank == found.text_to_image_median_rank == 50
    zeros = evaluation.retrieval_recalls(np.zeros((50, 4)), np.zeros((50, 4)))
    assert zeros.to_dict() == found.to_dict()


def test_what_scores_as_high_as_the_right_one_stands_before_it():
    images, texts = np.eye(3)[[0, 0, 1]], np.eye(3)[[0, 0, 1]]
    found = evaluation.retrieval_recalls(images, texts)
    assert found.image_to_text_ranks.tolist() == found.text_to_image_ranks.tolist() == [2, 2, 1]
    # Two captions of one image do not stand in each other's way.
    found = evaluation.retrieval_recalls(np.eye(3)[:2], texts, [0, 0, 1])
    assert found.image_to_text_ranks.tolist() == [1, 1]
    assert found.text_to_image_ranks.tolist() == [1, 1, 1]


def test_embeddings_that_know_nothing_find_as_many_as_chance():
    rng = np.random.default_rng(0)
    n = 1000
    found = evaluation.retrieval_recalls(rng.normal(size=(n, 64)), rng.normal(size=(n, 64)))
    for recalls in (found.image_to_text, found.text_to_image):
        for k in (1, 5, 10):
            assert recalls[k] == pytest.approx(k / n, abs=4 * np.sqrt(k) / n)
    assert found.text_to_image_median_rank == pytest.approx(n / 2, rel=0.15)


def test_blocks_change_nothing(monkeypatch):
    images, texts, owners = pairs(20, 2, seed=3)
    whole = evaluation.retrieval_recalls(images, texts, owners)
    monkeypatch.setattr("keras_vmoe.evaluation.embeddings._BLOCK", 3 * len(owners))
    parts = evaluation.retrieval_recalls(images, texts, owners)
    np.testing.assert_array_equal(parts.image_to_text_ranks, whole.image_to_text_ranks)
    np.testing.assert_array_equal(parts.text_to_image_ranks, whole.text_to_image_ranks)
    assert len(set(whole.text_to_image_ranks.tolist())) > 2


def test_what_is_written_of_a_result():
    images, texts, owners = np.eye(3), np.eye(3)[[0, 1, 1, 2]], [0, 1, 2, 2]
    result = evaluation.retrieval_recalls(images, texts, owners, ks=(1, 2))
    assert json.loads(json.dumps(result.to_dict())) == {
        "images": 3,
        "texts": 4,
        "image_to_text": {
            "recall_at_1": pytest.approx(2 / 3),
            "recall_at_2": 1.0,
            "median_rank": 1.0,
        },
        "text_to_image": {"recall_at_1": 0.75, "recall_at_2": 0.75, "median_rank": 1.0},
    }
    assert [line.split() for line in result.table("coco").splitlines()] == [
        ["dataset", "direction", "R@1", "R@2", "median", "rank"],
        ["coco", "image", "to", "text", "66.7%", "100.0%", "1"],
        ["coco", "text", "to", "image", "75.0%", "75.0%", "1"],
    ]


@pytest.mark.parametrize(
    ("images", "texts", "owners", "message"),
    [
        (np.zeros((0, 3)), np.eye(3), None, "image_embeddings must hold at least one"),
        (np.eye(3), np.zeros((0, 3)), [], "text_embeddings must hold at least one"),
        (np.eye(3), np.eye(3)[:2], None, "3 images and 2 texts"),
        (np.eye(3), np.ones((3, 4)), None, r"width of image_embeddings, 3\. .*\(3, 4\)"),
        (np.eye(3), np.full((3, 3), np.inf), None, "text_embeddings must be finite"),
        (np.eye(3), np.eye(3), [0, 1], r"each of the 3 texts\. Received: shape \(2,\)"),
        (np.eye(3), np.eye(3), [0.0, 1.0, 2.0], "of type float64"),
        (np.eye(3), np.eye(3), [0, 1, 3], "0 to 2, .*Received: 0 to 3"),
        (np.eye(3), np.eye(3), [0, 2, 2], "1 images without, the first is image 1"),
    ],
)
def test_what_is_no_retrieval(images, texts, owners, message):
    with pytest.raises(ValueError, match=message):
        evaluation.retrieval_recalls(images, texts, owners)


@pytest.mark.parametrize("ks", [(), (0,), (1, 1), (1.5,)])
def test_ks_that_are_none(ks):
    with pytest.raises(ValueError, match="different whole numbers of 1 or more"):
        evaluation.retrieval_recalls(np.eye(3), np.eye(3), ks=ks)
