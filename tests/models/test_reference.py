"""Models built from the reference's configs give the reference's numbers."""

import copy
import json

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, layers, models
from tests.support import numpy_vmoe
from tests.support.golden import FOLDER, load, max_error
from tests.support.gradients import assert_gradients_of_the_reference, layer_gradients
from tests.support.unallocated import unallocated

NAMES = sorted(
    path.stem
    for pattern in ("04_*", "05_*", "06_soft_moe*")
    for path in FOLDER.glob(f"{pattern}.npz")
)
TREES = sorted(path.stem for path in FOLDER.glob("param_tree_vmoe_*.json"))


def filled(golden, **overrides):
    model = models.from_reference_config(golden.config, image_size=32, **overrides)
    params = golden.under("params")
    if overrides.get("num_classes", 1) is None:
        params = {name: value for name, value in params.items() if not name.startswith("head/")}
    checkpoints.assign_reference_params(model, params)
    return model


def tolerance(name):
    return 2e-2 if "bf16" in name else 1e-5


def handed(golden):
    """The saved noise, for as many routers as draw any."""
    if golden.config["encoder"]["moe"]["router"].get("name", "").endswith("SoftRouter"):
        return layers.handed_noise([])
    noise = golden.under("in")
    return layers.handed_noise([noise[n] for n in sorted(noise) if n.startswith("noise_normal")])


def auxiliary(golden, mode):
    key = f"{mode}/metrics/auxiliary_loss"
    return float(np.mean(golden[key])) if key in golden else 0.0


def test_all_files_are_here():
    assert len(NAMES) == 8, NAMES


@pytest.mark.parametrize("name", NAMES)
def test_inference(name):
    golden = load(name)
    model = filled(golden)
    logits = np.asarray(model(golden["in/images"]))
    np.testing.assert_allclose(logits, golden["det/logits"], atol=tolerance(name))
    losses = float(sum(model.losses, 0.0))
    assert losses == pytest.approx(auxiliary(golden, "det"), abs=1e-5)
    features = filled(golden, num_classes=None)(golden["in/images"])
    np.testing.assert_allclose(np.asarray(features), golden["det/features"], atol=tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_with_the_saved_noise(name):
    golden = load(name)
    model = filled(golden)
    with handed(golden):
        logits = np.asarray(model(golden["in/images"], training=True))
    np.testing.assert_allclose(logits, golden["train/logits"], atol=tolerance(name))
    losses = float(sum(model.losses, 0.0))
    assert losses == pytest.approx(auxiliary(golden, "train"), abs=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if "bf16" not in n])
def test_intermediate_outputs_of_blocks(name):
    golden = load(name)
    model = filled(golden)
    blocks = [layer for layer in model.layers if isinstance(layer, layers.EncoderBlock)]
    outputs = keras.Model(model.input, [block.output for block in blocks])(golden["in/images"])
    for i, found in enumerate(outputs):
        key = f"det/inter/Encoder/encoderblock_{i}"
        if key not in golden:  # a sparse block gives its metrics as well
            key = next(k for k in golden.arrays if k.startswith(key + "/0") or k == key + "/out")
        np.testing.assert_allclose(np.asarray(found), golden[key], atol=1e-5)


def cross_entropy(kind, golden):
    def softmax_xent(logits):
        return keras.ops.mean(
            keras.losses.categorical_crossentropy(golden["in/onehot"], logits, from_logits=True)
        )

    def sigmoid_xent(logits):
        x, z = logits, golden["in/onehot"]
        each = keras.ops.softplus(x) - x * z
        return keras.ops.mean(keras.ops.sum(each, axis=-1))

    return {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}[kind]


@pytest.mark.parametrize("kind", ["softmax_xent", "sigmoid_xent"])
@pytest.mark.parametrize("mode", ["det", "train"])
@pytest.mark.parametrize("name", [n for n in NAMES if "bf16" not in n])
def test_losses_and_gradients(name, mode, kind):
    golden = load(name)
    main = cross_entropy(kind, golden)
    wanted = golden.under(f"{mode}/{kind}")
    if not any(key.startswith("grad_params") for key in wanted):
        if mode == "train":
            return
        model = filled(golden)
        logits = model(golden["in/images"])
        assert float(main(logits)) == pytest.approx(float(wanted["main_loss"]), abs=1e-5)
        total = float(main(logits)) + float(sum(model.losses, 0.0))
        assert total == pytest.approx(float(wanted["total_loss"]), abs=1e-5)
        return
    # Every way of dispatch has a gradient of its own.
    dispatches = ("einsum", "gather", "grouped") if name.startswith("05") else ("auto",)
    for dispatch in dispatches:
        check_gradients(filled(golden, dispatch=dispatch), golden, mode, main, wanted)


def check_gradients(model, golden, mode, main, wanted):
    def compute():
        return layer_gradients(
            model,
            lambda logits, losses: main(logits) + sum(losses, 0.0),
            golden["in/images"],
            training=mode == "train",
        )

    if mode == "train":
        with handed(golden):
            _, gradients, of_images = compute()
    else:
        _, gradients, of_images = compute()
    assert max_error(of_images, wanted["grad_images"]) < 1e-4
    assert_gradients_of_the_reference(model, gradients, wanted)


@pytest.mark.parametrize("name", ["04_vmoe_token_k1", "04_vmoe_gap_expert_choice"])
def test_one_image_is_a_group_of_its_own(name):
    """A single image gives what the reference gives when it routes that image alone."""
    golden = load(name)
    config = copy.deepcopy(golden.config)
    tokens = 16 + (config["classifier"] == "token")
    config["encoder"]["moe"]["group_size"] = tokens
    params, images = golden.under("params"), golden["in/images"]
    wanted, _ = numpy_vmoe.forward(config, params, images)
    model = filled(golden)
    found = np.concatenate([np.asarray(model(images[i : i + 1])) for i in range(4)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# ----------------------------------------------- options that no golden file holds: NumPy forward


@pytest.mark.parametrize("name", [n for n in NAMES if "bf16" not in n])
def test_the_numpy_forward_is_the_references(name):
    golden = load(name)
    params = golden.under("params")
    logits, taken = numpy_vmoe.forward(golden.config, params, golden["in/images"])
    np.testing.assert_allclose(logits, golden["det/logits"], atol=1e-5)
    assert taken == set(params)


BASE = load("05_vmoe_token_k2_grads").config


def with_options(moe=None, dispatcher=None, router=None, encoder=None, **top):
    config = copy.deepcopy(BASE)
    config.update(top)
    config["encoder"].update(encoder or {})
    config["encoder"]["moe"].update(moe or {})
    config["encoder"]["moe"]["router"].update(router or {})
    config["encoder"]["moe"]["router"]["dispatcher"].update(dispatcher or {})
    if config["classifier"] != "token" and not moe:
        config["encoder"]["moe"]["group_size"] = 32
    return config


def explicit(capacity):
    config = with_options(dispatcher={"capacity": capacity})
    del config["encoder"]["moe"]["router"]["dispatcher"]["capacity_factor"]
    return config


def positions(**options):
    return {"position_emb": options}


def no_moe():
    config = copy.deepcopy(BASE)
    del config["encoder"]["moe"]
    return config


OPTIONS = {
    "sincos2d": with_options(encoder=positions(name="sincos2d")),
    "sincos2d_temperature_gap": with_options(
        encoder=positions(name="sincos2d", temperature=50.0), classifier="gap"
    ),
    "no_positions": with_options(encoder=positions(name="none")),
    "learned_positions": with_options(encoder=positions(name="learned")),
    "first_token": with_options(classifier="0"),
    "map_qk_norm": with_options(encoder={"attention_qk_norm": True}, classifier="map"),
    "map_representation": with_options(classifier="map", representation_size=12),
    "token_qk_norm": with_options(encoder={"attention_qk_norm": True}),
    "representation": with_options(representation_size=24),
    "features": with_options(num_classes=None),
    "features_of_zero_classes": with_options(num_classes=0, classifier="gap"),
    "oblong_patches": with_options(patch_size=[8, 16], moe={"group_size": 18}),
    "all_blocks": with_options(moe={"layers": [0, 1, 2, 3]}),
    "no_moe": no_moe(),
    "explicit_capacity": explicit(3),
    "explicit_capacity_above_the_group": explicit(400),
    "rounded_capacity": with_options(
        dispatcher={"capacity_ceil_or_round": "round", "capacity_factor": 0.61}
    ),
    "capacity_multiple_of_one": with_options(
        dispatcher={"capacity_multiple_of": 1, "capacity_factor": 0.5}
    ),
    "capacity_multiple_of_none": with_options(
        dispatcher={"capacity_multiple_of": None, "capacity_factor": 0.5}
    ),
    "capacity_multiple_of_seven": with_options(
        dispatcher={"capacity_multiple_of": 7, "capacity_factor": 0.3}
    ),
    "no_priority": with_options(dispatcher={"batch_priority": False, "capacity_factor": 0.5}),
    "priority_by_default_off": with_options(
        router={"dispatcher": {"capacity_factor": 0.5, "name": "indices"}}
    ),
    "three_choices": with_options(router={"num_selected_experts": 3}),
    "one_choice_by_default": with_options(
        router={"num_selected_experts": 1}, dispatcher={"partition_spec": [["expert", "replica"]]}
    ),
    "one_group": with_options(moe={"group_size": 68}),
    "group_of_one_image": with_options(moe={"group_size": 17}),
    "expert_choice_token": with_options(
        router={
            "name": "NoisyTopItemsPerExpertRouter",
            "dispatcher": {"capacity_factor": 1.3},
        }
    ),
    "expert_choice_capacity": with_options(
        router={"name": "NoisyTopItemsPerExpertRouter", "dispatcher": {"capacity": 5}}
    ),
    "soft_map": with_options(
        router={"name": "vmoe.projects.soft_moe.router.SoftRouter", "num_slots": 3},
        classifier="map",
    ),
    "soft_capacity": with_options(
        router={"name": "SoftRouter", "capacity_factor": 1.5}, classifier="gap"
    ),
}


def clean(config):
    """Expert choice and soft routers take none of the options of token choice."""
    if "moe" not in config["encoder"]:
        return config
    router = config["encoder"]["moe"]["router"]
    if "name" in router:
        for name in ("num_selected_experts", "importance_loss_weight", "load_loss_weight"):
            router.pop(name, None)
        if router["name"].endswith("SoftRouter"):
            router.pop("dispatcher", None)
            router.pop("noise_std", None)
    return config


def random_params(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: 0.4 * rng.normal(size=variable.shape) + (1.0 if name.endswith("scale") else 0.0)
        for name, variable in checkpoints.reference_variables(model).items()
    }


@pytest.mark.parametrize("option", OPTIONS)
def test_options_against_numpy(option):
    config = clean(copy.deepcopy(OPTIONS[option]))
    model = models.from_reference_config(config, image_size=32)
    params = random_params(model)
    checkpoints.assign_reference_params(model, params)
    images = load("05_vmoe_token_k2_grads")["in/images"]
    wanted, taken = numpy_vmoe.forward(config, params, images)
    assert taken == set(params)
    assert max_error(np.asarray(model(images)), wanted) < 2e-5
    half = copy.deepcopy(config)
    router = half["encoder"].get("moe", {}).get("router", {})
    if "dispatcher" in router:
        router["dispatcher"]["bfloat16"] = True
        rounded = models.from_reference_config(half, image_size=32)
        checkpoints.assign_reference_params(rounded, params)
        assert 1e-6 < max_error(np.asarray(rounded(images)), wanted) < 3e-2


def test_map_head_has_norms_of_its_own_under_qk_norm():
    model = models.from_reference_config(clean(copy.deepcopy(OPTIONS["map_qk_norm"])), 32)
    names = checkpoints.reference_variables(model)
    for norm in ("query_ln", "key_ln"):
        assert f"MapHead/MultiHeadDotProductAttention/{norm}/scale" in names
        assert f"Encoder/encoderblock_0/SelfAttention/{norm}/scale" in names


@pytest.mark.parametrize("name", TREES)
def test_parameters_of_the_released_models(name):
    tree = json.loads((FOLDER / f"{name}.json").read_text())
    side = 384 if "384" in name else 224
    with unallocated():
        model = models.from_reference_config(tree["config"], image_size=side)
    found = {n: list(v.shape) for n, v in checkpoints.reference_variables(model).items()}
    assert found == {n: shape for n, (shape, _) in tree["params"].items()}
    assert sum(np.prod(shape) for shape in found.values()) == tree["num_params"]


def test_what_a_config_leaves_out_is_the_references_default():
    config = copy.deepcopy(BASE)
    config["encoder"]["moe"]["router"] = {"dispatcher": {"capacity_factor": 1.0}}
    model = models.from_reference_config(config, image_size=32)
    router = model.get_layer("encoder_block_1").mlp.router
    assert router.num_selected == 1
    assert not router.batch_priority
    assert (router.importance_loss_weight, router.load_loss_weight) == (1.0, 1.0)
    assert (router.capacity_rounding, router.capacity_multiple_of) == ("ceil", 4)
    assert model.get_layer("encoder_block_1").mlp.dispatch_dtype is None


def test_rates_are_taken_over():
    config = with_options(
        encoder={"dropout_rate": 0.1, "attention_dropout_rate": 0.2}, moe={"dropout_rate": 0.3}
    )
    model = models.from_reference_config(config, image_size=32)
    block = model.get_layer("encoder_block_1")
    assert (block.dropout_rate, block.attention_dropout_rate) == (0.1, 0.2)
    assert block.mlp.experts.dropout_rate == 0.3
    assert model.get_layer("encoder_block_0").mlp.dropout_rate == 0.1
    assert model.get_layer("dropout").rate == 0.1
    # A sparse block that names no rate has that of the encoder.
    del config["encoder"]["moe"]["dropout_rate"]
    again = models.from_reference_config(config, image_size=32)
    assert again.get_layer("encoder_block_1").mlp.experts.dropout_rate == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_options(capacity=3), "not known: capacity=3"),
        (with_options(encoder={"depth": 3}), "encoder.depth=3"),
        (with_options(moe={"k": 2}), "encoder.moe.k=2"),
        (with_options(router={"name": "Hash"}), "'Hash'"),
        (with_options(router={"tau": 2}), "encoder.moe.router.tau=2"),
        (with_options(dispatcher={"capacity": 3}), "either capacity or capacity_factor"),
        (with_options(classifier="cls"), "classifier='cls'"),
        (with_options(encoder=positions(name="rotary")), "'rotary'"),
        (with_options(moe={"group_size": 20}), "group_size=20"),
        (with_options(moe={"ensemble_size": 3}), "ensemble_size=3"),
        ({k: v for k, v in BASE.items() if k != "hidden_size"}, "hold hidden_size"),
    ],
)
def test_bad_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        models.from_reference_config(config, image_size=32)
