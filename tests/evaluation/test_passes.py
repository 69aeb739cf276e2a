"""One pass over images against the model called by hand, and against routing records."""

import json

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import analysis, evaluation, layers, models
from tests.models import tiny

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
# 8 images in groups of 3: two full ones and one that is not; 5 tokens an image.
IMAGES = tiny.images(8)


def batches(*cuts):
    parts = zip(np.split(IMAGES, cuts), np.split(LABELS, cuts), strict=True)
    return [{"image": image, "label": label} for image, label in parts]


@pytest.fixture(autouse=True)
def eagerly(request):
    """Spares compiling where nothing depends on it."""
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly("compiled" not in request.node.name)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def model():
    return tiny.vmoe()


def by_hand(model, parts):
    logits = np.concatenate([np.asarray(model(part["image"], training=False)) for part in parts])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    accuracy = (logits.argmax(-1) == LABELS).mean()
    return accuracy, -log_p[np.arange(len(LABELS)), LABELS].mean()


@pytest.mark.parametrize("cuts", [(), (5,)])
@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
def test_it_equals_the_records(router, cuts):
    model = tiny.vmoe(router=router)
    parts = batches(*cuts)
    found = evaluation.evaluate(model, parts)
    accuracy, loss = by_hand(model, parts)
    assert (found.images, found.accuracy) == (8, accuracy)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    logits = np.concatenate([np.asarray(model(part["image"])) for part in parts])
    assert found.calibration == pytest.approx(evaluation.calibration(logits, LABELS), rel=1e-4)
    assert found.calibration.nll == pytest.approx(loss, rel=1e-5)
    assert found.to_dict()["ece"] == found.calibration.ece
    records = analysis.routing_records(model, [part["image"] for part in parts])
    assert list(found.layers) == list(records)
    for name, record in records.items():
        layer = found.layers[name]
        np.testing.assert_allclose(layer.expert_shares, record.expert_shares, atol=1e-6)
        if router == "soft":
            assert layer.dropped is layer.capacity is None
        else:
            assert layer.dropped == pytest.approx(record.dropped, abs=1e-6)
            assert layer.rows == pytest.approx(record.kept.sum() / 8)
    if router == "top_k":
        mean = np.mean([record.dropped for record in records.values()])
        assert found.dropped == pytest.approx(mean, abs=1e-6)


def test_compiled_and_eager_agree(model):
    import tensorflow as tf

    compiled = evaluation.evaluate(model, batches(5))
    tf.config.run_functions_eagerly(True)
    eager = evaluation.evaluate(model, batches(5))
    assert compiled[:3] == pytest.approx(eager[:3])
    for one, other in zip(compiled.layers.values(), eager.layers.values(), strict=True):
        np.testing.assert_allclose(one.expert_shares, other.expert_shares, atol=1e-6)
        assert one[:4] == pytest.approx(other[:4])
    assert 0 < compiled.dropped < 1


def test_slots_and_macs_are_those_of_the_profile(model):
    layer = evaluation.evaluate(model, batches()).layers["encoder_block_0_moe"]
    row = next(
        part
        for block in analysis.profile(model, whole_slots=True).layers
        for part in block.parts
        if part.name == "encoder_block_0_moe"
    )
    experts = next(part for part in row.parts if part.name == "experts")
    assert layer.slots * layer.row_macs == pytest.approx(experts.macs, rel=1e-6)
    assert layer.row_macs == 2 * 8 * 8
    assert layer.choices == 5 * 2
    assert layer.group_tokens == 3 * 5
    # 15 tokens, 2 choices, C = 0.8, 4 experts: 6 slots an expert and group of 3 images.
    assert layer.capacity == pytest.approx(4 * 6 / 30)


def test_a_layer_that_is_called_twice():
    moe = layers.MoEMLP(layers.TopKRouter(4, 1, capacity_factor=0.3), 6, images_per_group=2)
    inputs = keras.Input((5, 8))
    outputs = keras.layers.Flatten()(moe(moe(inputs)))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(4, 5, 8)).astype("float32")
    found = evaluation.evaluate(model, [{"image": x, "label": np.zeros(4, int)}])
    assert list(found.layers) == [moe.name, f"{moe.name} call 2"]
    first, second = analysis.routing_records(model, x).values()
    assert [layer.dropped for layer in found.layers.values()] == pytest.approx(
        [first.dropped, second.dropped], abs=1e-6
    )


def test_padding_does_not_reach_the_model(model):
    padded = {
        "image": np.concatenate([IMAGES[:3], 9 * IMAGES[:2]]),
        "label": np.concatenate([LABELS[:3], [0, 0]]),
        "mask": np.arange(5) < 3,
    }
    plain = {"image": IMAGES[:3], "label": LABELS[:3]}
    nothing = {"image": IMAGES[:2], "label": LABELS[:2], "mask": np.zeros(2, bool)}
    wanted, found = (evaluation.evaluate(model, parts) for parts in ([plain], [padded, nothing]))
    assert found[:3] == wanted[:3]
    features, labels = evaluation.collect_features(model, [padded, nothing])
    np.testing.assert_allclose(features, model(IMAGES[:3]), atol=1e-5)
    assert labels.tolist() == LABELS[:3].tolist()


def test_metrics_are_left_alone_by_compiled_passes(model):
    for metric in model.metrics:
        metric.reset_state()
    evaluation.evaluate(model, batches())
    evaluation.collect_features(models.feature_extractor(model), batches())
    assert all(float(metric.result()) == 0 for metric in model.metrics)


def test_features_are_in_order(model):
    extractor = models.feature_extractor(model)
    done = []
    features, labels = evaluation.collect_features(extractor, batches(5), lambda: done.append(1))
    wanted = np.concatenate([np.asarray(extractor(part["image"])) for part in batches(5)])
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    assert labels.tolist() == LABELS.tolist()
    assert features.dtype == "float32"
    assert len(done) == 2


def test_a_loss_of_ones_own_and_mixed_labels(model):
    ones = evaluation.evaluate(model, batches(), loss=lambda labels, logits: np.ones(len(labels)))
    assert ones.loss == 1.0
    hard = evaluation.evaluate(model, batches())
    mixed = [{**part, "label": np.eye(3, dtype="float32")[part["label"]]} for part in batches()]
    soft = evaluation.evaluate(model, mixed)
    assert (soft.accuracy, soft.loss) == (hard.accuracy, pytest.approx(hard.loss, rel=1e-5))


def test_a_dense_model_has_no_routing():
    found = evaluation.evaluate(tiny.vit(), batches())
    assert (found.layers, found.dropped) == ({}, None)
    assert json.loads(json.dumps(found.to_dict()))["images"] == 8


def test_with_other_routing_the_numbers_change(model):
    routed = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=4.0)
    found = evaluation.evaluate(routed, batches())
    assert found.dropped == 0
    assert found.layers["encoder_block_1_moe"].choices == 5
    as_json = json.loads(json.dumps(found.to_dict()))
    assert as_json["layers"]["encoder_block_1_moe"]["dropped"] == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "batches must hold at least one image"),
        ([{"image": IMAGES[:0], "label": LABELS[:0]}], "at least one image"),
        ([IMAGES], "dicts with 'image' and 'label'. Received: ndarray"),
        ([{"images": IMAGES}], r"Received: \['images'\]"),
        ([{"image": IMAGES[:, :8], "label": LABELS}], r"\('images', 16, 16, 3\).*\(8, 8, 16, 3\)"),
    ],
)
def test_wrong_batches(model, parts, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(model, parts)
    with pytest.raises(ValueError, match=message):
        evaluation.collect_features(model, parts)


def test_an_ensemble_is_judged_by_its_mean_probability():
    model = tiny.ensemble()
    found = evaluation.evaluate(model, batches(5))
    logits = np.concatenate([np.asarray(model(x)) for x in (IMAGES[:5], IMAGES[5:])])
    mean = np.asarray(keras.ops.softmax(logits)).mean(1)
    assert found.accuracy == (mean.argmax(-1) == LABELS).mean()
    assert found.loss == pytest.approx(-np.log(mean[np.arange(8), LABELS]).mean(), rel=1e-5)
    records = analysis.routing_records(model, [IMAGES[:5], IMAGES[5:]])
    (layer,) = found.layers.values()
    assert layer.choices == 3 * 5
    assert layer.rows == pytest.approx(sum(record.kept.sum() for record in records.values()) / 8)
    shares = np.concatenate(
        [record.expert_shares * record.kept.sum() for record in records.values()]
    )
    np.testing.assert_allclose(layer.expert_shares, shares / shares.sum(), atol=1e-6)
    rows = evaluation.routing_sweep(
        model,
        batches(),
        evaluation.routing_settings(model, capacity_factors=(0.5,)),
        timing_rounds=0,
    )
    assert [row.num_selected for row in rows] == [1, 1]
