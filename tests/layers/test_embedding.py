"""Patches, class token and positions."""

import math

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness
from tests.support.golden import load


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.EMBEDDING.values(), ids=cases.EMBEDDING)
def test_harness(case, check, tmp_path):
    if check == "every_weight_learns" and not case.built().trainable_variables:
        assert "kind" in case.arguments
        return
    harness.run(check, case, tmp_path)


@pytest.mark.parametrize("name", ["patches", "oblong_patches"])
def test_patches_are_a_convolution(name):
    case = cases.EMBEDDING[name]
    embed, x = case.built(), case.inputs()
    wanted = keras.ops.conv(x, embed.kernel, strides=embed.patch_size, padding="valid")
    wanted = np.asarray(wanted).reshape(x.shape[0], -1, embed.width) + np.asarray(embed.bias)
    np.testing.assert_allclose(np.asarray(embed(x)), wanted, atol=1e-5)


def test_patches_of_images_of_unknown_size():
    embed = layers.PatchEmbedding(4, 8)
    model = keras.Model(images := keras.Input((None, None, 3)), embed(images))
    assert model.output_shape == (None, None, 8)
    assert model.predict(np.zeros((1, 8, 12, 3)), verbose=0).shape == (1, 6, 8)


def test_class_token_comes_first_and_starts_at_zero():
    layer = layers.ClassToken()
    x = np.ones((2, 3, 4), "float32")
    y = np.asarray(layer(x))
    np.testing.assert_array_equal(y[:, 0], 0)
    np.testing.assert_array_equal(y[:, 1:], x)
    layer.token.assign(np.full((1, 1, 4), 7.0))
    np.testing.assert_array_equal(np.asarray(layer(x))[:, 0], 7)


def test_sincos_is_the_loop():
    rows, columns, width, temperature = 3, 2, 12, 77.0
    found = layers.sincos_2d(rows, columns, width, temperature)
    for y in range(rows):
        for x in range(columns):
            for i in range(width // 4):
                omega = 1 / temperature ** (i / (width // 4 - 1))
                token = found[y * columns + x]
                for part, value in enumerate(
                    (
                        math.sin(x * omega),
                        math.cos(x * omega),
                        math.sin(y * omega),
                        math.cos(y * omega),
                    )
                ):
                    assert token[part * width // 4 + i] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("prefix", [0, 1])
def test_fixed_positions_leave_the_class_token_alone(prefix):
    x = np.zeros((2, 6 + prefix, 8), "float32")
    layer = layers.PositionEmbedding("sincos2d", (2, 3), prefix)
    y = np.asarray(layer(x))
    np.testing.assert_array_equal(y[:, :prefix], 0)
    np.testing.assert_allclose(y[1, prefix:], layers.sincos_2d(2, 3, 8), atol=1e-7)
    assert not layer.weights


def test_learned_positions_start_small_and_include_the_class_token():
    layer = layers.PositionEmbedding("learned", num_prefix_tokens=1)
    layer.build((None, 1 + 16 * 16, 64))
    table = np.asarray(layer.embedding)
    assert table.shape == (1, 257, 64)
    assert table.std() == pytest.approx(0.02, rel=0.05)
    assert table[:, 0].any()


def test_no_positions():
    x = np.ones((1, 5, 3), "float32")
    np.testing.assert_array_equal(np.asarray(layers.PositionEmbedding("none", (1, 5))(x)), x)


@pytest.mark.parametrize("new", [(2, 2), (3, 5), (4, 4), (7, 3), (1, 4)])
def test_resizing_is_scipys_zoom(new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    table = np.random.default_rng(0).normal(size=(1, 1 + 16, 3)).astype("float32")
    found = layers.resize_position_embedding(table, (4, 4), new, num_prefix_tokens=1)
    grid = zoom(table[0, 1:].reshape(4, 4, 3), (new[0] / 4, new[1] / 4, 1), order=1)
    np.testing.assert_array_equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:], grid.reshape(-1, 3), atol=1e-5)
    assert found.dtype == table.dtype


def test_a_layer_takes_another_grids_positions():
    small = layers.PositionEmbedding("learned", num_prefix_tokens=1)
    large = layers.PositionEmbedding("learned", num_prefix_tokens=1)
    small.build((None, 5, 4))
    large.build((None, 10, 4))
    large.assign_resized(np.asarray(small.embedding))
    found, source = np.asarray(large.embedding), np.asarray(small.embedding)
    np.testing.assert_array_equal(found[:, [0, 1, 3, 7, 9]], source)
    np.testing.assert_allclose(found[:, 5], source[:, 1:].mean(1), atol=1e-7)


def test_one_layer_config_serves_several_sizes():
    layer = layers.PositionEmbedding("learned")
    layer.build((None, 16, 4))
    again = layers.PositionEmbedding.from_config(layer.get_config())
    again.build((None, 25, 4))
    assert tuple(again.embedding.shape) == (1, 25, 4)


def positions(*arguments, shape=(None, 5, 8), **more):
    layer = layers.PositionEmbedding(*arguments, **more)
    layer.build(shape)
    return layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.PatchEmbedding(0, 4), "patch_size=0"),
        (lambda: layers.PatchEmbedding((2, 3, 4), 4), "(2, 3, 4)"),
        (lambda: layers.PatchEmbedding(4, 0), "width=0"),
        (lambda: layers.PatchEmbedding(4, 8).build((None, 8, 8)), "(None, 8, 8)"),
        (lambda: layers.PatchEmbedding(4, 8)(np.zeros((1, 3, 8, 3))), "height=3"),
        (lambda: layers.PositionEmbedding("rotary"), "'learned', 'sincos2d', 'none'.*'rotary'"),
        (lambda: layers.PositionEmbedding(num_prefix_tokens=-1), "-1"),
        (lambda: positions(), "5 patches"),
        (lambda: positions(grid=(2, 3)), "grid=(2, 3)"),
        (lambda: positions(shape=(None, None, 8)), "(None, None, 8)"),
        (lambda: positions("sincos2d", shape=(None, 4, 6)), "multiple of 4.*width=6"),
        (lambda: layers.sincos_2d(2, 2, 4), "width=4"),
        (lambda: positions("none", shape=(None, 4, 8)).assign_resized(np.ones((1, 4, 8))), "none"),
        (lambda: layers.resize_position_embedding(np.ones((1, 5, 2)), (2, 2), (3, 3)), "(1, 5, 2)"),
        (lambda: positions(shape=(None, 4, 8))(np.ones((1, 9, 8), "float32")), "(1, 9, 8)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_patches_of_the_reference():
    golden = load("04_vit_dense_token")
    embed = layers.PatchEmbedding(8, 16)
    embed.build((None, 32, 32, 3))
    embed.kernel.assign(golden["params/embedding/kernel"])
    embed.bias.assign(golden["params/embedding/bias"])
    wanted = golden["det/inter/embedding"].reshape(4, 16, 16)
    np.testing.assert_allclose(np.asarray(embed(golden["in/images"])), wanted, atol=1e-5)
