"""Attention within windows."""

import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness
from tests.ops.test_maps import maps


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.WINDOW_BLOCKS.values(), ids=cases.WINDOW_BLOCKS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def softmax(scores):
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def attention_loop(block, x):
    """Self-attention of tokens `[t, d]`, head by head; heads may leave some width over."""
    one = block.attention
    out = np.asarray(one.output_dense.bias).astype("float64")
    for head in range(block.num_heads):
        q, k, v = (
            x @ np.asarray(dense.kernel)[:, head] + np.asarray(dense.bias)[head]
            for dense in (one.query_dense, one.key_dense, one.value_dense)
        )
        shares = softmax(q @ k.T / np.sqrt(q.shape[-1]))
        out = out + shares @ v @ np.asarray(one.output_dense.kernel)[head]
    return out


@pytest.mark.parametrize(
    ("arguments", "coarsening", "window"),
    [
        ({"splits": 2}, 1, (3, 4)),
        ({"splits": 3}, 1, (2, 3)),
        ({"window_size": (4, 4)}, 1, (4, 4)),
        ({"window_size": (9, 5)}, 2, (5, 3)),
        ({}, 1, (6, 7)),
    ],
)
def test_attention_is_that_of_each_window_alone(arguments, coarsening, window):
    block = layers.WindowEncoderBlock(
        3,
        layers.MLP(4, kernel_initializer="zeros", bias_initializer="zeros"),
        norm="identity",
        **arguments,
    )
    x = maps(2, 6, 7, 8)
    found = np.asarray(block(x, coarsening=coarsening))
    for image, given in zip(found, x, strict=True):
        for top in range(0, 6, window[0]):
            for left in range(0, 7, window[1]):
                cut = np.s_[top : top + window[0], left : left + window[1]]
                tokens = given[cut].reshape(-1, 8).astype("float64")
                wanted = tokens + attention_loop(block, tokens)
                np.testing.assert_allclose(image[cut].reshape(-1, 8), wanted, atol=1e-5)


def test_more_heads_than_places_are_refused():
    with pytest.raises(ValueError, match="num_heads must be at most the width, 8.*num_heads=9"):
        layers.WindowEncoderBlock(9, layers.MLP(4))(maps(1, 2, 2, 8))
