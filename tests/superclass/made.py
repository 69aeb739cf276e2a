"""Confusion matrices whose super-classes are known."""

import numpy as np


def planted(num_classes, num_superclasses, seed=0, outside=0.05):
    """A confusion matrix with blocks, its classes shuffled, and the block of each class."""
    random = np.random.default_rng(seed)
    blocks = random.permutation(np.arange(num_classes) % num_superclasses)
    inside = blocks[:, None] == blocks
    confusion = random.uniform(0.5, 1, (num_classes, num_classes)) * np.where(inside, 1, outside)
    return confusion + np.diag(np.full(num_classes, float(num_classes))), blocks


def sets(ids):
    """The communities as a set of sets, whatever their numbers."""
    return {frozenset(np.flatnonzero(np.asarray(ids) == i).tolist()) for i in set(ids)}
