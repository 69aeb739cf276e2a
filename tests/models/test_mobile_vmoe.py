"""Mobile V-MoE: one router for whole images, taught by super-classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_vmoe
from keras_vmoe import analysis, layers, models, ops
from tests.models import tiny

IDS = [0, 1, 1]
PUBLISHED = {
    "12x384": 2297,
    "9x384": 1752,
    "6x384": 1207,
    "12x192": 618,
    "9x192": 478,
    "6x192": 338,
    "12x96": 176,
    "9x96": 140,
    "6x96": 103,
    "12x64": 88,
    "9x64": 71,
    "6x64": 54,
}
# Of the dense models and the sparse ones.
PARAMETERS = {
    "12x384": (22_878_952, 44_151_016),
    "9x384": (17_555_560, 38_827_624),
    "6x384": (12_232_168, 33_504_232),
    "12x192": (6_131_560, 11_459_176),
    "9x192": (4_796_968, 10_124_584),
    "6x192": (3_462_376, 8_789_992),
    "12x96": (1_739_176, 3_075_880),
    "9x96": (1_403_656, 2_740_360),
    "6x96": (1_068_136, 2_404_840),
    "12x64": (864_872, 1_461_096),
    "9x64": (714_920, 1_311_144),
    "6x64": (564_968, 1_161_192),
}


def mobile(**overrides):
    arguments = {"num_layers": 3, "num_experts": 2, **overrides}
    model = models.MobileVMoE(**{**tiny.ARGUMENTS, **arguments})
    tiny.spread(model)
    return model


@pytest.fixture(scope="module")
def model():
    """For the tests that only call it."""
    return mobile(superclasses=IDS)


# ---------------------------------------------------------------------------- the counts


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_the_published_flops_and_the_parameters(name, published):
    sparse = analysis.profile(f"mobile_vmoe_{name}")
    dense = analysis.profile(f"mobile_vmoe_{name}", routing="dense")
    assert round(sparse.flops_paper / 1e6) == round(dense.flops_paper / 1e6) == published
    assert sparse.flops == 2 * sparse.macs < sparse.flops_paper
    assert (dense.params, sparse.params) == PARAMETERS[name]
    width = int(name.split("x")[1])
    assert sparse.activated_params == dense.params + 10 * width
    assert sparse.macs == dense.macs + 10 * width


@pytest.mark.parametrize(
    ("k", "published"), [(1, 2534), (2, 2769), (3, 3005), (5, 3476), (10, 4653)]
)
def test_the_published_flops_of_the_ablations(k, published):
    for routing in ("image", "dense"):
        found = analysis.profile("mobile_vmoe_deit_ti16", num_selected=k, routing=routing)
        assert round(found.flops_paper / 1e6) == published


def test_the_published_parameters_of_the_ablations():
    dense = analysis.profile("mobile_vmoe_deit_ti16", routing="dense")
    assert dense.params == 5_717_416  # DeiT-Ti's own
    assert dense.params == analysis.profile("vit_ti16").params
    sparse = analysis.profile("mobile_vmoe_deit_ti16", num_selected=2)
    assert sparse.activated_params == 6_309_160 + 1_920
    assert sparse.params == 11_045_032


@pytest.mark.parametrize("routing", ["image", "token", "dense"])
def test_the_closed_form_is_the_model(routing):
    own = mobile(routing=routing, num_selected=2, router_bias=True)
    counted = analysis.profile(own)
    assert counted.params == own.count_params()
    graph = analysis.profile(keras.Model(own.inputs, own.outputs))
    assert [row.name for row in graph.layers if row.params] == [row.name for row in counted.layers]
    assert (graph.macs, graph.activated_params, graph.flops_paper) == (
        counted.macs,
        counted.activated_params,
        counted.flops_paper,
    )


# ------------------------------------------------------------------------------ the function


def by_hand(model, images):
    """The model, layer by layer, one image at a time."""
    logits = []
    for image in images:
        x = image[None]
        named = {layer.name: layer for layer in model.layers}
        for name in ("embedding", "class_token", "position_embedding", "encoder_block_0"):
            x = named[name](x)
        router = named["router"]
        gates = np.asarray(keras.ops.softmax(x[:, 0] @ router.kernel))[0]
        chosen = np.argsort(-gates)[: router.num_selected]
        for index in (1, 2):
            block = named[f"encoder_block_{index}"]
            normed = block.attention_norm(x)
            x = x + block.attention(normed, normed)
            normed = block.mlp_norm(x)
            every = keras.ops.repeat(normed, 2, axis=0)
            outputs = block.mlp.experts(every)
            x = x + sum(gates[e] * outputs[e] for e in chosen)
        x = named["encoder_norm"](x)
        logits.append(np.asarray(named["head"](x[:, 0]))[0])
    return np.array(logits)


@pytest.mark.parametrize("k", [1, 2])
def test_it_is_one_router_and_experts_for_whole_images(k):
    own, images = mobile(num_selected=k), tiny.images(5)
    np.testing.assert_allclose(np.asarray(own(images)), by_hand(own, images), atol=1e-4)


def test_the_router_looks_at_the_mean_of_the_patches():
    own = mobile(router_input="mean")
    images = tiny.images(3)
    before = keras.Model(own.inputs, own.get_layer("encoder_block_0").output)
    described = np.asarray(before(images))[:, 1:].mean(1)
    wanted = described @ np.asarray(own.get_layer("router").kernel)
    found = own(images, training=True)["router_logits"]
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-4)
    assert mobile(router_input="mean", pooling="gap")(images).shape == (3, 3)


def test_the_dense_twin_is_a_vit():
    own = mobile(num_selected=2)
    twin = own.dense_twin()
    assert twin.arguments["routing"] == "dense"
    assert analysis.profile(twin).macs == analysis.profile(own).macs - 2 * 8
    one = mobile().dense_twin()
    vit = tiny.vit(num_layers=3)
    vit.set_weights(one.get_weights())
    images = tiny.images(2)
    np.testing.assert_array_equal(np.asarray(one(images)), np.asarray(vit(images)))
    assert not models.is_sparse(one)


def test_routing_by_token_is_that_of_vmoe():
    own = mobile(routing="token", num_selected=2)
    assert [layer.name for layer in models.moe_layers(own)] == [
        "encoder_block_1_moe",
        "encoder_block_2_moe",
    ]
    vmoe = models.VMoE(
        **{**tiny.ARGUMENTS, "num_layers": 3}, placement="final_2", num_experts=2, num_selected=2
    )
    vmoe.set_weights(own.get_weights())
    images = tiny.images(4)
    np.testing.assert_array_equal(np.asarray(own(images)), np.asarray(vmoe(images)))
    assert not isinstance(own(images, training=True), dict)


# --------------------------------------------------------------------------- what it gives


def test_in_training_it_gives_both(model):
    images = tiny.images(4)
    outputs = model(images, training=True)
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits": (4, 3),
        "router_logits": (4, 2),
    }
    np.testing.assert_allclose(np.asarray(outputs["logits"]), np.asarray(model(images)), atol=1e-5)


def test_with_router_outputs(model):
    images = tiny.images(4)
    found = models.with_router_outputs(model).predict(images, verbose=0)
    outputs = model(images, training=True)
    np.testing.assert_allclose(
        found["router_logits"], np.asarray(outputs["router_logits"]), atol=1e-5
    )
    np.testing.assert_array_equal(found["experts"][:, 0], found["router_logits"].argmax(-1))
    np.testing.assert_allclose(found["logits"], np.asarray(model(images)), atol=1e-5)
    with pytest.raises(ValueError, match="model must be a MobileVMoE with routing='image'"):
        models.with_router_outputs(mobile(routing="dense"))


def test_a_classifier_by_it_gives_logits_and_tells_its_experts(model):
    classifier = models.Classifier(model, list("abc"))
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 20, 24, 3)).astype("float32")
    np.testing.assert_allclose(
        np.asarray(classifier(pixels, training=True)), np.asarray(classifier(pixels)), atol=1e-5
    )
    found = models.with_router_outputs(classifier)(pixels)
    np.testing.assert_allclose(
        np.asarray(found["logits"]), np.asarray(classifier(pixels)), atol=1e-5
    )
    assert found["experts"].shape == (2, 1)


def test_padded_images_and_other_routing(model):
    images, mask = tiny.images(4), np.array([True, True, False, True])
    outputs = models.with_image_mask(models.with_router_outputs(model))
    np.testing.assert_allclose(
        np.asarray(outputs({"images": images, "mask": mask})["logits"]),
        np.asarray(model(images)),
        atol=1e-5,
    )
    for metric in model.metrics:
        metric.reset_state()
    padded = np.concatenate([images[:2], -9 * images[:1], images[3:]])
    outputs({"images": padded, "mask": mask})
    found = {m.name: float(m.result()) for m in model.metrics}
    gates = np.asarray(keras.ops.softmax(model(images, training=True)["router_logits"]))[mask]
    assert found["router/confidence"] == pytest.approx(gates.max(-1).mean(), rel=1e-4)
    load = np.bincount(gates.argmax(-1), minlength=2).max() / 3
    assert found["router/expert_load_max"] == pytest.approx(load)
    both = keras_vmoe.with_routing(model, num_selected=2)
    wanted = mobile(num_selected=2)
    wanted.set_weights(model.get_weights())
    np.testing.assert_allclose(both.predict(images, verbose=0), wanted(images), atol=1e-5)
    with pytest.raises(ValueError, match="capacity_factor cannot be changed on an ImageRouter"):
        keras_vmoe.with_routing(model, capacity_factor=0.5)


def test_files_and_configs(model, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = tiny.images(3)
    np.testing.assert_array_equal(np.asarray(again(images)), np.asarray(model(images)))
    assert again.get_config() == model.get_config()
    assert again.superclasses == IDS


def test_its_routing_is_recorded(model):
    (record,) = analysis.routing_records(model, tiny.images(5)).values()
    assert record.expert.shape == (5, 1, 1)
    assert record.layer == "router"
    assert record.dropped == 0.0


# -------------------------------------------------------------------------------- training


def fit(own, labels, images, **arguments):
    own.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    history = own.fit(images, labels, batch_size=len(images), verbose=0).history
    return {name: values[0] for name, values in history.items()}


def test_fit_adds_the_routers_loss():
    own, images = mobile(superclasses=IDS, superclass_loss_weight=0.7), tiny.images(6)
    labels = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype("float32")
    outputs = own(images, training=True)
    task = np.asarray(ops.classification_loss(labels, outputs["logits"])).mean()
    router = np.asarray(ops.superclass_loss(labels, outputs["router_logits"], IDS)).mean()
    hits = np.asarray(ops.superclass_hits(labels, outputs["router_logits"], IDS)).mean()
    found = fit(own, labels, images)
    assert found["loss"] == pytest.approx(task + 0.7 * router, rel=1e-4)
    assert found["router_loss"] == pytest.approx(router, rel=1e-4)
    assert found["router_accuracy"] == pytest.approx(hits)
    measured = own.evaluate(images, labels, verbose=0, return_dict=True)
    assert measured["router_accuracy"] == pytest.approx(hits)
    assert measured["loss"] == pytest.approx(found["loss"], rel=1e-4)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_fit_weighs_the_routers_loss_as_the_task(shape):
    own, images = mobile(superclasses=IDS), tiny.images(6)
    labels, weights = np.arange(6) % 3, np.arange(1.0, 7.0, dtype="float32")
    outputs = own(images, training=True)
    task = np.asarray(ops.classification_loss(labels, outputs["logits"]))
    router = np.asarray(ops.superclass_loss(labels, outputs["router_logits"], IDS))
    own.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    arrays = (images, labels.reshape(shape), weights.reshape(shape))
    batches = tf.data.Dataset.from_tensors(arrays)
    found = own.fit(batches, verbose=0).history
    wanted = (weights * (task + 0.3 * router)).mean()
    assert found["loss"][0] == pytest.approx(wanted, rel=1e-4)
    mean = (weights * router).sum() / weights.sum()
    assert found["router_loss"][0] == pytest.approx(mean, rel=1e-4)
    assert found["router_accuracy"][0] <= 1.0


def test_fit_without_super_classes_is_plain():
    own, images = mobile(), tiny.images(6)
    labels = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]]
    found = fit(own, labels, images)
    wanted = np.asarray(ops.classification_loss(labels, own(images))).mean()
    assert found["loss"] == pytest.approx(wanted, rel=1e-4)
    assert not any(name.startswith("router_") for name in found)


def test_the_router_learns_its_super_classes():
    keras.utils.set_random_seed(0)
    own = mobile(superclasses=[0, 1, 1])
    # The classes differ in brightness.
    labels = np.arange(48) % 3
    images = tiny.images(48) * 0.1 + (labels[:, None, None, None] - 1) * 0.8
    own.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = own.fit(images, labels, epochs=30, batch_size=16, verbose=0).history
    assert history["router_accuracy"][-1] > 0.95
    experts = models.with_router_outputs(own).predict(images, verbose=0)["experts"][:, 0]
    assert (experts == np.array([0, 1, 1])[labels]).mean() > 0.95


def test_the_loss_counts_only_images_that_are_there(model):
    labels, logits = np.array([0, 1, 2]), np.eye(3, 2)
    own = float(model.router_loss(labels, logits, np.array([1.0, 1.0, 0.0])))
    wanted = np.asarray(ops.superclass_loss(labels, logits, IDS))[:2].mean()
    assert own == pytest.approx(0.3 * wanted, rel=1e-5)


@pytest.mark.parametrize("arguments", [{"remat": True}, {"dtype": "mixed_bfloat16"}])
def test_it_trains_in_other_ways(arguments):
    own = mobile(superclasses=IDS, stochastic_depth_rate=0.1, **arguments)
    own.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = own.fit(tiny.images(6), np.arange(6) % 3, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"superclasses": [0, 1]}, "superclasses must hold an expert for each of the 3 classes"),
        ({"superclasses": [0, 0, 0]}, "no class for 1; set num_experts"),
        ({"superclasses": [0, 1, 2]}, "must be numbers from 0 to 1"),
        ({"superclasses": [0.0, 1.7, 1.2]}, "superclasses must be a sequence of ints"),
        ({"superclasses": "011"}, "superclasses must be a sequence of ints"),
        ({"superclasses": [True, False, True]}, "superclasses must be a sequence of ints"),
        ({"superclasses": [[0], [1], [1]]}, "superclasses must be a sequence of ints"),
        ({"superclasses": 5}, "superclasses must be a sequence of ints"),
        ({"superclasses": IDS, "routing": "dense"}, "superclasses are of classes and of routing"),
        ({"superclasses": IDS, "num_classes": None}, "superclasses are of classes"),
        ({"routing": "batch"}, "routing must be one of 'image', 'token', 'dense'"),
        ({"num_moe_layers": 3}, "num_moe_layers must be below num_layers=3"),
        ({"num_moe_layers": 0}, "num_moe_layers must be an integer of at least 1"),
        ({"num_selected": 3}, "num_selected must be at most num_experts=2"),
        ({"router_input": "max"}, "router_input must be one of 'token', 'mean'"),
        ({"pooling": "gap"}, "router_input='token' is the class token"),
        ({"superclass_loss_weight": -1.0}, "superclass_loss_weight must not be negative"),
        ({"gate": "straight_through", "renormalise_gates": True}, "leave one of them out"),
        ({"dispatch": "gather"}, "dispatch must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        mobile(**arguments)
    with pytest.raises(ValueError, match=message):  # what is counted could be built
        analysis.profile(
            models.MobileVMoE, **{**tiny.ARGUMENTS, "num_layers": 3, "num_experts": 2, **arguments}
        )


def test_presets_by_their_short_names():
    own = models.MobileVMoE.from_variant("6x64", image_size=32, num_classes=3, patch_size=16)
    assert own.name == "mobile_vmoe_6x64"
    assert own.arguments["patch_size"] == 16
    assert len(keras_vmoe.list_variants("mobile_vmoe_")) == 13
    assert isinstance(own.get_layer("encoder_block_4").mlp, layers.ImageMoEMLP)
    assert isinstance(own.get_layer("encoder_block_3").mlp, layers.MLP)
