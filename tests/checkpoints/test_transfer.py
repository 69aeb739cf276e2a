"""Starting a model from the weights of another."""

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, layers, models
from tests.support import golden

SIZE = {"patch_size": 8, "num_layers": 2, "width": 16, "mlp_dim": 32, "num_heads": 2}
SPARSE = {**SIZE, "num_experts": 4, "placement": "every_2"}


@pytest.fixture(scope="module")
def source():
    keras.utils.set_random_seed(1)
    model = models.VMoE(image_size=32, num_classes=10, representation_size=16, **SPARSE)
    for variable in model.weights:
        variable.assign(keras.random.normal(variable.shape))
    return model


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def test_everything_but_the_head_is_taken_over(source):
    model = models.VMoE(image_size=32, num_classes=3, **SPARSE)
    head = values(model)["head/kernel"]
    done = checkpoints.transfer(model, source)
    there, here = values(source), values(model)
    assert set(done.fresh) == {"head/kernel", "head/bias"}
    left = {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"}
    assert set(done.left_out) == left
    assert not done.resized
    assert set(done.copied) == here.keys() - set(done.fresh)
    assert any("router" in name for name in done.copied)
    for name in done.copied:
        np.testing.assert_array_equal(here[name], there[name])
    np.testing.assert_array_equal(here["head/kernel"], head)


def test_positions_are_resized_with_aligned_corners(source):
    model = models.VMoE(image_size=48, num_classes=3, **SPARSE)
    done = checkpoints.transfer(model, source)
    assert done.resized == ("position_embedding/embedding",)
    old = values(source)["position_embedding/embedding"]
    new = values(model)["position_embedding/embedding"]
    assert new.shape == (1, 37, 16)
    np.testing.assert_array_equal(new[:, 0], old[:, 0])
    corners_old = old[0, 1:].reshape(4, 4, 16)[::3, ::3]
    corners_new = new[0, 1:].reshape(6, 6, 16)[::5, ::5]
    np.testing.assert_allclose(corners_new, corners_old, rtol=1e-6)


def test_a_class_token_comes_and_goes(source):
    flat = models.VMoE(image_size=48, num_classes=3, pooling="gap", **SPARSE)
    assert "class_token/token" in checkpoints.transfer(flat, source).left_out
    assert values(flat)["position_embedding/embedding"].shape == (1, 36, 16)
    back = models.VMoE(image_size=32, num_classes=3, **SPARSE)
    own = values(back)["position_embedding/embedding"][:, 0]
    assert "class_token/token" in checkpoints.transfer(back, flat).fresh
    np.testing.assert_array_equal(values(back)["position_embedding/embedding"][:, 0], own)


def test_the_head_is_kept_where_it_is_asked_for(source):
    model = models.VMoE(image_size=32, num_classes=10, representation_size=16, **SPARSE)
    done = checkpoints.transfer(model, source, fresh=())
    assert not done.fresh
    assert not done.left_out
    np.testing.assert_array_equal(values(model)["head/kernel"], values(source)["head/kernel"])


def test_arrays_by_the_names_of_the_reference(source):
    arrays = {
        f"params/{name}": keras.ops.convert_to_numpy(variable)
        for name, variable in checkpoints.reference_variables(source).items()
    }
    model = models.VMoE(image_size=48, num_classes=3, **SPARSE)
    by_name = models.VMoE(image_size=48, num_classes=3, **SPARSE)
    checkpoints.transfer(model, arrays)
    checkpoints.transfer(by_name, source)
    for name, value in values(model).items():
        if not name.startswith("head/"):
            np.testing.assert_array_equal(value, values(by_name)[name])


@pytest.mark.parametrize(
    "case", ["tok17_to_tok37", "tok17_to_tok10", "gap16_to_gap36", "tok50_to_tok145"]
)
def test_resizing_equals_the_reference(case):
    extras = golden.load("07_extras")
    old, new = extras[f"zoom/{case}/src"], extras[f"zoom/{case}/dst"]
    prefix = int(case.startswith("tok"))

    def model_of(array):
        tokens = keras.Input(array.shape[1:])
        layer = layers.PositionEmbedding(num_prefix_tokens=prefix, name="positions")
        return keras.Model(tokens, layer(tokens))

    model = model_of(new)
    checkpoints.transfer(model, {"positions/embedding": old})
    np.testing.assert_allclose(values(model)["positions/embedding"], new, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({**SPARSE, "width": 8}, r"wrong shape: embedding/kernel is \(8, 8, 3, 16\)"),
        ({**SPARSE, "num_experts": 2}, r"wrong shape: \S*hidden_kernel is \(4, 16, 32\)"),
        ({**SPARSE, "num_layers": 3}, "missing: encoder_block_2"),
        ({**SPARSE, "num_layers": 1, "placement": "none"}, "left over: encoder_block_1"),
    ],
)
def test_what_does_not_fit_is_listed_and_changes_nothing(source, arguments, words):
    model = models.VMoE(image_size=32, num_classes=3, **arguments)
    before = values(model)
    with pytest.raises(ValueError, match=words):
        checkpoints.transfer(model, source)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_arrays_of_something_else_are_refused(source):
    with pytest.raises(ValueError, match="Received: 'conv1', "):
        checkpoints.transfer(source, {"conv1": np.zeros(3)})


# ---------------------------------------------------------------------------------- ensembles

ENSEMBLE = {**SPARSE, "num_members": 2}


@pytest.mark.parametrize("by_reference", [False, True])
def test_an_ensemble_shares_out_the_experts_of_a_v_moe(source, by_reference):
    model = models.EfficientEnsemble(image_size=32, num_classes=3, **ENSEMBLE)
    given = source
    if by_reference:
        named = checkpoints.reference_variables(source).items()
        given = {name: keras.ops.convert_to_numpy(variable) for name, variable in named}
    done = checkpoints.transfer(model, given)
    assert len(done.shared_out) == 1
    assert not set(done.shared_out) & set(done.copied)
    assert "shared out: " in str(done)
    there, here = values(source), values(model)
    path = "encoder_block_1/encoder_block_1_moe/router/kernel"
    assert here[path].shape == (16, 2, 2)
    for member in range(2):
        own = there[path][:, 2 * member : 2 * member + 2]
        np.testing.assert_array_equal(here[path][:, member], own)
    for name in here:
        if name != path and not name.startswith("head/"):
            np.testing.assert_array_equal(here[name], there[name])


def test_one_member_of_an_ensemble_starts_as_the_v_moe_itself(source):
    """With all experts at hand, it gives the very logits."""
    sizes = {"image_size": 32, "num_classes": 10, "representation_size": 16, "num_selected": 1}
    single = models.VMoE(**sizes, **SPARSE)
    checkpoints.transfer(single, source, fresh=())
    model = models.EfficientEnsemble(**sizes, **SPARSE, num_members=1)
    checkpoints.transfer(model, single, fresh=())
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype("float32")
    wanted = np.asarray(single(x))
    np.testing.assert_allclose(np.asarray(model(x))[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_an_ensemble_starts_from_an_ensemble(source):
    first = models.EfficientEnsemble(image_size=32, num_classes=3, **ENSEMBLE)
    second = models.EfficientEnsemble(image_size=48, num_classes=5, **ENSEMBLE)
    done = checkpoints.transfer(second, models.averaged_prediction(first))
    assert not done.shared_out
    assert any("router/kernel" in name for name in done.copied)


def test_routers_of_other_numbers_of_experts_are_not_shared_out(source):
    arguments = {**ENSEMBLE, "num_experts": 8}
    model = models.EfficientEnsemble(image_size=32, num_classes=3, **arguments)
    with pytest.raises(ValueError, match=r"router/kernel is \(16, 4\), the model needs \(16, 2, 4"):
        checkpoints.transfer(model, source)
    back = models.VMoE(image_size=32, num_classes=3, **SPARSE)
    ensemble = models.EfficientEnsemble(image_size=32, num_classes=3, **ENSEMBLE)
    with pytest.raises(ValueError, match=r"router/kernel is \(16, 2, 2\), the model needs \(16, 4"):
        checkpoints.transfer(back, ensemble)


def test_positions_of_another_width_are_among_the_problems(source):
    model = models.VMoE(image_size=48, num_classes=3, **{**SPARSE, "width": 8})
    with pytest.raises(ValueError, match="wrong shape: position_embedding/embedding is"):
        checkpoints.transfer(model, source)


def test_positions_of_images_and_of_texts_are_resized_each_from_its_own():
    sizes = {"num_layers": 1, "placement": (0,), "width": 8, "mlp_dim": 8, "num_heads": 2}
    small, large = (
        models.LIMoE.from_variant("limoe_ti8", image_size=size, text_length=length, **sizes)
        for size, length in ((16, 4), (24, 6))
    )
    done = checkpoints.transfer(large, small)
    assert set(done.resized) == {
        "position_embedding/embedding",
        "text_position_embedding/embedding",
    }
    for name in ("position_embedding", "text_position_embedding"):
        theirs, ours = (np.asarray(m.get_layer(name).embedding) for m in (small, large))
        np.testing.assert_allclose(ours[:, [0, -1]], theirs[:, [0, -1]])  # corners are kept
