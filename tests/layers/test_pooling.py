"""From tokens to one vector."""

import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness
from tests.layers.test_transformer import attend, mlp, norm


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.POOLING.values(), ids=cases.POOLING)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def test_first_last_and_mean():
    x = np.arange(12, dtype="float32").reshape(2, 3, 2)
    np.testing.assert_array_equal(np.asarray(layers.TokenPooling("first")(x)), x[:, 0])
    np.testing.assert_array_equal(np.asarray(layers.TokenPooling("last")(x)), x[:, -1])
    np.testing.assert_allclose(np.asarray(layers.TokenPooling("mean")(x)), x.mean(1))


def test_the_mean_is_of_the_tokens_that_count():
    x = np.arange(18, dtype="float32").reshape(3, 3, 2)
    mask = np.array([[True, True, False], [False, False, True], [False] * 3])
    found = np.asarray(layers.TokenPooling("mean")(x, token_mask=mask))
    np.testing.assert_allclose(found, [x[0, :2].mean(0), x[1, 2], [0, 0]])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_pooling_is_the_formula(qk_norm):
    case = cases.POOLING["attention"]
    pooling = case.built(qk_norm=qk_norm)
    x = case.inputs().astype("float64")
    probe = np.broadcast_to(np.asarray(pooling.probe, "float64"), (len(x), 1, 8))
    z = attend(pooling.attention, probe, x)
    wanted = (z + mlp(pooling.mlp, norm(pooling.norm, z)))[:, 0]
    np.testing.assert_allclose(np.asarray(pooling(case.inputs())), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.TokenPooling("median"), "'first', 'last', 'mean', 'max'.*'median'"),
        (
            lambda: layers.TokenPooling("last")(
                np.ones((1, 2, 3)), token_mask=np.ones((1, 2), bool)
            ),
            "token_mask is of mean and max.*'last'",
        ),
        (lambda: layers.AttentionPooling(0, 4), "num_heads=0"),
        (lambda: layers.AttentionPooling(2, 0), "hidden_dim=0"),
        (lambda: layers.AttentionPooling(3, 4).build((None, 5, 8)), "num_heads=3, width=8"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
