"""LIMoE: two modalities in one tower that never see each other but where they are routed."""

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import layers, models, ops
from keras_vmoe.models import limoe
from tests.models import tiny
from tests.support.golden import max_error

EMBEDDINGS = ("image_embedding", "text_embedding")


@pytest.fixture(scope="module")
def model():
    """For the tests that only call it."""
    return tiny.limoe()


def embeddings(model, pairs, **arguments):
    outputs = model(pairs, **arguments)
    return [np.asarray(outputs[name]) for name in EMBEDDINGS]


def change(pairs, **parts):
    return {**pairs, **parts}


# ---------------------------------------------------------------------- presets, config, files


def test_the_smallest_preset():
    model = models.LIMoE.from_variant("limoe_ti8")
    assert model.name == "limoe_ti8"
    assert [layer.name for layer in models.moe_layers(model)] == [
        "encoder_block_1_moe",
        "encoder_block_3_moe",
    ]
    assert {name: x.shape for name, x in model.input.items()} == {
        "images": (None, 32, 32, 3),
        "tokens": (None, 16),
    }
    assert {name: x.shape for name, x in model.output.items()} == {
        "image_embedding": (None, 64),
        "text_embedding": (None, 64),
        "logit_scale": (None,),
    }
    names = {m.name for m in model.metrics}
    wanted = {
        f"{moe}/{name}_{statistic}"
        for moe in ("encoder_block_1_moe", "encoder_block_3_moe")
        for name in limoe.MODALITIES
        for statistic in (
            *("success_rate", "effective_experts", "local_entropy", "tokens", "soft_minimum"),
        )
    }
    assert wanted < names
    assert "accuracy" not in names  # it is of `fit`
    model.compile("sgd")
    assert "accuracy" in {m.name for m in model.metrics}


def test_config_and_files(tmp_path):
    model = tiny.limoe(
        auxiliary_losses={"z": 2.0, "local_text": 1.0},
        soft_minimum_experts={"image": 2},
        balanced_importance=True,
        placement=[0],
        projection_dim=6,
        loss="sigmoid",
        dropout_rate=0.1,
        num_selected=2,
        eval_capacity_factor=2.0,
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is models.LIMoE
    assert again.get_config() == model.get_config()
    pairs = tiny.pairs(4)
    found, wanted = again(pairs), model(pairs)
    assert found.keys() == {*EMBEDDINGS, "logit_scale", "logit_bias"}
    for name in wanted:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(wanted[name]))
    # The encoders are made anew, of the loaded layers.
    np.testing.assert_array_equal(
        np.asarray(again.encode_text(pairs["tokens"])),
        np.asarray(model.encode_text(pairs["tokens"])),
    )
    router = models.moe_layers(again)[0].router
    assert (router.num_selected, router.eval_capacity_factor) == (2, 2.0)
    assert router.balanced_importance
    assert router.soft_minimum_experts == {"image": 2}
    assert router.z_loss_weight == pytest.approx(2 * 0.04 / 2)


# --------------------------------------------------------------------- one tower, two encoders


def test_encoders_give_what_the_tower_gives(model):
    """In evaluation, where nothing is dropped."""
    pairs = tiny.pairs(7)
    found = embeddings(model, pairs)
    apart = (model.encode_image(pairs["images"]), model.encode_text(pairs["tokens"]))
    predicted = model.predict(pairs, batch_size=3, verbose=0)
    for one, other, name in zip(found, apart, EMBEDDINGS, strict=True):
        np.testing.assert_allclose(np.asarray(other), one, atol=1e-5)
        np.testing.assert_allclose(predicted[name], one, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, rtol=1e-5)
    assert model.image_encoder is model.image_encoder
    assert {id(v) for v in model.image_encoder.weights} < {id(v) for v in model.weights}
    assert model.count_params() == tiny.limoe().count_params(), "encoders are no sublayers"


def test_encoders_leave_the_metrics_of_pairs_alone():
    model = tiny.limoe()
    model.encode_image(tiny.pairs(2)["images"])
    model.encode_text(tiny.pairs(2)["tokens"])
    assert all(float(metric.result()) == 0 for metric in model.metrics)


def test_images_and_texts_never_see_each_other(model):
    pairs, other = tiny.pairs(4), tiny.pairs(4, seed=1)
    image, text = embeddings(model, pairs)
    swapped = embeddings(model, change(pairs, tokens=other["tokens"]))
    np.testing.assert_allclose(swapped[0], image, atol=1e-5)
    assert np.abs(swapped[1] - text).max() > 1e-2
    swapped = embeddings(model, change(pairs, images=other["images"]))
    np.testing.assert_allclose(swapped[1], text, atol=1e-5)
    assert np.abs(swapped[0] - image).max() > 1e-2


def test_what_is_behind_the_end_changes_nothing():
    pairs = tiny.pairs(5)
    assert (pairs["tokens"] == 1).any()
    mask = np.asarray(layers.text_mask(pairs["tokens"]))
    assert not mask.all()
    junk = np.random.default_rng(2).integers(0, tiny.VOCABULARY, mask.shape)
    other = change(pairs, tokens=np.where(mask, pairs["tokens"], junk).astype("int32"))
    assert (other["tokens"] != pairs["tokens"]).any()
    model = tiny.limoe(
        auxiliary_losses=limoe._LOSSES, soft_minimum_experts={}, noise_std=0.0, capacity_factor=0.6
    )
    seen = []
    for batch in (pairs, other):
        with layers.record_routing() as calls:
            found = embeddings(model, batch, training=True)
        losses = [float(loss) for loss in model.losses]
        plan = calls[0].plan
        kept, slots = np.asarray(plan.kept), np.asarray(plan.slot)
        seen.append((found, losses, kept, np.where(kept, slots, -1)))
    (found, losses, kept, slots), (same, same_losses, same_kept, same_slots) = seen
    for one, wanted in zip(same, found, strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert len(losses) == 7  # the load loss needs noise
    assert same_losses == pytest.approx(losses, rel=1e-5)
    np.testing.assert_array_equal(same_kept, kept)
    np.testing.assert_array_equal(same_slots, slots)
    patches = 4
    by_pair = kept.reshape(-1, patches + tiny.TEXT_LENGTH)[:5]
    assert not by_pair[:, patches:][~mask].any(), "padding takes no slot"
    assert not by_pair[:, patches:][mask].all(), "some tokens are crowded out"


# ------------------------------------------------------------------------------------- routing


def test_a_group_holds_the_images_and_texts_of_its_pairs(model):
    with layers.record_routing() as calls:
        model(tiny.pairs(4))  # groups of three pairs
    modality = np.asarray(calls[0].modality)
    pair = [0] * 4 + [1] * tiny.TEXT_LENGTH
    np.testing.assert_array_equal(modality[0], 3 * pair)
    np.testing.assert_array_equal(modality[1, : len(pair)], pair)
    real = np.asarray(layers.text_mask(tiny.pairs(4)["tokens"])).sum(axis=1) + 4
    # Nothing is dropped, and padding asks for no slot.
    assert np.asarray(calls[0].group_capacity).tolist() == [real[:3].sum(), real[3]]


def test_slots_go_to_the_largest_gates_of_both_modalities():
    """Batch Prioritized Routing: whoever is kept has a larger gate than whoever is not."""
    orders = {}
    for priority in (True, False):
        model = tiny.limoe(capacity_factor=0.5, batch_priority=priority, noise_std=0.0)
        with layers.record_routing() as calls:
            model(tiny.pairs(3), training=True)
        plan = calls[0].plan
        gates, kept = np.asarray(plan.gates)[0], np.asarray(plan.kept)[0, :, 0]
        expert = np.asarray(plan.expert)[0, :, 0]
        lowest = [gates[kept & (expert == e), e].min(initial=np.inf) for e in range(4)]
        real = np.asarray(layers.text_mask(tiny.pairs(3)["tokens"]))
        real = np.concatenate([np.ones((3, 4), bool), real], axis=1).ravel()
        out = real & ~kept
        assert out.any()
        orders[priority] = all(
            gates[t, expert[t]] <= lowest[expert[t]] for t in np.flatnonzero(out)
        )
    assert orders == {True: True, False: False}


def test_with_routing():
    model, pairs = tiny.limoe(), tiny.pairs(4)
    same = keras_vmoe.with_routing(model, capacity_factor=4.0)
    cheap = keras_vmoe.with_routing(model, capacity_factor=0.3)
    for one, other, dropped in zip(
        embeddings(model, pairs), embeddings(same, pairs), embeddings(cheap, pairs), strict=True
    ):
        np.testing.assert_allclose(other, one, atol=1e-5)
        assert np.abs(dropped - one).max() > 1e-3
    encoder = keras_vmoe.with_routing(model.text_encoder, capacity_factor=4.0)
    np.testing.assert_allclose(
        np.asarray(encoder(pairs["tokens"])), embeddings(model, pairs)[1], atol=1e-5
    )


# -------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("losses", "relative"),
    [
        (limoe.AUXILIARY_LOSSES, dict.fromkeys(limoe.AUXILIARY_LOSSES, 1.0)),
        (("z", "local_image"), {"z": 1.0, "local_image": 1.0}),
        ({"gshard": 3.0, "global_text": 0.5, "z": 0.0}, {"gshard": 3.0, "global_text": 0.5}),
        ((), {}),
    ],
)
def test_weights_of_auxiliary_losses(losses, relative):
    """Each is 0.04 of its share in the mean over losses and sparse blocks."""
    model = tiny.limoe(auxiliary_losses=losses, placement=(0, 1), auxiliary_loss_weight=0.04)
    for moe in models.moe_layers(model):
        router = moe.router
        found = {
            **{
                n: getattr(router, f"{n}_loss_weight")
                for n in ("importance", "load", "gshard", "z")
            },
            **{f"local_{n}": w for n, w in router.local_entropy_loss_weights.items()},
            **{f"global_{n}": w for n, w in router.global_entropy_loss_weights.items()},
        }
        wanted = {n: 0.04 * w / (len(relative) * 2) for n, w in relative.items()}
        assert {n: w for n, w in found.items() if w} == pytest.approx(wanted)
    model(tiny.pairs(2), training=True)
    assert len(model.losses) == 2 * len(relative)


@pytest.mark.parametrize(
    ("experts", "wanted"),
    [
        (32, {"image": 20, "text": 9}),
        (8, {"image": 5, "text": 2}),
        (4, {"image": 2, "text": 2}),
        (1, {"image": 1, "text": 1}),
    ],
)
def test_soft_minima_are_the_papers_share_of_the_experts(experts, wanted):
    config = {"soft_minimum_experts": None, "num_experts": experts}
    assert limoe.soft_minimum_experts(config) == wanted
    router = models.moe_layers(tiny.limoe(num_experts=experts))[0].router
    assert router.soft_minimum_experts == wanted
    assert (router.num_selected, router.batch_priority) == (1, True)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_evaluation_is_the_contrastive_loss_and_the_auxiliary_ones(kind):
    model, pairs = tiny.limoe(loss=kind, auxiliary_loss_weight=1.0), tiny.pairs(6)
    model.compile()
    found = model.evaluate(pairs, verbose=0, return_dict=True)
    model(pairs)
    auxiliary = float(sum(model.losses))
    assert auxiliary > 0.01
    logits, found_kind = ops.contrastive_outputs(model(pairs))
    assert found_kind == kind
    loss = np.asarray(ops.contrastive_loss(logits, kind)).mean()
    assert found["loss"] == pytest.approx(loss + auxiliary, rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.asarray(ops.contrastive_hits(logits)).mean())


def test_fit_lowers_the_loss_and_reports():
    keras.utils.set_random_seed(0)
    model, pairs = tiny.limoe(), tiny.pairs(6)
    model.get_layer("logit_scale").log_scale.assign(np.log(10.0))
    before = [np.asarray(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.Adam(3e-2))
    history = model.fit(pairs, batch_size=6, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["accuracy"][-1] > history["accuracy"][0]
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert (np.asarray(variable) != value).any(), variable.path
    prefix = "encoder_block_1_moe/"
    tokens = np.asarray(layers.text_mask(pairs["tokens"])).sum()
    assert history[prefix + "image_tokens"] == [6 * 4] * 12
    assert history[prefix + "text_tokens"] == [tokens] * 12
    for name in limoe.MODALITIES:
        assert 0 < history[f"{prefix}{name}_success_rate"][-1] <= 1
        assert 1 <= history[f"{prefix}{name}_effective_experts"][-1] <= 4
        assert 0 < history[f"{prefix}{name}_local_entropy"][-1] < np.log(4)


def test_a_dense_tower():
    model, pairs = tiny.limoe(placement="none"), tiny.pairs(4)
    assert not models.is_sparse(model)
    image, text = embeddings(model, pairs)
    assert model.losses == []
    assert max_error(np.asarray(model.encode_image(pairs["images"])), image) < 1e-5
    assert max_error(np.asarray(model.encode_text(pairs["tokens"])), text) < 1e-5


def test_half_precision(model):
    half = tiny.limoe(dtype="mixed_bfloat16")
    outputs = half(tiny.pairs(4), training=True)
    for name, value in outputs.items():
        assert keras.backend.standardize_dtype(value.dtype) == "float32", name
        assert np.isfinite(np.asarray(value)).all()
    full = embeddings(model, tiny.pairs(4))
    for one, other in zip(full, embeddings(half, tiny.pairs(4)), strict=True):
        assert (one * other).sum(-1).min() > 0.98, "the same directions"


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"auxiliary_losses": ("entropy",)}, "'importance', 'load'.*Received: 'entropy'"),
        ({"auxiliary_losses": "z"}, r"sequence of names. Received: 'z'; write \('z',\)"),
        ({"auxiliary_losses": {"z": -1.0}}, "z=-1.0"),
        ({"auxiliary_loss_weight": -0.1}, "auxiliary_loss_weight.*-0.1"),
        ({"soft_minimum_experts": {"image": 5}}, "num_experts=4.*image=5"),
        ({"soft_minimum_experts": {"audio": 2}}, "image, text.*'audio'"),
        ({"loss": "triplet"}, "'softmax', 'sigmoid'.*'triplet'"),
        ({"vocabulary_size": 0}, "vocabulary_size=0"),
        ({"text_length": 0}, "text_length=0"),
        ({"pairs_per_group": 0}, "pairs_per_group=0"),
        ({"scale_init": 101.0}, "scale_init=101.0"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"placement": "every_9"}, "every_9"),
    ],
)
def test_bad_arguments_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.limoe(**overrides)


ALONE = "inputs must be a dict of images and tokens.*encode_image.*encode_text"
PAIRS = tiny.pairs(3)
IMAGES, TOKENS = PAIRS["images"], PAIRS["tokens"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(IMAGES), ALONE),
        (lambda model: model({"images": IMAGES}), r"Received: \['images'\]"),
        (lambda model: model({**PAIRS, "labels": TOKENS}), r"\['images', 'labels', 'tokens'\]"),
        (lambda model: model(change(PAIRS, tokens=TOKENS[:2])), r"same number.*\(3, 16.*\(2, 5\)"),
        (lambda model: model(change(PAIRS, tokens=TOKENS[:1])), "same number of rows"),
        (lambda model: model(change(PAIRS, tokens=TOKENS * 1.0)), "tokens must be integers"),
        (lambda model: model(change(PAIRS, tokens=TOKENS[:, :4])), r"shape=\(3, 4\)"),
        (lambda model: model(change(PAIRS, tokens=TOKENS + 9)), "between 0 and 10"),
        (lambda model: model.encode_text(TOKENS * 1.0), "tokens must be integers"),
        (lambda model: model.encode_text(TOKENS - 5), "between 0 and 10"),
        (lambda model: model.encode_image(TOKENS), "images"),
        (lambda model: model.fit(change(PAIRS, tokens=TOKENS[:2]), verbose=0), "same number"),
        (lambda model: model.fit(change(PAIRS, tokens=TOKENS * 1.0), verbose=0), "integers"),
        (lambda model: model.fit({"images": IMAGES}, verbose=0), ALONE),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call(model)


def test_the_loss_of_a_replica_is_its_share(monkeypatch):
    model, batch = tiny.limoe(), tiny.pairs(4)
    outputs = model(batch)
    alone = float(model.compute_loss(y_pred=outputs))
    monkeypatch.setattr(ops, "num_replicas", lambda: 2)
    assert float(model.compute_loss(y_pred=model(batch))) == pytest.approx(alone / 2, rel=1e-5)


def test_pairs_have_no_labels():
    model, batch = tiny.limoe(), tiny.pairs(4)
    with pytest.raises(ValueError, match="pairs have no labels and no weights"):
        model.compute_loss(y=np.zeros(4), y_pred=model(batch))


@pytest.mark.parametrize(
    "arguments", [{"auxiliary_losses": ("nonsense",)}, {"soft_minimum_experts": {"txt": 3}}]
)
def test_a_dense_tower_refuses_what_a_sparse_one_would(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        tiny.limoe(placement="none", **arguments)
