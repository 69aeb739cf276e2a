"""Maps cut into windows and patches, against loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import ops

rng = np.random.default_rng(0)


def maps(*shape):
    return rng.normal(size=shape).astype("float32")


def windows_loop(x, window):
    """Each window's tokens, and which of them are real."""
    _, rows, columns, width = x.shape
    down, across = min(window[0], rows), min(window[1], columns)
    tokens, real = [], []
    for image in x:
        for top in range(0, rows, down):
            for left in range(0, columns, across):
                cut, there = np.zeros((down, across, width)), np.zeros((down, across), bool)
                for i in range(down):
                    for j in range(across):
                        if top + i < rows and left + j < columns:
                            cut[i, j], there[i, j] = image[top + i, left + j], True
                tokens.append(cut.reshape(-1, width))
                real.append(there.reshape(-1))
    return np.stack(tokens), np.stack(real)


@pytest.mark.parametrize(
    ("grid", "window"),
    [((4, 6), (2, 3)), ((5, 7), (2, 3)), ((3, 3), (8, 2)), ((1, 5), (1, 5)), ((6, 4), (4, 4))],
)
def test_windows_are_those_of_the_loop(grid, window):
    x = maps(2, *grid, 3)
    wanted, real = windows_loop(x, window)
    found = ops.partition_windows(x, window)
    np.testing.assert_array_equal(np.asarray(found.tokens), wanted.astype("float32"))
    if real.all():
        assert found.mask is None
    else:
        np.testing.assert_array_equal(np.asarray(found.mask), real)
    np.testing.assert_array_equal(np.asarray(ops.join_windows(found.tokens, window, grid)), x)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX's shapes are static")
def test_grids_that_a_graph_does_not_know():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    def there_and_back(x):
        windows = ops.partition_windows(x, (2, 3))
        grid = tf.unstack(tf.shape(x))[1:3]
        return windows.tokens, windows.mask, ops.join_windows(windows.tokens, (2, 3), grid)

    for grid in ((4, 6), (5, 7), (1, 1)):
        x = maps(2, *grid, 3)
        tokens, mask, back = there_and_back(x)
        wanted, real = windows_loop(x, (2, 3))
        np.testing.assert_array_equal(tokens, wanted.astype("float32"))
        np.testing.assert_array_equal(mask, real)
        np.testing.assert_array_equal(back, x)


def patches_loop(x, kernel_size, stride, dilation):
    """The values under the taps of a kernel, zeros where they lie beyond the map."""
    batch, height, width, channels = x.shape
    before = max((kernel_size - 1) * dilation + 1 - stride, 0) // 2
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((batch, rows, columns, kernel_size, kernel_size, channels))
    for r in range(rows):
        for c in range(columns):
            for i in range(kernel_size):
                for j in range(kernel_size):
                    y, z = r * stride + i * dilation - before, c * stride + j * dilation - before
                    if 0 <= y < height and 0 <= z < width:
                        out[:, r, c, i, j] = x[:, y, z]
    return out.reshape(batch, rows, columns, -1)


# The stages' kernels, and those of progressive re-tokenization on sizes that fit and do not.
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        *(((8, 8), kernel, 2, 1) for kernel in (2, 3, 4)),
        ((7, 5), 3, 2, 1),
        ((16, 24), 8, 4, 1),
        *(((32, 48), kernel, 16, 5) for kernel in (4, 5, 8)),
        *(((32, 19), kernel, 8, 2) for kernel in (4, 7, 8)),
        ((20, 37), 8, 16, 5),
    ],
)
def test_patches_are_those_of_the_loop(size, kernel, stride, dilation):
    x = maps(2, *size, 2)
    found = ops.overlapping_patches(x, kernel, stride, dilation)
    wanted = patches_loop(x, kernel, stride, dilation).astype("float32")
    np.testing.assert_array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize("kernel", [4, 5, 6, 7, 8])
def test_padding_of_the_official_code(kernel):
    assert ops.patch_padding(224, kernel, 4) == ((kernel - 4) // 2, (kernel - 4 + 1) // 2)
    if kernel <= 4:
        assert ops.patch_padding(56, kernel, 2) == ((kernel - 2) // 2, (kernel - 1) // 2)


def test_resized_maps_are_the_mean_of_the_nearest_cells():
    x = maps(1, 8, 4, 3)
    found = np.asarray(ops.resize_maps(x, (2, 2)))
    for i in range(2):
        for j in range(2):
            rows, columns = slice(4 * i + 1, 4 * i + 3), slice(2 * j, 2 * j + 2)
            wanted = x[0, rows, columns].mean((0, 1))
            np.testing.assert_allclose(found[0, i, j], wanted, atol=1e-6)
    assert ops.resize_maps(x, (8, 4)) is x
    up = np.asarray(ops.resize_maps(x, (16, 5)))
    wanted = np.asarray(keras.ops.image.resize(x, (16, 5), "bilinear", data_format="channels_last"))
    np.testing.assert_allclose(up, wanted, atol=1e-5)


def test_half_precision_resizes_maps_as_float32_does():
    x = maps(1, 56, 3, 1)
    table = keras.ops.cast(x, "bfloat16")
    found = ops.resize_maps(table, (256, 7))
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    exact = ops.resize_maps(keras.ops.cast(table, "float32"), (256, 7))
    difference = np.asarray(keras.ops.cast(found, "float32")) - np.asarray(exact)
    assert np.abs(difference).max() < 2**-8 * np.abs(x).max()


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r"inputs must have shape \[images, rows, columns"):
        ops.partition_windows(maps(2, 3, 4), (1, 1))
    with pytest.raises(ValueError, match=r"inputs must have shape \[images, height"):
        ops.overlapping_patches(maps(2, 3, 4), 2, 2)
