"""E3: the reference's numbers, and what a user may do with an ensemble."""

import json

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import checkpoints, layers, models, ops
from tests.models import tiny
from tests.support.golden import FOLDER, load, max_error
from tests.support.gradients import assert_gradients_of_the_reference, layer_gradients
from tests.support.unallocated import unallocated

GOLDEN = load("06_eee_token_k1_m2")
DISPATCHES = ("einsum", "gather", "grouped")


def filled(golden=GOLDEN, **overrides):
    model = models.from_reference_config(golden.config, image_size=32, **overrides)
    params = golden.under("params")
    if overrides.get("num_classes", 1) is None:
        params = {name: value for name, value in params.items() if not name.startswith("head/")}
    checkpoints.assign_reference_params(model, params)
    return model


def handed():
    """The saved noise: the reference was given the same for both members."""
    noise = [GOLDEN[f"in/noise_normal_{i}"] for i in (0, 1)]
    return layers.handed_noise([np.repeat(array, 2, axis=0) for array in noise])


def rows(outputs):
    """`[b, m, ...]` as the reference has it, `[b * m, ...]`."""
    outputs = np.asarray(outputs)
    return outputs.reshape(-1, *outputs.shape[2:])


# ------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_inference(dispatch):
    model = filled(dispatch=dispatch)
    assert type(model) is models.EfficientEnsemble
    assert model.output_shape == (None, 2, 10)
    logits = rows(model(GOLDEN["in/images"]))
    np.testing.assert_allclose(logits, GOLDEN["det/logits"], atol=1e-5)
    wanted = GOLDEN["det/metrics/auxiliary_loss"].mean()
    assert float(sum(model.losses)) == pytest.approx(wanted, abs=1e-6)


def test_features():
    features = rows(filled(num_classes=None)(GOLDEN["in/images"]))
    np.testing.assert_allclose(features, GOLDEN["det/features"], atol=1e-5)
    extractor = models.feature_extractor(filled())
    found = np.asarray(extractor(GOLDEN["in/images"]))
    np.testing.assert_allclose(found, GOLDEN["det/features"].reshape(4, -1), atol=1e-5)


def test_training_mode_with_the_saved_noise():
    model = filled()
    with handed():
        logits = rows(model(GOLDEN["in/images"], training=True))
    np.testing.assert_allclose(logits, GOLDEN["train/logits"], atol=1e-5)
    wanted = GOLDEN["train/metrics/auxiliary_loss"].mean()
    assert float(sum(model.losses)) == pytest.approx(wanted, abs=1e-6)


def test_losses_by_name():
    model = filled(gshard_loss_weight=1e-3)
    with layers.record_routing() as calls, handed():
        model(GOLDEN["in/images"], training=True)
    for block, call in zip((1, 3), calls, strict=True):
        for name in ("importance", "load", "gshard"):
            wanted = GOLDEN[f"train/metrics/encoderblock_{block}/{name}_loss"].mean()
            assert float(call.losses[name]) == pytest.approx(wanted, rel=1e-4), name


def test_combine_weights():
    model = filled()
    with layers.record_routing() as calls:
        model(GOLDEN["in/images"])
    for block, call in zip((1, 3), calls, strict=True):
        wanted = GOLDEN[f"det/inter/Encoder/encoderblock_{block}/Moe/Router/combine_weights"]
        found = np.asarray(ops.combine_weights(call.plan, 4, call.capacity))
        # A group's tokens are (image, token, member) there, (image, member, token) here.
        images, capacity = 2, found.shape[-1]
        wanted = wanted.reshape(2, images, 17, 2, 4, -1).swapaxes(2, 3).reshape(2, 68, 4, -1)
        np.testing.assert_allclose(found, wanted[..., :capacity], atol=1e-5)
        assert not wanted[..., capacity:].any()


@pytest.mark.parametrize(
    ("mode", "kind", "dispatch"),
    [
        ("det", "softmax", "auto"),
        ("det", "sigmoid", "auto"),
        ("train", "sigmoid", "auto"),
        # Every way of dispatch has a gradient of its own.
        *(("train", "softmax", dispatch) for dispatch in DISPATCHES),
    ],
)
def test_losses_and_gradients(mode, kind, dispatch):
    model = filled(dispatch=dispatch)
    wanted = GOLDEN.under(f"{mode}/{kind}_xent")

    def total(logits, losses):
        main = ops.classification_loss(GOLDEN["in/labels"], logits, kind)
        return keras.ops.mean(main) + sum(losses)

    with handed() if mode == "train" else layers.handed_noise([]):
        logits, gradients, of_images = layer_gradients(
            model, total, GOLDEN["in/images"], training=mode == "train"
        )
    found = float(total(logits, model.losses))
    assert found == pytest.approx(float(wanted["total_loss"]), rel=1e-5)
    assert max_error(of_images, wanted["grad_images"]) < 1e-4
    assert_gradients_of_the_reference(model, gradients, wanted)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_predictions(kind):
    model = models.averaged_prediction(filled(), kind)
    found = model.predict(GOLDEN["in/images"], verbose=0)
    np.testing.assert_array_equal(found.argmax(-1), GOLDEN[f"det/ensemble/label_pred_{kind}"])
    loss = np.asarray(ops.classification_loss(GOLDEN["in/labels"], found, kind))
    np.testing.assert_allclose(loss, GOLDEN[f"det/ensemble/{kind}_xent_eval"], rtol=1e-5)


def test_a_checkpoint_in_the_released_format():
    golden = load("ckpt_tiny/eee_tiny")
    logits = rows(filled(golden)(golden["in/images"]))
    np.testing.assert_allclose(logits, golden["det/logits"], atol=1e-5)


def test_parameters_of_the_released_model():
    tree = json.loads((FOLDER / "param_tree_eee_s32_last2_ft_cifar100.json").read_text())
    with unallocated():
        model = models.from_reference_config(tree["config"], image_size=128)
    found = {n: list(v.shape) for n, v in checkpoints.reference_variables(model).items()}
    assert found == {n: shape for n, (shape, _) in tree["params"].items()}
    assert sum(np.prod(shape) for shape in found.values()) == tree["num_params"]
    moe = models.moe_layers(model)
    assert [layer.images_per_group for layer in moe] == [128, 128]
    with unallocated():
        preset = models.from_variant(
            "eee_s32", image_size=128, num_classes=100, representation_size=512
        )
    assert preset.count_params() == model.count_params()


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        ({"group_size": 51}, "whole number of images of 34 tokens"),
        ({"router": {"name": "NoisyTopItemsPerExpertRouter"}}, "kind 'expert_choice'"),
    ],
)
def test_configs_that_cannot_be_are_named(moe, message):
    config = json.loads(json.dumps(GOLDEN.config))
    own = config["encoder"]["moe"]
    dispatcher = {"dispatcher": own["router"]["dispatcher"]}
    own.update({n: {**dispatcher, **v} if n == "router" else v for n, v in moe.items()})
    with pytest.raises(ValueError, match=message):
        models.from_reference_config(config, image_size=32)


# ------------------------------------------------------------------------- what it is made of


def test_members_are_models_of_their_own():
    """Each member is the V-MoE of its experts, which the other members change nothing of."""
    model = tiny.ensemble(noise_std=0.0)
    x = tiny.images(5)
    outputs = np.asarray(model(x))
    for member in range(3):
        alone = models.VMoE(
            **{**tiny.ARGUMENTS, "placement": (1,), "images_per_group": 3},
            num_experts=2,
            num_selected=1,
            capacity_factor=0.8,
            capacity_multiple_of=1,
        )
        values = {variable.path: np.asarray(variable) for variable in model.weights}
        for variable in alone.weights:
            value = values[variable.path]
            if variable.path.endswith("router/kernel"):
                value = value[:, member]
            elif "/experts/" in variable.path:
                value = value[2 * member : 2 * member + 2]
            variable.assign(value)
        np.testing.assert_allclose(outputs[:, member], np.asarray(alone(x)), atol=1e-5)
    assert np.abs(outputs[:, 0] - outputs[:, 1]).max() > 1e-2


def test_images_are_repeated_before_the_first_sparse_block():
    model = tiny.ensemble(num_layers=4, placement=(2, 3))
    names = [layer.name for layer in model.layers]
    assert names.index("repeat_members") == names.index("encoder_block_2") - 1
    assert model.get_layer("encoder_block_1").output.shape == (None, 5, 8)


@pytest.mark.parametrize("pooling", ["gap", "map", "first"])
def test_every_pooling(pooling):
    model = tiny.ensemble(pooling=pooling, representation_size=6)
    outputs = np.asarray(model(tiny.images(2)))
    assert outputs.shape == (2, 3, 3)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_padded_images_change_nothing(dispatch):
    model = tiny.ensemble(dispatch=dispatch, noise_std=0.0)
    masked = models.with_image_mask(model)
    x = tiny.images(7)
    mask = np.arange(7) < 5
    found = masked.predict({"images": x, "mask": mask}, verbose=0)[:5]
    np.testing.assert_allclose(found, np.asarray(model(x[:5])), atol=1e-5)
    losses = float(sum(model.losses))
    masked({"images": x, "mask": mask})
    assert float(sum(model.losses)) == pytest.approx(losses, rel=1e-5)


def test_any_batch_size_gives_the_groups_of_the_batch():
    model = tiny.ensemble()
    x = tiny.images(7)
    groups = [np.asarray(model(x[i : i + 3])) for i in (0, 3, 6)]
    np.testing.assert_allclose(np.asarray(model(x)), np.concatenate(groups), atol=1e-5)
    found = model.predict(x, batch_size=7, verbose=0)
    np.testing.assert_allclose(found, np.concatenate(groups), atol=1e-5)
    assert model(x[:0]).shape == (0, 3, 3)


def test_other_routing():
    model = tiny.ensemble()
    x = tiny.images(4)
    before = np.asarray(model(x))
    other = keras_vmoe.with_routing(model, num_selected=2, capacity_factor=3.0)
    wanted = tiny.ensemble(num_selected=2, capacity_factor=3.0)
    wanted.set_weights(model.get_weights())
    np.testing.assert_allclose(other.predict(x, verbose=0), np.asarray(wanted(x)), atol=1e-5)
    assert np.abs(other.predict(x, verbose=0) - before).max() > 1e-4
    with pytest.raises(ValueError, match="num_selected=3"):
        keras_vmoe.with_routing(model, num_selected=3)


def test_half_precision_is_near():
    full, half = tiny.ensemble(noise_std=0.0), tiny.ensemble(noise_std=0.0, dtype="mixed_bfloat16")
    half.set_weights(full.get_weights())
    x = tiny.images(2)
    found = half(x, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert half.get_layer("repeat_members").output.dtype == "bfloat16"
    assert np.median(np.abs(np.asarray(found) - np.asarray(full(x, training=True)))) < 0.3


def test_recomputing_changes_no_number():
    results = []
    for remat in (False, True):
        model = tiny.ensemble(remat=remat, noise_std=0.0)
        outputs, gradients, _ = layer_gradients(
            model,
            lambda y, losses: keras.ops.sum(y**2) + sum(losses),
            tiny.images(4),
            training=True,
        )
        results.append((np.asarray(outputs), [float(x) for x in model.losses], gradients))
    plain, again = results
    np.testing.assert_allclose(again[0], plain[0], atol=1e-6)
    assert again[1] == pytest.approx(plain[1], rel=1e-6)
    for path, gradient in plain[2].items():
        assert max_error(again[2][path], gradient) < 1e-5


def test_files_and_configs(tmp_path):
    model = tiny.ensemble(dropout_rate=0.1)
    x = tiny.images(4)
    wanted = np.asarray(model(x))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is models.EfficientEnsemble
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(np.asarray(again(x)), wanted)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(np.asarray(clone(x)), wanted)
    averaged = models.averaged_prediction(model, "sigmoid")
    averaged.save(tmp_path / "averaged.keras")
    loaded = keras.saving.load_model(tmp_path / "averaged.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(averaged(x)))


def test_averages_share_their_weights_and_nest():
    model = tiny.ensemble()
    averaged = models.averaged_prediction(model)
    assert {id(v) for v in averaged.weights} == {id(v) for v in model.weights}
    assert models.averaged_prediction(averaged) is averaged
    x = tiny.images(4)
    wanted = np.asarray(ops.ensemble_logits(model(x)))
    np.testing.assert_allclose(averaged.predict(x, verbose=0), wanted, atol=1e-6)
    routed = keras_vmoe.with_routing(averaged, capacity_factor=0.2)
    other = np.asarray(ops.ensemble_logits(keras_vmoe.with_routing(model, None, 0.2)(x)))
    np.testing.assert_allclose(np.asarray(routed(x)), other, atol=1e-6)
    extracted = [np.asarray(models.feature_extractor(m)(x)) for m in (model, averaged)]
    assert extracted[0].shape == (4, 3 * 8)
    np.testing.assert_array_equal(*extracted)


def test_a_classifier_tells_the_mean_probability(tmp_path):
    model = tiny.ensemble()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype="uint8")
    classifier = models.Classifier(model, "abc")
    members = np.asarray(keras.ops.softmax(model(pixels / np.float32(127.5) - 1)))
    mean = members.mean(1)
    for (name, probability), wanted in zip(classifier.classify(pixels), mean, strict=True):
        assert name == "abc"[wanted.argmax()]
        assert probability == pytest.approx(wanted.max(), abs=1e-5)
    classifier.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.classify(pixels) == classifier.classify(pixels)
    assert type(again.model) is models.EfficientEnsemble
    routed = keras_vmoe.with_routing(classifier, num_selected=2)
    assert routed.output_shape == (None, 3)


def test_an_export_gives_the_logits_of_the_members(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = tiny.ensemble()
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    x = tiny.images(4)
    np.testing.assert_allclose(served.serve(x).numpy(), np.asarray(model(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_members": 4}, "num_members must divide num_experts.*num_members=4"),
        ({"num_members": 0}, "num_members=0"),
        ({"num_selected": 3}, "num_selected=3"),
        ({"placement": "none"}, "at least one sparse block.*placement='none'"),
        ({"placement": (7,)}, r"placement=\(7,\)"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0"),
    ],
)
def test_bad_input_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.ensemble(**overrides)


def test_outputs_that_are_no_logits_are_named():
    inputs = keras.Input((2, 3, 4))
    with pytest.raises(ValueError, match=r"outputs of shape \(None, 2, 3, 4\)"):
        models.averaged_prediction(keras.Model(inputs, inputs * 2))
