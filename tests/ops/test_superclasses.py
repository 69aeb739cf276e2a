"""Super-classes: the router's targets, loss and accuracy, against loops in NumPy."""

import numpy as np
import pytest

from keras_vmoe import ops
from keras_vmoe.ops.superclasses import require_superclasses

IDS = [2, 0, 1, 1, 0, 2, 2]


def mixed(images=6, seed=0):
    """Labels as Mixup makes them: two classes, some of them of one super-class."""
    rng = np.random.default_rng(seed)
    eye = np.eye(len(IDS))
    share = rng.uniform(size=(images, 1))
    one, other = eye[rng.integers(0, len(IDS), images)], eye[rng.integers(0, len(IDS), images)]
    return (share * one + (1 - share) * other).astype("float32")


def test_targets_are_sums_over_the_classes_of_a_super_class():
    labels = mixed()
    wanted = np.zeros((6, 3))
    for image, own in enumerate(labels):
        for label, probability in enumerate(own):
            wanted[image, IDS[label]] += probability
    found = np.array(ops.superclass_targets(labels, IDS, 3))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-6)


def test_ids_and_one_hot_labels_are_the_same():
    ids = np.arange(7)
    one_hot = ops.superclass_targets(np.eye(7), IDS, 3)
    np.testing.assert_array_equal(np.array(ops.superclass_targets(ids, IDS, 3)), np.array(one_hot))


@pytest.mark.parametrize("labels", [mixed(), np.array([0, 3, 6, 6, 1, 2])], ids=["mixed", "ids"])
def test_the_loss_is_a_cross_entropy(labels):
    logits = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
    log_gates = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.array(ops.superclass_targets(labels, IDS, 3))
    wanted = -(targets * log_gates).sum(-1)
    found = np.array(ops.superclass_loss(labels, logits, IDS))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_hits_count_the_likeliest_super_class():
    # 0.3 + 0.3 of super-class 2 outweigh 0.4 of super-class 0.
    labels = np.array([[0.3, 0.4, 0, 0, 0, 0.3, 0]], "float32")
    right, wrong = np.array([[0.0, 0.1, 0.2]]), np.array([[0.3, 0.1, 0.2]])
    assert np.array(ops.superclass_hits(labels, right, IDS)).tolist() == [1.0]
    assert np.array(ops.superclass_hits(labels, wrong, IDS)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "must hold an expert for each of the 3 classes. Received: 2 of them"),
        ([0, 1, 2], "must be numbers from 0 to 1, as there are num_experts=2. Received: 2"),
        ([0, -1, 1], "Received: -1"),
        ([1, 1, 1], "Received: no class for 0; set num_experts"),
        ([0.0, 1.0, 1.0], "must be a sequence of ints"),
        ([[0], [1], [1]], "must be a sequence of ints"),
    ],
)
def test_mappings_that_leave_something_out(ids, message):
    with pytest.raises(ValueError, match=message):
        require_superclasses(ids, 3, 2)


def test_labels_of_other_classes():
    with pytest.raises(ValueError, match="labels must be class ids"):
        ops.superclass_targets(np.eye(5), IDS, 3)
