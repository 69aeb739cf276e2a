"""What the draws of a measurement follow from, and what they are shared by."""

import numpy as np
import pytest

from keras_vmoe import autoscale
from keras_vmoe.autoscale import repeats

TOPOLOGIES = ("4,2,2|2,1,2|2,1,2|2,1,2|16,8", "5,2,3|3,1,2|2,1,2|2,1,2|16,8")


@pytest.fixture
def drawn(monkeypatch):
    """The weights and circles that were measured, in place of their measures."""
    found = []

    def length(genotype, weights, circle, convention):
        found.append((weights, circle))
        return 1.0

    def condition_number(images, genotype, weights):
        # Both measures of a repeat are of the same weights.
        assert weights is found[-1][0]
        return 2.0

    monkeypatch.setattr(repeats, "manifold_length", length)
    monkeypatch.setattr(repeats, "ntk_condition_number", condition_number)
    return found


def test_a_repeat_keeps_its_circle_for_all_topologies(drawn):
    protocol = autoscale.Protocol(image_size=32, repeats=2, seed=4)
    for repeat in (0, 1):
        for occasion, topology in enumerate(TOPOLOGIES):
            protocol.measure(topology, None, occasion, repeat)
    first, later, other, other_later = (circle for _, circle in drawn)
    assert np.array_equal(first, later)
    assert np.array_equal(other, other_later)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("compat", [False, True])
def test_the_published_code_shares_one_embedding(drawn, compat):
    protocol = autoscale.Protocol(image_size=32, repeats=2, seed=4, compat=compat)
    for occasion, repeat in ((3, 0), (3, 1), (4, 0)):
        protocol.measure(TOPOLOGIES[0], None, occasion, repeat)
    first, other_repeat, other_occasion = (weights for weights, _ in drawn)
    for name in ("embedding/kernel", "embedding/bias"):
        assert np.array_equal(first[name], other_repeat[name]) == compat
        assert not np.array_equal(first[name], other_occasion[name])
    name = "encoder_block_0/mlp/hidden/kernel"
    assert not np.array_equal(first[name], other_repeat[name])


def test_repeats_follow_from_their_keys_alone():
    protocol = autoscale.Protocol(image_size=32, repeats=2, seed=4)
    images = protocol.gaussian_images(2)
    first = protocol.measure(TOPOLOGIES[0], images, 3, 1)
    assert protocol.measure(TOPOLOGIES[0], images, 3, 1) == first
    others = [protocol.measure(TOPOLOGIES[0], images, *key) for key in ((4, 1), (3, 0))]
    assert len({first.length, *(other.length for other in others)}) == 3
