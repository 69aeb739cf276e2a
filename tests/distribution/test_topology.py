"""Slices of TPUs by name."""

import pytest

from keras_vmoe.distribution import Topology, slices_of


@pytest.mark.parametrize(
    ("text", "chips", "gib", "accelerator_type"),
    [
        ("v5e:4x8", 32, 16, "v5litepod-32"),
        ("v6e:1x1", 1, 32, "v6e-1"),
        ("v4:2x2x2", 8, 32, "v4-16"),
        ("v5p:8x8x8", 512, 95, "v5p-1024"),
    ],
)
def test_a_slice_has_chips_memory_and_a_name(text, chips, gib, accelerator_type):
    topology = Topology.parse(text)
    assert str(topology) == text
    assert topology.accelerator_type == accelerator_type
    assert (topology.chips, topology.hbm) == (chips, gib * 2**30)


@pytest.mark.parametrize("text", ["v5e:3x5", "v5e:16x32", "v5e:", "v5e", "v4:2x4"])
def test_a_slice_that_does_not_exist_is_an_error(text):
    with pytest.raises(ValueError, match=f"known here, of v.* .*2x2.*Received: topology='{text}'"):
        Topology.parse(text)


def test_an_unknown_family_is_an_error():
    with pytest.raises(ValueError, match="one of v4, v5e, v5p, v6e.*'h100:8'"):
        Topology.parse("h100:8")
    with pytest.raises(ValueError, match="family='h100'$"):
        slices_of("h100")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("v5litepod-8", "v5litepod-8 is the slice v5e:2x4"),
        ("v5p-8", "v5p-8 is the slice v5p:2x2x1"),
        ("v5litepod-7", "v5litepod-8 is the slice v5e:2x4"),  # an example
    ],
)
def test_an_accelerator_type_is_told_its_slice(text, meant):
    with pytest.raises(ValueError, match=f"family='{text}'; the accelerator type {meant}$"):
        slices_of(text)
    with pytest.raises(ValueError, match=f"topology='{text}'; the accelerator type {meant}$"):
        Topology.parse(text)


@pytest.mark.parametrize("family", ["v4", "v5e", "v5p", "v6e"])
def test_slices_come_smallest_first(family):
    chips = [topology.chips for topology in slices_of(family)]
    assert chips == sorted(set(chips))
    # Larger slices of these do not exist.
    assert chips[-1] == 256 or family in ("v4", "v5p")
