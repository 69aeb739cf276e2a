"""Stacked experts against one MLP at a time."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.EXPERTS.values(), ids=cases.EXPERTS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def one_expert(experts, index, rows):
    parts = [
        np.asarray(getattr(experts, name))[index]
        for name in ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias")
    ]
    return gelu(rows @ parts[0] + parts[1]) @ parts[2] + parts[3]


@pytest.mark.parametrize("sizes", [(5, 5, 5), (0, 14, 1), (15, 0, 0), (2, 3, 4)])
def test_experts_are_mlps_of_their_own(sizes):
    experts = cases.EXPERTS["shared"].built()
    x = cases.EXPERTS["shared"].inputs()
    batched = np.asarray(experts(x))
    for i in range(3):
        np.testing.assert_allclose(batched[i], one_expert(experts, i, x[i]), atol=1e-5)
    rows = x.reshape(-1, 8)
    ragged = np.asarray(experts(rows, group_sizes=np.array(sizes, "int32")))
    begin = 0
    for i, size in enumerate(sizes):
        wanted = one_expert(experts, i, rows[begin : begin + size])
        np.testing.assert_allclose(ragged[begin : begin + size], wanted, atol=1e-5)
        begin += size


@pytest.mark.parametrize("seed", [None, 7])
def test_initial_weights_are_shared_or_not(seed):
    initializer = keras.initializers.GlorotUniform(seed)
    for shared in (True, False):
        experts = layers.ExpertMLP(4, 32, shared_init=shared, kernel_initializer=initializer)
        experts.build((None, 16))
        for name in ("hidden_kernel", "output_kernel", "hidden_bias"):
            weights = np.asarray(getattr(experts, name))
            differ = [np.abs(weights[0] - other).max() > 0 for other in weights[1:]]
            assert not any(differ) if shared else all(differ)


def function_of_a_shape(shape, dtype=None):
    return keras.random.uniform(shape, dtype=dtype)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [None, 7, "generator", "function"])
def test_the_two_kernels_of_an_expert_have_draws_of_their_own(shared, seed):
    initializer = function_of_a_shape
    if seed != "function":
        seed = keras.random.SeedGenerator(7) if seed == "generator" else seed
        initializer = keras.initializers.GlorotUniform(seed)
    experts = layers.ExpertMLP(4, 64, shared_init=shared, kernel_initializer=initializer)
    experts.build((None, 64))
    hidden, output = np.asarray(experts.hidden_kernel), np.asarray(experts.output_kernel)
    for one in hidden:
        for other in output:
            # 4,096 numbers each: independent ones correlate by about 1/64.
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1
    assert not np.array_equal(*(np.asarray(b) for b in (experts.hidden_bias, experts.output_bias)))


def test_the_expert_axis_does_not_enter_the_fan():
    experts = layers.ExpertMLP(64, 32, shared_init=False)
    experts.build((None, 16))
    limit = np.sqrt(6 / (16 + 32))
    kernel = np.asarray(experts.hidden_kernel)
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    bias = np.asarray(experts.hidden_bias)
    assert 0 < np.abs(bias).max() < 1e-5


@pytest.mark.parametrize("grouped", [True, False])
def test_dropout_zeroes_hidden_units_in_training(grouped):
    experts = layers.ExpertMLP(
        1,
        4000,
        dropout_rate=0.25,
        activation="linear",
        kernel_initializer="ones",
        bias_initializer="zeros",
    )
    x = np.ones((1, 8, 1), "float32")
    kwargs = {"group_sizes": np.array([8])} if grouped else {}
    x = x[0] if grouped else x
    np.testing.assert_allclose(np.asarray(experts(x, **kwargs)), 4000, rtol=1e-5)
    dropped = np.asarray(experts(x, training=True, **kwargs))
    assert len(np.unique(dropped)) > 1
    np.testing.assert_allclose(dropped, 4000, rtol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.ExpertMLP(0, 4), "num_experts=0"),
        (lambda: layers.ExpertMLP(2, 0), "hidden_dim=0"),
        (lambda: layers.ExpertMLP(2, 4, dropout_rate=1.0), "dropout_rate=1.0"),
        (lambda: layers.ExpertMLP(2, 4, activation="no"), "no"),
        (lambda: layers.ExpertMLP(2, 4)(np.ones((3, 5, 4), "float32")), r"\[2, rows.*\(3, 5, 4\)"),
        (lambda: layers.ExpertMLP(2, 4)(np.ones((5, 4), "float32")), r"\(5, 4\)"),
        (lambda: layers.ExpertMLP(2, 4).build((2, 3, None)), "None"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
