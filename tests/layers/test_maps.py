"""Patches that overlap, merging, and positions of maps."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness
from tests.ops.test_maps import maps, patches_loop


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.MAPS.values(), ids=cases.MAPS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


@pytest.mark.parametrize(("stride", "dilation"), [(None, 1), (8, 2), (16, 5), (16, 1), (4, 3)])
def test_tokens_are_those_of_a_loop(stride, dilation):
    embed = layers.OverlappingPatchEmbedding(8, 5)
    x = maps(2, 32, 40, 3)
    embed.build(x.shape)
    embed.bias.assign(np.arange(5.0))
    patches = patches_loop(x, 8, stride or 4, dilation)
    wanted = patches @ np.asarray(embed.kernel).reshape(-1, 5) + np.arange(5.0)
    found = embed(x, stride=stride, dilation=dilation)
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


def test_merging_norms_the_zeros_around_the_map_too():
    merge = layers.PatchMerging(3, 4)
    x = maps(1, 4, 4, 2)
    merge.build(x.shape)
    patches = patches_loop(x, 3, 2, 1)
    centred = patches - patches.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(patches.var(-1, keepdims=True) + 1e-5)
    wanted = wanted @ np.asarray(merge.projection.kernel)
    np.testing.assert_allclose(np.asarray(merge(x)), wanted, atol=1e-5)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be at least 2.*kernel_size=1"):
        layers.PatchMerging(1, 4)
    with pytest.raises(ValueError, match="norm must be one of.*'both'"):
        layers.PatchMerging(2, 4, norm="both")
    with pytest.raises(ValueError, match="dilation must be an integer of at least 1"):
        layers.OverlappingPatchEmbedding(4, 4)(maps(1, 8, 8, 3), dilation=0)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_positions_of_another_grid_are_those_of_float32(policy):
    positions = layers.MapPositionEmbedding((56, 5), dtype=policy)
    zeros = np.zeros((1, 256, 7, 2), "float32")
    positions.build(zeros.shape)
    positions.embedding.assign(maps(1, 56, 5, 2))
    shares = [resizing_loop(old, new) for old, new in ((56, 256), (5, 7))]
    wanted = np.einsum("ir,jc,brcd->bijd", *shares, np.asarray(positions.embedding))
    found = np.asarray(keras.ops.cast(positions(zeros), "float32"))
    np.testing.assert_allclose(
        found, wanted, rtol=2**-8 if policy == "mixed_bfloat16" else 1e-4, atol=1e-5
    )


def resizing_loop(old, new):
    """Rows of two shares that sum to 1, of the cells whose centres are nearest."""
    shares = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        below = int(place)
        shares[i, below] += below + 1 - place
        if place > below:
            shares[i, below + 1] += place - below
    return shares
