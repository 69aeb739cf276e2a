"""Routing records against the routers themselves."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import analysis, layers, models, ops

LAYER = "encoder_block_1_moe"
E, T = 4, 17


def make(seed=0, **overrides):
    arguments = {
        "image_size": 16,
        "patch_size": 4,
        "num_layers": 2,
        "width": 8,
        "mlp_dim": 12,
        "num_heads": 2,
        "num_classes": 3,
        "num_experts": E,
        "capacity_factor": 0.7,
        "capacity_multiple_of": 1,
        "name": "tiny",
    }
    keras.utils.set_random_seed(seed)
    return models.VMoE(**{**arguments, **overrides})


def images(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 16, 16, 3)).astype("float32")


def tokens_of(model, batch):
    """What the MoE layer of the second block is given."""
    block = model.get_layer("encoder_block_1")
    x = keras.Model(model.input, model.get_layer("encoder_block_0").output)(batch)
    y = block.attention_norm(x)
    x = x + block.attention(y, y)
    return block.mlp_norm(x)


def plan_of(model, tokens, capacity):
    router = model.get_layer("encoder_block_1").mlp.router
    flat = keras.ops.reshape(tokens, (1, -1, tokens.shape[-1]))
    plan = router(flat, capacity=capacity)
    arrays = [keras.ops.convert_to_numpy(value)[0] for value in plan]
    return type(plan)(*arrays)


def test_top_k_with_a_partial_group():
    model, batch = make(), images(11)
    records = analysis.routing_records(model, batch)
    assert list(records) == [LAYER]
    record = records[LAYER]
    tokens = tokens_of(model, batch)
    router = model.get_layer("encoder_block_1").mlp.router
    for start, stop in ((0, 8), (8, 11)):
        count = stop - start
        plan = plan_of(model, tokens[start:stop], router.capacity(count * T))
        for field in ("expert", "weight", "kept", "slot", "gates"):
            wanted = getattr(plan, field).reshape(count, T, -1)
            np.testing.assert_allclose(getattr(record, field)[start:stop], wanted, atol=1e-6)
    assert record.expert.shape == (11, T, 2)
    assert record.gates.shape == (11, T, E)
    assert 0.2 < record.dropped < 0.4
    assert record.dropped == pytest.approx(1 - record.kept.mean())
    counts = [(record.kept & (record.expert == e)).sum() for e in range(E)]
    np.testing.assert_allclose(record.expert_shares, np.array(counts) / record.kept.sum())
    assert (record.router, record.num_experts) == ("top_k", E)


def test_expert_choice_is_shown_by_token():
    model, batch = make(router="expert_choice"), images(3)
    record = analysis.routing_records(model, batch)[LAYER]
    tokens = tokens_of(model, batch)
    for i in range(3):
        plan = plan_of(model, tokens[i : i + 1], None)
        kept = np.zeros((T, E), bool)
        for e in range(E):
            for c, token in enumerate(plan.token[e]):
                kept[token, e] = True
                assert record.slot[i, token, e] == c
        np.testing.assert_array_equal(record.kept[i], kept)
        np.testing.assert_allclose(record.weight[i], kept * plan.gates, atol=1e-6)
        np.testing.assert_allclose(record.gates[i], plan.gates, atol=1e-6)
    assert record.expert.shape == record.weight.shape == (3, T, E)
    np.testing.assert_array_equal(record.expert[0, 0], np.arange(E))
    assert (record.slot[~record.kept] == -1).all()
    assert record.dropped == pytest.approx(1 - record.kept.any(-1).mean())
    np.testing.assert_allclose(record.expert_shares, 1 / E)


def test_soft_routing_gives_its_mixtures():
    model, batch = make(router="soft", num_slots=2), images(3)
    record = analysis.routing_records(model, batch)[LAYER]
    plan = plan_of_soft(model, tokens_of(model, batch))
    np.testing.assert_allclose(record.dispatch, plan.dispatch, atol=1e-6)
    np.testing.assert_allclose(record.combine, plan.combine, atol=1e-6)
    np.testing.assert_allclose(record.weight, plan.combine.sum(-1), atol=1e-6)
    np.testing.assert_allclose(record.gates.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(record.expert_shares, record.weight.mean((0, 1)), atol=1e-6)
    assert record.dropped == 0
    assert record.losses == {}


def plan_of_soft(model, tokens):
    plan = model.get_layer("encoder_block_1").mlp.router(tokens)
    return ops.SoftPlan(*(keras.ops.convert_to_numpy(value) for value in plan))


def test_batches_are_joined():
    model = make()
    parts = [images(5, seed=1), images(8, seed=2), images(3, seed=3)]
    singles = [analysis.routing_records(model, part)[LAYER] for part in parts]
    forms = {
        "arrays": parts,
        "dicts": [{"image": part, "label": np.zeros(len(part))} for part in parts],
        "pairs": [(part, np.zeros(len(part))) for part in parts],
        "generator": (part for part in parts),
    }
    for form, batches in forms.items():
        record = analysis.routing_records(model, batches)[LAYER]
        for field in ("expert", "weight", "kept", "slot", "gates"):
            wanted = np.concatenate([getattr(single, field) for single in singles])
            np.testing.assert_array_equal(getattr(record, field), wanted, err_msg=form)
        mean = np.mean([single.losses["importance"] for single in singles])
        assert record.losses["importance"] == pytest.approx(mean)


def test_slots_are_those_of_all_groups():
    batch = images(11)
    model = make()
    capacity = model.get_layer("encoder_block_1").mlp.router.capacity
    record = analysis.routing_records(model, batch)[LAYER]
    assert record.slots == capacity(8 * T) + capacity(3 * T)
    assert np.bincount(record.expert[record.kept]).max() <= record.slots
    joined = analysis.routing_records(model, [batch, batch[:2]])[LAYER]
    assert joined.slots == record.slots + capacity(2 * T)
    wide = analysis.routing_records(keras_vmoe.with_routing(model, capacity_factor=2.0), batch)
    assert wide[LAYER].slots == capacity(8 * T, capacity_factor=2.0) + 3 * T
    model = make(router="expert_choice")
    capacity = model.get_layer("encoder_block_1").mlp.router.capacity
    assert analysis.routing_records(model, batch)[LAYER].slots == 11 * capacity(T)
    soft = make(router="soft", num_slots=2)
    assert analysis.routing_records(soft, batch)[LAYER].slots == 11 * 2


def test_losses_are_means_over_groups():
    model = make()
    batch = images(12)
    whole = analysis.routing_records(model, batch)[LAYER].losses
    groups = [analysis.routing_records(model, part)[LAYER] for part in (batch[:8], batch[8:])]
    wanted = np.mean([group.losses["importance"] for group in groups])
    assert whole["importance"] == pytest.approx(wanted, rel=1e-4)
    joined = analysis.routing_records(model, [batch, batch[:8]])[LAYER].losses
    wanted = (2 * whole["importance"] + groups[0].losses["importance"]) / 3
    assert joined["importance"] == pytest.approx(wanted, rel=1e-4)


def test_a_dataset_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    model, batch = make(), images(11)
    labels = np.zeros(11, "int32")
    dataset = tf.data.Dataset.from_tensor_slices({"image": batch, "label": labels}).batch(4)
    record = analysis.routing_records(model, dataset)[LAYER]
    single = analysis.routing_records(model, batch[8:])[LAYER]
    assert record.expert.shape == (11, T, 2)
    np.testing.assert_array_equal(record.expert[8:], single.expert)
    pairs = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(4)
    np.testing.assert_array_equal(analysis.routing_records(model, pairs)[LAYER].slot, record.slot)


def test_nothing_else_changes():
    model = make()
    model.compile("sgd", "mse")
    batch = images(4)
    before = [keras.ops.convert_to_numpy(value) for value in model.variables]
    metrics = [keras.ops.convert_to_numpy(v) for m in model.metrics for v in m.variables]
    first = analysis.routing_records(model, batch)[LAYER]
    again = analysis.routing_records(model, batch)[LAYER]
    np.testing.assert_array_equal(first.gates, again.gates)
    after = [keras.ops.convert_to_numpy(value) for value in model.variables]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    now = [keras.ops.convert_to_numpy(v) for m in model.metrics for v in m.variables]
    for old, new in zip(metrics, now, strict=True):
        np.testing.assert_array_equal(old, new)


def test_other_routing_and_models_in_models():
    model, batch = make(), images(4)
    changed = keras_vmoe.with_routing(model, num_selected=1, capacity_factor=9.0)
    record = analysis.routing_records(changed, batch)[LAYER]
    assert record.expert.shape == (4, T, 1)
    assert record.dropped == 0
    classifier = models.Classifier(model, list("abc"))
    pixels = np.round(127.5 * (batch + 1)).astype("uint8")
    inside = analysis.routing_records(classifier, pixels)[LAYER]
    outside = analysis.routing_records(model, pixels / np.float32(127.5) - 1)[LAYER]
    np.testing.assert_array_equal(inside.expert, outside.expert)


def test_a_name_that_comes_again_is_numbered():
    model, inputs = make(num_classes=None), keras.Input((16, 16, 3))
    twice = keras.Model(inputs, [model(inputs), model(-inputs)])
    batch = images(2)
    records = analysis.routing_records(twice, batch)
    assert list(records) == [LAYER, f"{LAYER}_2"]
    assert records[f"{LAYER}_2"].layer == f"{LAYER}_2"
    gates = {analysis.routing_records(model, sign * batch)[LAYER].gates.sum() for sign in (1, -1)}
    assert {record.gates.sum() for record in records.values()} == gates


def test_models_of_several_inputs_get_their_batches_as_they_are():
    masked = models.with_image_mask(make())
    batch = {"images": images(3), "mask": np.array([True, True, False])}
    record = analysis.routing_records(masked, batch)[LAYER]
    assert record.kept[:2].any()
    assert not record.kept[2].any()


def test_subclassed_models():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.moe = layers.MoEMLP(layers.TopKRouter(num_experts=E), hidden_dim=6)

        def call(self, x):
            return self.moe(keras.ops.reshape(x, (-1, 16, 48)))

    (record,) = analysis.routing_records(Mine(), images(3)).values()
    assert record.gates.shape == (3, 16, E)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 8, 3), "float32"), r"must have shape \(None, 16, 16, 3\). Received: \(2"),
        (np.zeros((16, 16, 3), "float32"), r"needs a batch axis: images\[None\]"),
        (np.zeros((0, 16, 16, 3), "float32"), "at least one image"),
        ([], "at least one batch"),
        ({"label": np.zeros(3)}, "dicts with 'image'. Received: \\['label'\\]"),
        ([[1.0, 2.0]], "must be an array or a tensor. Received: float"),
        (3, "a batch or an iterable of batches. Received: int"),
    ],
)
def test_images_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        analysis.routing_records(make(), given)


def test_models_that_do_not_fit():
    dense = make(placement="none")
    with pytest.raises(ValueError, match="'tiny' holds none"):
        analysis.routing_records(dense, images(1))
    with pytest.raises(ValueError, match="must be a Keras model"):
        analysis.routing_records("vmoe_s32", images(1))


JAX_RECORDS = """
import sys
import numpy as np
from keras_vmoe import analysis
from tests.analysis import test_records
for router in ("top_k", "expert_choice"):
    model = test_records.make(router=router)
    test_records.fill(model)
    record = analysis.routing_records(model, test_records.images(3))[test_records.LAYER]
    fields = {name: getattr(record, name) for name in ("expert", "weight", "kept", "slot", "gates")}
    np.savez(f"{sys.argv[1]}/{router}.npz", **fields)
"""


def fill(model):
    """The same weights on every backend."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))


@pytest.mark.slow
@pytest.mark.jax
def test_jax_gives_the_same(tmp_path):
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", JAX_RECORDS, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, check=True, env=environment, cwd=root)
    for router in ("top_k", "expert_choice"):
        model = make(router=router)
        fill(model)
        record = analysis.routing_records(model, images(3))[LAYER]
        with np.load(tmp_path / f"{router}.npz") as found:
            for name in found.files:
                np.testing.assert_allclose(found[name], getattr(record, name), atol=1e-5)


# ---------------------------------------------------------------------------------- ensembles


def test_each_member_has_a_record_of_its_own():
    arguments = {"num_members": 2, "num_experts": 6, "placement": "every_2", "num_layers": 2}
    sizes = {"image_size": 16, "patch_size": 4, "width": 8, "mlp_dim": 12, "num_heads": 2}
    keras.utils.set_random_seed(0)
    model = models.EfficientEnsemble(
        **arguments, **sizes, num_classes=3, capacity_factor=0.7, capacity_multiple_of=1
    )
    batch = images(11)
    for subject in (model, models.averaged_prediction(model)):
        records = analysis.routing_records(subject, [batch[:8], batch[8:]])
        assert list(records) == [f"{LAYER}_member_0", f"{LAYER}_member_1"]
        for record in records.values():
            assert record.expert.shape == record.kept.shape == (11, T, 1)
            assert record.gates.shape == (11, T, 3)
            np.testing.assert_allclose(record.gates.sum(-1), 1.0, rtol=1e-5)
            np.testing.assert_array_equal(record.expert[..., 0], record.gates.argmax(-1))
            assert 0 < record.dropped < 1
            assert set(record.losses) == {"importance"}
            # Of 8 and 3 images: 2 * 17 * n tokens for 6 experts.
            assert record.slots == int(np.ceil(8 * 34 * 0.7 / 6)) + int(np.ceil(3 * 34 * 0.7 / 6))
    with layers.record_routing() as calls:
        model(batch[:8])
    whole = np.asarray(calls[0].plan.expert).reshape(8, 2, T, 1)
    for member, record in enumerate(records.values()):
        np.testing.assert_array_equal(record.expert[:8] + 3 * member, whole[:, member])
