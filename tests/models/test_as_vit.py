"""As-ViT: the reference's numbers, any size of image, and the same weights in other graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_vmoe
from keras_vmoe import checkpoints, models
from tests.models import tiny
from tests.support import golden

FILES = ("forward_k6_h32_c9_d1111_64", "forward_s842_h16_c8_d1111_96")


def reference(name, **overrides):
    """A golden file, and the model with its weights."""
    file = golden.load(f"asvit/{name}")
    config = file.config
    genotype = f"{config['genotype']},{config['hidden']}"
    arguments = {"num_classes": config["num_classes"], "image_size": config["image_size"]}
    model = models.AsViT(genotype, **{**arguments, **overrides})
    checkpoints.assign_as_vit_params(model, file.under("params"))
    return file, model


@pytest.mark.parametrize("norm", ["layer", "identity"])
@pytest.mark.parametrize("name", FILES)
def test_logits_and_features_are_those_of_the_reference(name, norm):
    file, model = reference(name, norm=norm)
    wanted = file.under({"layer": "ln64", "identity": "id64"}[norm])
    images = file["x_NCHW"].transpose(0, 2, 3, 1)
    features = models.pooled_features(model)(images)
    assert golden.max_error(model(images), wanted["logits"]) < 1e-5
    assert golden.max_error(features["post_norm"], wanted["feat_post"]) < 1e-5
    assert golden.max_error(features["pre_norm"], wanted["feat_pre"]) < 1e-5
    if norm == "layer":
        assert model.count_params() == file.config["n_params"]


@pytest.mark.parametrize("norm", ["layer", "identity"])
def test_each_stage_is_that_of_the_reference(norm):
    file, model = reference(FILES[0], norm=norm)
    stages = file.under({"layer": "ln/stages", "identity": "id/stages"}[norm])
    names = {"patch_embed": "embedding_norm"}
    for i in range(4):
        names[f"layers.{i}.blocks.0"] = f"encoder_block_{i}"
        if i < 3:
            names[f"layers.{i}.downsample"] = f"merging_{i + 1}"
    maps = keras.Model(model.input, {n: model.get_layer(n).output for n in names.values()})
    found = maps(file["x_NCHW"].transpose(0, 2, 3, 1)[:1])
    for theirs, ours in names.items():
        tokens = np.asarray(found[ours]).reshape(stages[theirs].shape)
        assert golden.max_error(tokens, stages[theirs]) < 1e-5, theirs


GENES = "5,2,2,2|3,1,2|2,2,2|4,1,2|16,9"
SHAPES = [(1, 64, 64), (2, 50, 70), (1, 4, 4)]


def tiny_model(**overrides):
    model = models.AsViT(GENES, **{"num_classes": 3, "image_size": 64, **overrides})
    tiny.spread(model)
    for variable in model.trainable_variables:
        variable.assign(0.3 * np.asarray(variable))
    return model


def images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype("float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"pos_emb": "absolute", "merge_norm": "post", "head": "linear", "dtype": "mixed_bfloat16"},
        {"norm": "identity", "windows": "number", "pretrain_size": 32, "num_classes": None},
        {"image_size": (50, 70), "placement": "final_1", "num_experts": 2, "num_selected": 1},
    ],
    ids=lambda changes: ",".join(changes) or "defaults",
)
def test_config_file_and_training(changes, tmp_path):
    model = tiny_model(**changes)
    x = images(2, *model.input_shape[1:3])
    again = models.AsViT.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is models.AsViT
    assert loaded.genotype == model.genotype
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
    before = [np.asarray(v) for v in model.trainable_variables]
    model.compile("sgd", "mse")
    model.fit(x, np.ones((2, *model.output_shape[1:]), "float32"), epochs=1, verbose=0)
    moved = [
        np.any(np.asarray(v) != b) for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    # Of some experts no token may have come by.
    assert np.mean(moved) > 0.8


def test_first_weights_are_those_of_the_official_code():
    model = models.AsViT("8,2,3|4,1,2|4,1,4|4,1,6|32", image_size=64)
    limit = 1 / np.sqrt(3 * 8**2)
    embedding = model.get_layer("embedding")
    for weight in (embedding.kernel, embedding.bias):
        assert 0.8 * limit < np.abs(weight).max() <= limit
    block = model.get_layer("encoder_block_3")
    kernels = [block.attention.query_dense.kernel, block.attention.key_dense.kernel]
    kernels += [block.mlp.hidden.kernel, block.mlp.output_dense.kernel]
    kernels += [model.get_layer("merging_2").projection.kernel, model.get_layer("head").kernel]
    for kernel in kernels:
        assert 0.019 < np.std(kernel) < 0.021
    assert np.abs(np.subtract(*map(np.asarray, kernels[:2]))).max() > 0.02
    for bias in (block.attention.query_dense.bias, block.mlp.hidden.bias, block.mlp_norm.beta):
        assert not np.any(bias)


@pytest.mark.parametrize("windows", ["size", "number"])
def test_a_pyramid_has_the_maps_of_images_of_any_size(windows):
    model = tiny_model(pos_emb="absolute", windows=windows)
    pyramid = models.feature_pyramid(model)
    for shape in SHAPES:
        maps = pyramid.predict(images(*shape), verbose=0)
        for i, level in enumerate(("P2", "P3", "P4", "P5")):
            sides = tuple(-(-side // (4 * 2**i)) for side in shape[1:])
            assert maps[level].shape == (shape[0], *sides, 9 * 2**i)
            assert np.all(np.isfinite(maps[level]))
    x = images(*SHAPES[1])
    same = tiny_model(pos_emb="absolute", windows=windows, image_size=(50, 70), pretrain_size=64)
    wanted = models.pooled_features(same)(x)["pre_norm"]
    found = np.asarray(pyramid(x)["P5"]).mean((1, 2))
    np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-5)


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_a_sparse_pyramid_routes_images_of_any_size(router):
    """Each size within one graph as eagerly, where its number of tokens is known."""
    settings = {"num_selected": 2} if router == "top_k" else {}
    model = tiny_model(placement="every_2", num_experts=3, router=router, **settings)
    pyramid = models.feature_pyramid(model)
    graph = tf.function(pyramid, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for shape in SHAPES:
        wanted, found = pyramid(images(*shape)), graph(images(*shape))
        for level, maps in wanted.items():
            np.testing.assert_allclose(found[level], maps, atol=1e-5)


def test_windows_keep_their_size_or_their_number():
    for windows, size in (("size", (8, 8)), ("number", (16, 16))):
        block = tiny_model(windows=windows, pretrain_size=64, image_size=128).get_layer(
            "encoder_block_0"
        )
        assert block.window((32, 32)) == size


def test_a_pyramid_of_other_routing_shares_the_weights():
    model = tiny_model(placement="every_2", num_experts=3, num_selected=2)
    routed = keras_vmoe.with_routing(model, num_selected=1)
    x = images(2, 64, 64)
    maps = models.feature_pyramid(routed, image_size=64, level_norms=True)
    assert maps.get_layer("encoder_block_1") is model.get_layer("encoder_block_1")
    assert "P2_norm" in [layer.name for layer in maps.layers]
    features = models.pooled_features(routed)(x)["pre_norm"]
    plain = models.pooled_features(model)(x)["pre_norm"]
    np.testing.assert_allclose(
        np.asarray(models.feature_pyramid(routed)(x)["P5"]).mean((1, 2)),
        np.asarray(features),
        atol=1e-5,
    )
    assert np.abs(np.asarray(features) - np.asarray(plain)).max() > 1e-3


def test_own_tokens_are_the_plain_model_bit_for_bit():
    model, x = tiny_model(pos_emb="absolute"), images(3, 64, 64)
    same = models.retokenized(model, stride=4, dilation=1)
    np.testing.assert_array_equal(np.asarray(same(x)), np.asarray(model(x)))


@pytest.mark.parametrize("stride", [8, 16])
def test_coarse_tokens_are_the_whole_model_of_coarse_grids(stride):
    """A model built on coarse grids, given the position table that they have."""
    dilation, x = {8: 2, 16: 5}[stride], images(2, 128, 128)
    model = tiny_model(pos_emb="absolute", image_size=128)
    coarse = models.retokenized(model, stride, dilation)
    maps = models.feature_pyramid(coarse, image_size=128)
    side = 128 // stride
    assert maps.output["P2"].shape == (None, side, side, 9)
    small = tiny_model(pos_emb="absolute", image_size=4 * side)
    for theirs, ours in zip(small.weights, model.weights, strict=True):
        if "position_embedding" in ours.path:
            ours = keras.ops.image.resize(ours, (side, side), data_format="channels_last")
        theirs.assign(ours)
    tokens = model.get_layer("embedding")(x, stride=stride, dilation=dilation)
    rest = keras.Model(small.get_layer("embedding").output, small.output)
    np.testing.assert_allclose(np.asarray(coarse(x)), np.asarray(rest(tokens)), atol=1e-5)


def test_what_cannot_be_retokenized_is_refused():
    with pytest.raises(ValueError, match="multiple of the model's own, 4. Received: stride=6"):
        models.retokenized(tiny_model(), stride=6)
    with pytest.raises(ValueError, match="model must be an AsViT.*of class ViT"):
        models.retokenized(tiny.vit(), stride=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_emb": "learned"}, "pos_emb must be None or 'absolute'"),
        ({"head": "mlp"}, "head must be one of 'tanh_mlp', 'linear'"),
        ({"placement": (9,)}, "placement must name distinct blocks between 0 and 4"),
        ({"genotype": "8,2|4"}, "genotype must have four stages"),
        ({"image_size": 0}, "image_size must be .*image_size=0"),
        ({"image_size": 64.0}, "image_size must be .*image_size=64.0"),
        ({"pretrain_size": -1}, "pretrain_size must be .*=-1"),
        ({"pretrain_size": 0}, "pretrain_size must be .*=0"),
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon must be .* above 0"),
        ({"stochastic_depth_rate": 2.0}, "stochastic_depth_rate must be .*=2.0"),
        ({"head_bias_init": "a"}, "head_bias_init must be a finite number.*'a'"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        models.AsViT(**{"genotype": GENES, **changes})


@pytest.mark.parametrize("size", [(64,), 0, True, 64.0, (64, 0), (None, 64, 64)])
def test_a_pyramid_of_no_size_is_refused(size):
    model = tiny_model()
    with pytest.raises(ValueError, match="image_size must be .* may be None"):
        models.feature_pyramid(model, image_size=size)


def test_arrays_of_another_genotype_are_refused():
    params = golden.load(f"asvit/{FILES[0]}").under("params")
    model = models.AsViT("5,2,4|3,1,5|2,2,3|3,1,2|32,9", num_classes=10, image_size=64)
    with pytest.raises(ValueError, match="'embedding/kernel'.*is it of another genotype"):
        checkpoints.assign_as_vit_params(model, params)
    with pytest.raises(ValueError, match="model must be dense, with pos_emb=None"):
        checkpoints.assign_as_vit_params(tiny_model(pos_emb="absolute"), params)


def test_arrays_of_layers_that_a_model_lacks_are_refused():
    params = dict(golden.load(f"asvit/{FILES[0]}").under("params"))
    block = {n: x for n, x in params.items() if n.startswith("layers.1.blocks.0.")}
    params |= {n.replace("blocks.0", "blocks.1"): x for n, x in block.items()}
    for norm in ("layer", "identity"):
        _, model = reference(FILES[0], norm=norm)
        with pytest.raises(ValueError, match=r"lacks the layers of \d+ arrays.*'layers.1.blocks.1"):
            checkpoints.assign_as_vit_params(model, params)
    reference(FILES[0], num_classes=None)  # whose head is left out
