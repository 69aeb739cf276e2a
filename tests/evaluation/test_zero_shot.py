"""Zero-shot classification against loops over images, prompts and labels."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import evaluation, text


def encode(texts):
    """Some embedding of a text, the same each time, of any length."""
    seeds = [sum(map(ord, one)) for one in texts]
    return np.array([np.random.default_rng(seed).normal(size=6) for seed in seeds]) * 7


def embeddings_by_loop(names, templates):
    found = []
    for name in names:
        mean = np.zeros(6)
        for template in templates:
            z = encode([text.canonical_name(template.replace("{}", name))])[0]
            mean += z / np.sqrt(np.sum(z**2)) / len(templates)
        found.append(mean / np.sqrt(np.sum(mean**2)))
    return np.array(found)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_embeddings_of_classes_are_the_loops(batch_size):
    names, sizes = ["tench", "Great_Dane", "pug"], []

    def encode_batch(texts):
        sizes.append(len(texts))
        return encode(texts)

    found = evaluation.class_embeddings(encode_batch, names, "clip_best", batch_size)
    wanted = embeddings_by_loop(names, text.TEMPLATES["clip_best"])
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert sum(sizes) == 24
    assert max(sizes) == min(batch_size, 24)


def test_long_embeddings_weigh_no_more_than_short_ones():
    def of_two_lengths(texts):
        return np.array([[100.0, 0.0] if one.startswith("a ") else [0.0, 0.1] for one in texts])

    found = evaluation.class_embeddings(of_two_lengths, ["pug"], ["a {}", "{}"])
    np.testing.assert_allclose(found, [[np.sqrt(0.5)] * 2])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: np.ones((1, 4)), "1 embeddings of 2 texts"),
        (lambda texts: np.full((len(texts), 4), np.nan), r"encode_text\(texts\) must be finite"),
        (lambda texts: np.ones(len(texts)), r"must have shape \[n, d\]"),
    ],
)
def test_encoders_that_are_none(function, message):
    with pytest.raises(ValueError, match=message):
        evaluation.class_embeddings(function, ["a", "b"], "class_name_only")


def test_classes_and_templates_that_are_none():
    with pytest.raises(ValueError, match="class_names must be a list"):
        evaluation.class_embeddings(encode, [])
    with pytest.raises(ValueError, match='exactly one "{}"'):
        evaluation.class_embeddings(encode, ["a"], ["the"])
    with pytest.raises(ValueError, match="batch_size"):
        evaluation.class_embeddings(encode, ["a"], batch_size=0)


def by_loop(images, classes, labels):
    """Accuracy, top 5, class accuracies; `labels` is a list of the right classes of each image."""
    top_1, top_5 = [], []
    per_class = [[] for _ in classes]
    for z, right in zip(images, labels, strict=True):
        if not right:
            continue
        scores = [z @ c / np.sqrt((z @ z) * (c @ c)) for c in classes]
        order = sorted(range(len(classes)), key=lambda c: -scores[c])
        top_1.append(order[0] in right)
        top_5.append(any(c in right for c in order[:5]))
        for c in right:
            per_class[c].append(top_1[-1])
    means = [np.mean(hits) if hits else np.nan for hits in per_class]
    return np.mean(top_1), np.mean(top_5) if len(classes) > 5 else None, means


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(2, 9), st.integers(0, 99), st.booleans())
def test_accuracies_are_the_loops(count, num_classes, seed, several):
    rng = np.random.default_rng(seed)
    images, classes = 5 * rng.normal(size=(count, 4)), rng.normal(size=(num_classes, 4))
    if several:
        labels = rng.random((count, num_classes)) < 0.3
        labels[0, 0] = True
        right = [set(np.flatnonzero(row)) for row in labels]
    else:
        labels = rng.integers(0, num_classes, count)
        right = [{label} for label in labels]
    found = evaluation.zero_shot_accuracy(images, classes, labels)
    accuracy, top_5, per_class = by_loop(images, classes, right)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.top_5 == (None if top_5 is None else pytest.approx(top_5))
    np.testing.assert_allclose(found.class_accuracies, per_class)
    assert found.mean_class_accuracy == pytest.approx(np.nanmean(per_class))
    assert found.images == sum(map(bool, right))
    order = rng.permutation(count)
    again = evaluation.zero_shot_accuracy(images[order], classes, labels[order])
    assert again.to_dict() == found.to_dict()


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=(10, 4)), rng.normal(size=(6, 4))
    whole = evaluation.zero_shot_classify(images, classes)
    monkeypatch.setattr("keras_vmoe.evaluation.embeddings._BLOCK", 18)
    np.testing.assert_array_equal(evaluation.zero_shot_classify(images, classes), whole)
    np.testing.assert_array_equal(evaluation.zero_shot_classify(images * 9, classes), whole)


def test_one_hot_labels_are_class_ids():
    rng = np.random.default_rng(0)
    images, classes = rng.normal(size=(30, 4)), rng.normal(size=(6, 4))
    labels = rng.integers(0, 6, 30)
    found = evaluation.zero_shot_accuracy(images, classes, labels).to_dict()
    assert evaluation.zero_shot_accuracy(images, classes, np.eye(6)[labels]).to_dict() == found


def test_what_is_written_of_a_result():
    result = evaluation.zero_shot_accuracy(np.eye(3), np.eye(3), [0, 1, 1])
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == {
        "images": 3,
        "accuracy": pytest.approx(2 / 3),
        "top_5": None,
        "mean_class_accuracy": pytest.approx(0.75),
        "class_accuracies": [1.0, 0.5, None],
        "class_images": [1, 2, 0],
    }
    assert result.table("pets").splitlines()[1].split()[:5] == ["pets", "3", "66.7", "%", "-"]


@pytest.mark.parametrize(
    ("images", "classes", "labels", "message"),
    [
        (np.zeros((0, 3)), np.eye(3), [], "image_embeddings must hold at least one"),
        (np.eye(3), np.zeros((0, 3)), [0] * 3, "class_embeddings must hold at least one"),
        (np.eye(3), np.ones((2, 4)), [0] * 3, r"width of image_embeddings, 3\. .*\(2, 4\)"),
        (np.eye(3), np.ones(3), [0] * 3, r"class_embeddings must have shape \[n, d\]"),
        (np.full((3, 3), np.nan), np.eye(3), [0] * 3, "image_embeddings must be finite"),
        (np.eye(3), np.full((3, 3), np.inf), [0] * 3, "class_embeddings must be finite"),
        (np.eye(3), np.eye(3), [0, 1], r"labels must have shape \(3,\) or \(3, 3\)"),
        (np.eye(3), np.eye(3), [0, 1, 3], "0 to 2, .* Received: 0 to 3"),
        (np.eye(3), np.eye(3), [0, 1, -1], "Received: -1 to 1"),
        (np.eye(3), np.eye(3), [0.0, 1.0, 2.0], "of type float64"),
        (np.eye(3), np.eye(3), np.full((3, 3), 0.5), "must be 0 or 1"),
        (np.eye(3), np.eye(3), np.zeros((3, 3)), "a label of at least one image"),
    ],
)
def test_what_is_no_classification(images, classes, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluation.zero_shot_accuracy(images, classes, np.array(labels))
