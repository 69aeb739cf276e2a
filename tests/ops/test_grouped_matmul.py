"""Grouped products against a loop over the groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops as kops

from keras_vmoe import ops
from tests.support.golden import max_error
from tests.support.gradients import value_and_gradients


def loop(rows, kernels, sizes):
    out = np.zeros((rows.shape[0], kernels.shape[2]), rows.dtype)
    begin = 0
    for kernel, size in zip(kernels, sizes, strict=True):
        out[begin : begin + size] = rows[begin : begin + size] @ kernel
        begin += size
    return out


@st.composite
def problems(draw):
    sizes = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=5)), "int32")
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    rest = draw(st.integers(0, 3))
    rows = rng.normal(size=(sizes.sum() + rest, 3))
    return rows, rng.normal(size=(len(sizes), 3, 2)), sizes


@settings(max_examples=60, deadline=None)
@given(problems())
def test_values_and_gradients_are_the_loops(problem):
    rows, kernels, sizes = problem
    found = np.asarray(ops.grouped_matmul(rows, kernels, sizes))
    assert found.dtype == np.float64
    assert max_error(found, loop(rows, kernels, sizes)) < 1e-12
    cotangent = np.random.default_rng(0).normal(size=(len(rows), 2))
    _, (of_rows, of_kernels) = value_and_gradients(
        lambda r, k: kops.sum(ops.grouped_matmul(r, k, sizes) * cotangent), rows, kernels
    )
    transposed = kernels.transpose(0, 2, 1)
    assert max_error(of_rows, loop(cotangent, transposed, sizes)) < 1e-12
    begins = np.cumsum(sizes) - sizes
    wanted = [rows[b : b + n].T @ cotangent[b : b + n] for b, n in zip(begins, sizes, strict=True)]
    assert max_error(of_kernels, np.array(wanted)) < 1e-12


def test_no_rows_at_all():
    out = ops.grouped_matmul(
        np.zeros((0, 3), "float32"), np.ones((2, 3, 4), "float32"), np.zeros(2, "int32")
    )
    assert tuple(out.shape) == (0, 4)


def test_sizes_may_be_a_list_or_int64():
    rows, kernels = np.ones((3, 2), "float32"), np.ones((2, 2, 2), "float32")
    for sizes in ([1, 2], (1, 2), np.array([1, 2], "int64")):
        np.testing.assert_array_equal(np.asarray(ops.grouped_matmul(rows, kernels, sizes)), 2)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_mlp_is_two_products(problem):
    rows, kernels, sizes = problem
    rng = np.random.default_rng(1)
    e = len(sizes)
    hidden_bias, output_bias = rng.normal(size=(e, 2)), rng.normal(size=(e, 3))
    output_kernel = rng.normal(size=(e, 2, 3))
    found = ops.grouped_mlp(
        rows, sizes, kernels, hidden_bias, output_kernel, output_bias, kops.tanh, lambda x: 2 * x
    )
    real = sizes.sum()
    owner = np.repeat(np.arange(e), sizes)
    hidden = 2 * np.tanh(loop(rows, kernels, sizes)[:real] + hidden_bias[owner])
    wanted = loop(hidden, output_kernel, sizes) + output_bias[owner]
    assert max_error(np.asarray(found)[:real], wanted) < 1e-12


@settings(max_examples=25, deadline=None)
@given(problems())
def test_few_rows_have_the_same_values_and_gradients(problem):
    rows, kernels, sizes = problem
    rng = np.random.default_rng(1)
    e = len(sizes)
    weights = (
        kernels,
        rng.normal(size=(e, 2)),
        rng.normal(size=(e, 2, 3)),
        rng.normal(size=(e, 3)),
    )
    cotangent = rng.normal(size=rows.shape)

    def run(few_rows):
        def total(rows, *weights):
            out = ops.grouped_mlp(rows, sizes, *weights, kops.tanh, few_rows=few_rows)
            return kops.sum(out * cotangent)

        return value_and_gradients(total, rows, *weights)

    (value, gradients), (wanted, wanted_gradients) = run(True), run(False)
    assert max_error(value, wanted) < 1e-12
    for one, other in zip(gradients, wanted_gradients, strict=True):
        assert max_error(one, other) < 1e-12


@pytest.mark.parametrize("few_rows", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_biases_are_sums_of_many_halves(dtype, few_rows):
    """In a half a sum of ones ends at 256 or 2,048, where one more is rounded away."""
    import tensorflow as tf

    def zeros(*shape):
        return tf.zeros(shape, dtype)

    rows, sizes = 3000, [3000, 0]
    bias = zeros(2, 1)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        out = ops.grouped_mlp(
            zeros(rows, 1),
            sizes,
            zeros(2, 1, 4),
            zeros(2, 4),
            zeros(2, 4, 1),
            bias,
            kops.tanh,
            few_rows=few_rows,
        )
    found = tape.gradient(out, bias, output_gradients=tf.ones_like(out))
    np.testing.assert_allclose(tf.cast(found, "float32"), [[3000], [0]], rtol=4e-3)


def test_kernel_gradients_of_few_rows_are_not_copied_together():
    import tensorflow as tf

    experts = 5

    def ops_of_the_gradient(few_rows):
        @tf.function(autograph=False)
        def gradients(rows, sizes, kernels, biases):
            with tf.GradientTape() as tape:
                tape.watch(kernels)
                out = ops.grouped_mlp(
                    rows, sizes, kernels, biases, kernels, biases, kops.tanh, few_rows=few_rows
                )
            return tape.gradient(out, kernels)

        inputs = tf.ones([20, 4]), tf.fill([experts], 4), tf.ones([experts, 4, 4])
        graph = gradients.get_concrete_function(*inputs, tf.ones([experts, 4])).graph
        # A stack of the experts' `[4, 4]` matrices.
        return [
            op.type
            for op in graph.get_operations()
            if op.type == "Pack" and op.outputs[0].shape == (experts, 4, 4)
        ]

    assert len(ops_of_the_gradient(False)) == 2
    assert len(ops_of_the_gradient(True)) == 0


def test_few_rows_are_few_for_every_expert():
    assert ops.has_few_rows((2, 31, 2), 4, slots=64)
    assert not ops.has_few_rows((2, 32, 2), 4, slots=32)
    assert not ops.has_few_rows((2, 31, 2), 4, slots=65)  # one expert might get 130 rows
    assert not ops.has_few_rows((None, 4, 1), 4, slots=4)
    assert not ops.has_few_rows((2, 4, 1), 4, slots=kops.convert_to_tensor(4))


def test_dynamic_shapes():
    import tensorflow as tf

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2]),
            tf.TensorSpec([3, 2, 2]),
            tf.TensorSpec([3], tf.int32),
        ]
    )
    def product(rows, kernels, sizes):
        return ops.grouped_matmul(rows, kernels, sizes)

    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(3, 2, 2)).astype("float32")
    for sizes in ([1, 0, 4], [0, 0, 0], [2, 2, 2]):
        rows = rng.normal(size=(sum(sizes), 2)).astype("float32")
        found = product(rows, kernels, np.array(sizes, "int32")).numpy()
        np.testing.assert_allclose(found, loop(rows, kernels, sizes), atol=1e-6)


ROWS, KERNELS = np.ones((4, 3), "float32"), np.ones((2, 3, 5), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ROWS[None], KERNELS, np.array([2, 2])), "rows must have shape.*(1, 4, 3)"),
        ((ROWS, KERNELS[0], np.array([2, 2])), "kernels must have shape"),
        ((ROWS, KERNELS, np.array([[2, 2]])), "group_sizes must have shape"),
        ((ROWS[:, :2], KERNELS, np.array([2, 2])), "agree in width.*(4, 2).*(2, 3, 5)"),
        ((ROWS, KERNELS, np.array([2, 1, 1])), "one entry per kernel, 2"),
        ((ROWS, KERNELS, np.array([3, 2])), "at most the 4 rows.*[3, 2]"),
        ((ROWS, KERNELS, np.array([-1, 2])), "non-negative.*[-1, 2]"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.grouped_matmul(*arguments)
