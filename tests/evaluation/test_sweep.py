"""Sweeps against models that were routed one by one."""

import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import analysis, evaluation, models
from tests.models import tiny

LABELS = np.array([0, 1, 2] * 4)
IMAGES = tiny.images(12)
BATCHES = [
    {"image": IMAGES[:6], "label": LABELS[:6]},
    {"image": IMAGES[6:], "label": LABELS[6:]},
]


ONE_LAYER = {"num_layers": 1, "placement": (0,), "capacity_factor": 1.0}


@pytest.fixture(scope="module")
def model():
    # Groups of 3 images of 5 tokens; multiples of 4 are far from C.
    return tiny.vmoe(**ONE_LAYER, capacity_multiple_of=4)


@pytest.fixture
def eagerly():
    """Spares compiling where nothing depends on it."""
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def dense():
    return tiny.vit(num_layers=1)


@pytest.fixture(scope="module")
def rows(model, dense):
    settings = evaluation.routing_settings(model, (2,), (0.3, 4.0))
    settings.append(evaluation.RoutingSetting(1, 0.3, "bpr"))
    calls = []
    rows = evaluation.routing_sweep(
        model,
        BATCHES,
        settings,
        dense=dense,
        other_macs=1000.0,
        dense_macs=5000.0,
        timing_rounds=2,
        on_call=lambda: calls.append(1),
    )
    assert len(calls) == evaluation.sweep_calls(2, 6, timing_rounds=2)
    return rows


def one_by_one(model, row):
    """The same routing with routers that round to whole slots from the start."""
    exact = tiny.vmoe(
        **{**ONE_LAYER, "capacity_factor": row.capacity_factor},
        capacity_multiple_of=1,
        num_selected=row.num_selected,
        batch_priority=row.priority == "bpr",
    )
    exact.set_weights(model.get_weights())
    return exact


def test_every_row_is_that_model(model, rows):
    assert [row[:3] for row in rows[:-1]] == [
        (2, 0.3, "vanilla"),
        (2, 4.0, "vanilla"),
        (2, 0.3, "bpr"),
        (2, 4.0, "bpr"),
        (1, 0.3, "bpr"),
    ]
    for row in rows[:-1]:
        routed = one_by_one(model, row)
        logits = np.concatenate([np.asarray(routed(part["image"])) for part in BATCHES])
        assert row.accuracy == (logits.argmax(-1) == LABELS).mean()
        records = analysis.routing_records(routed, [part["image"] for part in BATCHES])
        kept = sum(record.kept.sum() for record in records.values())
        assert row.kept == pytest.approx(kept / (12 * 5 * row.num_selected))
        assert row.macs == pytest.approx(1000 + kept * 2 * 8 * 8 / 12)
        assert row.images == 12
        assert row.milliseconds > 0
        wanted = {name: 1 - record.dropped for name, record in records.items()}
        assert row.kept_by_layer == pytest.approx(wanted)


def test_slots_are_those_of_the_profile(model, rows):
    for row in rows[:-1]:
        exact = one_by_one(model, row)
        profile = analysis.profile(exact, whole_slots=True)
        assert row.slot_macs - 1000 == pytest.approx(expert_macs(profile), abs=1)
        assert row.slot_macs >= row.macs
        slots = min(-(-15 * row.num_selected * row.capacity_factor // 4), 15)
        assert row.capacity == pytest.approx(slots * 4 / (15 * row.num_selected))


def expert_macs(profile):
    parts = [part for block in profile.layers for row in block.parts for part in row.parts]
    return sum(part.macs for part in parts if part.name == "experts")


def test_times_are_medians_of_rounds_in_turns(model, monkeypatch):
    turns = []

    def seconds(self, batch):
        turns.append(id(self))
        # The round that compiles is slow.
        return 5.0 if len(turns) <= 3 else 0.1 * len(turns)

    monkeypatch.setattr(evaluation.passes.Evaluator, "seconds", seconds)
    settings = evaluation.routing_settings(model, (2,), (0.3, 1.0, 4.0), ["bpr"])
    rows = evaluation.routing_sweep(model, BATCHES[:1], settings, timing_rounds=3)
    first = turns[:3]
    assert len(set(first)) == 3
    assert [turns[i : i + 3] for i in (3, 6, 9)] == [first[n:] + first[:n] for n in (1, 2, 0)]
    images = len(BATCHES[0]["label"])
    # The first comes 6th, 8th and 10th, and so on.
    expected = [1e3 * 0.1 * place / images for place in (8, 9, 7)]
    assert [row.milliseconds for row in rows] == pytest.approx(expected)


def test_times_are_those_of_logits_alone(model):
    evaluator = evaluation.passes.Evaluator(model, exact_capacity=True)
    assert evaluator.seconds(BATCHES[0]) > 0
    plain = evaluator._plain.predict_on_batch(BATCHES[0]["image"])
    assert plain.shape == (len(BATCHES[0]["label"]), model.output_shape[-1])
    with pytest.raises(ValueError, match="at least one image"):
        evaluator.result()


def test_ample_capacity_keeps_all_whatever_the_order(rows):
    ample = [row for row in rows if row.capacity_factor == 4.0]
    assert [row.kept for row in ample] == [1.0] * 2
    assert ample[0][4:8] == pytest.approx(ample[1][4:8])


def test_vanilla_and_bpr_differ_where_tokens_are_dropped(rows):
    by_setting = {row[:3]: row for row in rows}
    assert by_setting[2, 0.3, "vanilla"].loss != by_setting[2, 0.3, "bpr"].loss
    assert by_setting[2, 0.3, "bpr"].kept < 0.5


def test_the_dense_row(dense, rows):
    row = rows[-1]
    logits = np.asarray(dense(IMAGES))
    assert (row.priority, row.num_selected, row.kept, row.capacity) == ("dense", None, None, None)
    assert row.accuracy == (logits.argmax(-1) == LABELS).mean()
    assert row.macs == row.slot_macs == 5000


def test_rounding_of_the_routers_if_it_is_wanted(model, eagerly):
    settings = evaluation.routing_settings(model, (1,), (0.3,), ("bpr",))
    row = evaluation.routing_sweep(model, BATCHES, settings, exact_capacity=False, timing_rounds=0)[
        0
    ]
    assert row.capacity == pytest.approx(4 * 4 / 15)
    assert row.milliseconds is None


def test_the_model_is_left_as_it_was(model):
    before = model.predict(IMAGES, batch_size=6, verbose=0)
    settings = evaluation.routing_settings(model, (1,), (0.2,), ("bpr",))
    evaluation.routing_sweep(model, BATCHES[:1], settings, timing_rounds=0)
    np.testing.assert_array_equal(model.predict(IMAGES, batch_size=6, verbose=0), before)
    routers = [layer.router for layer in models.moe_layers(model)]
    assert {router.capacity_multiple_of for router in routers} == {4}


def test_expert_choice_has_capacity_alone(eagerly):
    model = tiny.vmoe(router="expert_choice", num_layers=1, placement=(0,))
    settings = evaluation.routing_settings(model, capacity_factors=(0.5, 2.0))
    assert settings == [(None, 0.5, None), (None, 2.0, None)]
    rows = evaluation.routing_sweep(model, BATCHES, settings, timing_rounds=0)
    assert rows[0].kept < rows[1].kept
    records = analysis.routing_records(
        keras_vmoe.with_routing(model, capacity_factor=0.5), [part["image"] for part in BATCHES]
    )
    wanted = np.mean([1 - record.dropped for record in records.values()])
    assert rows[0].kept == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match="num_selected cannot be changed"):
        evaluation.routing_settings(model, num_selected=(1,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_selected": ()}, "num_selected must hold at least one"),
        ({"num_selected": (5,)}, "num_selected must be at most num_experts=4. Received: .*=5"),
        ({"num_selected": (0,)}, "num_selected must be"),
        ({"capacity_factors": ()}, "capacity_factors must hold at least one"),
        ({"capacity_factors": (0.0,)}, "capacity_factor must be above 0"),
        ({"capacity_factors": (1.0, 1.0)}, "capacity_factors must hold different"),
        ({"priorities": ()}, "priorities must hold at least one"),
        ({"priorities": ("BPR",)}, "priorities must be of 'vanilla', 'bpr'. Received: 'BPR'"),
    ],
)
def test_wrong_settings(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.routing_settings(model, **arguments)


def test_models_that_cannot_be_swept(model, dense):
    with pytest.raises(ValueError, match="a dense model has no routing to sweep. 'vit' holds none"):
        evaluation.routing_settings(dense)
    with pytest.raises(ValueError, match="soft routing has no capacity"):
        evaluation.routing_settings(tiny.vmoe(router="soft"))
    settings = evaluation.routing_settings(model)
    with pytest.raises(ValueError, match="a dense model has no routing"):
        evaluation.routing_sweep(dense, BATCHES, settings)
    with pytest.raises(ValueError, match="dense must be a model without MoE layers"):
        evaluation.routing_sweep(model, BATCHES, settings, dense=model)
    with pytest.raises(ValueError, match="dense must have the input_shape"):
        evaluation.routing_sweep(model, BATCHES, settings, dense=tiny.vit(image_size=32))
    with pytest.raises(ValueError, match="settings must hold at least one"):
        evaluation.routing_sweep(model, BATCHES, [])
    with pytest.raises(ValueError, match="at least one image"):
        evaluation.routing_sweep(model, [], settings[:1])
