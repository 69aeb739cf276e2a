"""Models from files: what the arrays tell, what the configs told, what is asked for."""

import json

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from keras_vmoe.checkpoints import CheckpointError
from keras_vmoe.checkpoints.released import RELEASED
from tests.models import tiny
from tests.support import golden
from tests.support.unallocated import unallocated

FOLDER = golden.FOLDER / "ckpt_tiny"
VMOE = ("vmoe_tiny", "vmoe_tiny_prelogits")
TREES = sorted(golden.FOLDER.glob("param_tree_*.json"))


@pytest.mark.parametrize("name", VMOE)
def test_logits_of_the_reference(name):
    wanted = golden.load(f"ckpt_tiny/{name}")
    model = checkpoints.load_model(FOLDER / name, batch_priority=True, images_per_group=2)
    assert isinstance(model, models.VMoE)
    logits = model(wanted["in/images"])
    np.testing.assert_allclose(logits, wanted["det/logits"], atol=1e-5)


def test_an_ensemble_of_the_reference():
    wanted = golden.load("ckpt_tiny/eee_tiny")
    model = checkpoints.load_model(FOLDER / "eee_tiny", batch_priority=True, images_per_group=2)
    assert isinstance(model, models.EfficientEnsemble)
    assert model.arguments["num_members"] == 2
    assert model.arguments["num_selected"] == 1
    logits = np.reshape(model(wanted["in/images"]), (-1, 10))
    np.testing.assert_allclose(logits, wanted["det/logits"], atol=1e-5)


def test_arguments_that_the_arrays_tell():
    found = checkpoints.infer_arguments(checkpoints.VMoECheckpoint(FOLDER / "vmoe_tiny"))
    assert found == {
        "patch_size": 8,
        "channels": 3,
        "width": 16,
        "num_layers": 12,
        "num_heads": 2,
        "mlp_dim": 32,
        "qk_norm": False,
        "pooling": "token",
        "representation_size": None,
        "num_classes": 10,
        "position_embedding": "learned",
        "image_size": 32,
        "placement": (1, 3, 11),
        "num_experts": 4,
    }


@pytest.mark.parametrize(
    "overrides",
    [
        {"pooling": "map", "qk_norm": True, "representation_size": 6},
        {"pooling": "gap", "num_classes": None},
        {"router": "soft", "num_slots": 3},
        {"patch_size": (8, 4), "image_size": (16, 8), "channels": 1},
        {"placement": (1,), "num_layers": 11},
    ],
)
def test_every_argument_that_arrays_tell_is_told(overrides):
    model = tiny.vmoe(**overrides)
    found = checkpoints.infer_arguments(checkpoints.reference_variables(model))
    told = {name: model.arguments[name] for name in found}
    told["image_size"] = overrides.get("image_size", 16)
    assert found == told


@pytest.mark.parametrize("path", TREES, ids=lambda p: p.stem)
def test_the_real_trees_build_the_models_of_their_configs(path):
    tree = json.loads(path.read_text())
    arrays = {
        name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in tree["params"].items()
    }
    found = checkpoints.infer_arguments(arrays)
    with unallocated():
        cls = models.EfficientEnsemble if "num_members" in found else models.VMoE
        model = cls(**found)
        wanted = models.from_reference_config(tree["config"], image_size=found["image_size"])
    shapes = {n: tuple(v.shape) for n, v in checkpoints.reference_variables(model).items()}
    assert shapes == {name: array.shape for name, array in arrays.items()}
    assert model.count_params() == wanted.count_params() == tree["num_params"]
    for name, value in found.items():
        assert wanted.arguments[name] == value or name == "patch_size", name


@pytest.mark.slow
@pytest.mark.parametrize("path", TREES, ids=lambda p: p.stem)
def test_the_real_trees_fill_the_models(path):
    # To draw each of a thousand million values takes longer than to load them. The same ones come
    # again after a prime number, from another place in each array.
    values = np.random.default_rng(0).standard_normal(1_000_003, dtype="float32")
    tree = json.loads(path.read_text())
    arrays = {
        name: np.resize(np.roll(values, 1_009 * i), shape)
        for i, (name, (shape, _)) in enumerate(tree["params"].items())
    }
    model = checkpoints.load_model(arrays)
    assert model.count_params() == tree["num_params"]
    for name, variable in checkpoints.reference_variables(model).items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), arrays[name])


def test_what_the_configs_tell_goes_by_the_name_of_the_file(tmp_path):
    arrays = golden.load("ckpt_tiny/vmoe_tiny").under("params")
    ensemble = golden.load("ckpt_tiny/eee_tiny").under("params")
    for name, config in RELEASED.items():
        checkpoints.save_vmoe(tmp_path / name, ensemble if name.startswith("eee") else arrays)
        arguments = checkpoints.load_model(tmp_path / name).arguments
        assert arguments["capacity_factor"] == config["capacity_factor"]
        assert arguments["eval_capacity_factor"] == config.get("eval_capacity_factor")
        assert arguments["num_selected"] == (1 if name.startswith("eee") else 2)
        assert arguments["batch_priority"] is False
        assert arguments["images_per_group"] == config.get("images_per_group")
    arguments = checkpoints.load_model(FOLDER / "vmoe_tiny").arguments
    assert arguments["capacity_factor"] == 1.05
    assert arguments["eval_capacity_factor"] is None
    given = checkpoints.load_model(tmp_path / next(iter(RELEASED)), capacity_factor=2.0).arguments
    assert (given["capacity_factor"], given["eval_capacity_factor"]) == (2.0, 4.0)


def test_fine_tuning_makes_the_head_anew_and_resizes_positions():
    name = FOLDER / "vmoe_tiny_prelogits"
    stored = golden.load("ckpt_tiny/vmoe_tiny_prelogits").under("params")
    model = checkpoints.load_model(name, image_size=48, num_classes=3, representation_size=None)
    found = checkpoints.reference_variables(model)
    assert "pre_logits/kernel" not in found
    assert tuple(found["head/kernel"].shape) == (16, 3)
    assert not np.any(found["head/kernel"])
    positions = np.asarray(found["Encoder/posembed_input/pos_embedding"])
    theirs = stored["Encoder/posembed_input/pos_embedding"]
    assert positions.shape == (1, 37, 16)
    np.testing.assert_array_equal(positions[:, 0], theirs[:, 0])
    corners = positions[0, 1:].reshape(6, 6, 16)[::5, ::5]
    np.testing.assert_allclose(corners, theirs[0, 1:].reshape(4, 4, 16)[::3, ::3], rtol=1e-6)
    experts = "Encoder/encoderblock_3/Moe/Mlp/Dense_0/kernel"
    np.testing.assert_array_equal(found[experts], stored[experts])


def test_a_model_without_its_head_gives_features():
    wanted = golden.load("ckpt_tiny/vmoe_tiny")
    options = {"batch_priority": True, "images_per_group": 2}
    model = checkpoints.load_model(FOLDER / "vmoe_tiny", num_classes=None, **options)
    params = wanted.under("params")
    logits = model(wanted["in/images"]) @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(logits, wanted["det/logits"], atol=1e-5)


def test_any_variable_can_be_made_anew():
    model = checkpoints.load_model(FOLDER / "vmoe_tiny", fresh=["head/"])
    assert not np.any(checkpoints.reference_variables(model)["head/kernel"])


def test_a_dense_model_is_a_vit():
    dense = tiny.vit()
    tiny.spread(dense)
    arrays = {n: np.asarray(v) for n, v in checkpoints.reference_variables(dense).items()}
    model = checkpoints.load_model(arrays)
    assert type(model) is models.ViT
    images = tiny.images(2)
    np.testing.assert_allclose(model(images), dense(images), atol=1e-6)
    with pytest.raises(ValueError, match="ViT has no argument num_selected"):
        checkpoints.load_model(arrays, num_selected=2)
    with pytest.raises(ValueError, match="ViT has no argument batch_priority"):
        checkpoints.load_model(arrays, batch_priority=True)


def without(name):
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("embedding/kernel"), "not the arrays of a ViT or V-MoE: 'embedding/kernel' is m"),
        (
            lambda a: {n: x for n, x in a.items() if "encoderblock_5/" not in n},
            "without a gap. There are 0, 1, 2, 3, 4, 6",
        ),
        (lambda a: {**a, "cls": np.zeros((1, 1, 8))}, "wrong shape: cls is"),
        (lambda a: {**a, "extra/kernel": np.zeros(3)}, "left over: extra/kernel"),
        (without("Encoder/encoder_norm/bias"), "missing: Encoder/encoder_norm/bias"),
        (
            lambda a: {**a, "embedding/kernel": np.zeros((8, 8))},
            "'embedding/kernel' must have 4 axes. It has the shape",
        ),
        (
            lambda a: {**a, "Encoder/encoderblock_3/Moe/Router/dense/kernel": np.zeros((16, 5))},
            r"encoderblock_3/Moe/Router/dense/kernel is \(16, 5\), beside the others .* \(16, 4\)",
        ),
    ],
)
def test_arrays_that_are_of_no_such_model(tmp_path, change, message):
    arrays = change(golden.load("ckpt_tiny/vmoe_tiny").under("params"))
    checkpoints.save_vmoe(tmp_path / "a", arrays)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.load_model(tmp_path / "a")
    assert str(error.value).startswith(str(tmp_path / "a"))


def test_small_arrays_cannot_ask_for_a_large_model(tmp_path):
    block = "Encoder/encoderblock_0/"
    arrays = {
        "embedding/kernel": np.zeros((1, 1, 1, 60_000), "float32"),
        "Encoder/posembed_input/pos_embedding": np.zeros((1, 4, 1), "float32"),
        f"{block}SelfAttention/query/kernel": np.zeros((1, 1, 1), "float32"),
        f"{block}Mlp/Dense_0/kernel": np.zeros((1, 60_000), "float32"),
    }
    checkpoints.save_vmoe(tmp_path / "bomb", arrays)
    with pytest.raises(CheckpointError, match="bomb: the arrays do not fit one another") as error:
        checkpoints.load_model(tmp_path / "bomb")
    assert "(1, 60000), beside the others it must be (60000, 60000)" in str(error.value)


@pytest.mark.parametrize("router", ["expert_choice", "soft"])
def test_other_routers(router):
    theirs = tiny.vmoe(router=router, num_slots=3 if router == "soft" else None)
    arrays = {n: np.asarray(v) for n, v in checkpoints.reference_variables(theirs).items()}
    options = {"router": "expert_choice", "images_per_group": 3} if router != "soft" else {}
    options |= {"capacity_factor": 0.8} if router != "soft" else {"images_per_group": 3}
    model = checkpoints.load_model(arrays, **options)
    images = tiny.images(6)
    np.testing.assert_allclose(model(images), theirs(images), atol=1e-5)


def test_positions_of_an_oblong_grid_are_resized_as_such():
    # 6 * 8 patches and a class token are 49 tokens, which is no square of 7 * 7 patches.
    theirs = tiny.vit(image_size=(48, 64))
    tiny.spread(theirs)
    model = tiny.vit(image_size=(48, 80))
    arrays = {n: np.asarray(v) for n, v in checkpoints.reference_variables(theirs).items()}
    checkpoints.transfer(model, arrays, fresh=(), grid=(6, 8))
    wanted = tiny.vit(image_size=(48, 80))
    checkpoints.transfer(wanted, theirs, fresh=())
    name = "Encoder/posembed_input/pos_embedding"
    found = [np.asarray(checkpoints.reference_variables(m)[name]) for m in (model, wanted)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match="wrong shape: Encoder/posembed_input/pos_embedding"):
        checkpoints.transfer(model, arrays, fresh=())


def test_positions_of_no_square_need_the_image_size():
    model = tiny.vmoe(image_size=(16, 24))
    arrays = {n: np.asarray(v) for n, v in checkpoints.reference_variables(model).items()}
    with pytest.raises(ValueError, match="image_size must be given"):
        checkpoints.load_model(arrays)
    again = checkpoints.load_model(arrays, image_size=(16, 24))
    assert again.input_shape == (None, 16, 24, 3)


def test_an_unknown_argument():
    with pytest.raises(ValueError, match="VMoE has no argument experts. It has: image_size"):
        checkpoints.load_model(FOLDER / "vmoe_tiny", experts=3)


def test_the_model_may_compute_in_half_precision():
    model = checkpoints.load_model(FOLDER / "vmoe_tiny", dtype="mixed_bfloat16")
    assert model.get_layer("encoder_block_0").compute_dtype == "bfloat16"
    stored = golden.load("ckpt_tiny/vmoe_tiny").under("params")
    found = checkpoints.reference_variables(model)["embedding/kernel"]
    np.testing.assert_array_equal(found, stored["embedding/kernel"])
