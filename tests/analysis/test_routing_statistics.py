"""The sums over a dataset's routing, against loops over the records."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, models
from keras_vmoe.analysis.routing_statistics import GATE_BINS
from tests.models import tiny

CLASSES, E, T = 4, 5, 6
ROUTERS = ("top_k", "expert_choice", "soft")


def record(router="top_k", images=7, seed=0, layer="moe", experts=E, k=2):
    """A random record; every kind of router has all kinds of tokens in it."""
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.full(experts, 0.5), (images, T))
    if router == "top_k":
        expert = np.argsort(-gates, axis=-1)[..., :k]
        weight = np.take_along_axis(gates, expert, -1)
        kept = rng.random(expert.shape) < 0.7
    else:
        expert = np.broadcast_to(np.arange(experts), gates.shape)
        kept = rng.random(gates.shape) < 0.3 if router == "expert_choice" else np.ones(gates.shape)
        kept = kept.astype(bool)
        weight = np.where(kept, gates, 0.0)
    return analysis.RoutingRecord(
        layer=layer,
        router=router,
        expert=expert,
        weight=weight,
        kept=kept,
        slot=np.zeros_like(expert),
        gates=gates,
        slots=3 * images,
    )


def labels(images=7, seed=0):
    # The last class has no image.
    return np.random.default_rng(seed + 100).integers(0, CLASSES - 1, images)


def loop_oracle(batches):
    """The same sums, one choice of one token of one image after the other."""
    sums = {
        "images_per_class": np.zeros(CLASSES, int),
        "class_weight": np.zeros((CLASSES, E)),
        "class_count": np.zeros((CLASSES, E), int),
        "position_weight": np.zeros((T, E)),
        "position_count": np.zeros((T, E), int),
        "chosen": np.zeros(batches[0][0].expert.shape[-1], int),
        "taken": np.zeros(batches[0][0].expert.shape[-1], int),
        "taken_tokens": 0,
        "slots": 0,
        "gate_histogram": np.zeros((2, GATE_BINS), int),
        "gate_sum": np.zeros(2),
        "experts_per_image": np.zeros(E + 1, int),
    }
    for found, classes in batches:
        sums["slots"] += found.slots
        for image, label in enumerate(classes):
            sums["images_per_class"][label] += 1
            used = set()
            for token in range(T):
                any_taken = False
                for rank, e in enumerate(found.expert[image, token]):
                    sums["chosen"][rank] += 1
                    if not found.kept[image, token, rank]:
                        continue
                    weight, any_taken = found.weight[image, token, rank], True
                    used.add(int(e))
                    sums["taken"][rank] += 1
                    for name, row in (("class", label), ("position", token)):
                        sums[f"{name}_weight"][row, e] += weight
                        sums[f"{name}_count"][row, e] += 1
                sums["taken_tokens"] += any_taken
                first, second = sorted(found.gates[image, token], reverse=True)[:2]
                for rank, gate in enumerate((first, second)):
                    sums["gate_histogram"][rank, min(int(gate * GATE_BINS), GATE_BINS - 1)] += 1
                    sums["gate_sum"][rank] += gate
            sums["experts_per_image"][len(used)] += 1
    return sums


def assert_equal(statistics, sums):
    for name, wanted in sums.items():
        found = getattr(statistics, name)
        if np.issubdtype(np.asarray(wanted).dtype, np.floating):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(found, wanted, err_msg=name)


def collected(batches, name="moe"):
    statistics = analysis.RoutingStatistics(CLASSES)
    for found, classes in batches:
        statistics.update({name: found}, classes)
    return statistics


@pytest.mark.parametrize("router", ROUTERS)
def test_sums_over_batches_are_those_of_loops(router):
    batches = [(record(router, n, seed=n), labels(n, seed=n)) for n in (7, 7, 3)]
    layer = collected(batches).layers["moe"]
    assert (layer.layer, layer.router, layer.num_experts) == ("moe", router, E)
    assert (layer.num_images, layer.tokens_per_image, layer.num_tokens) == (17, T, 17 * T)
    assert_equal(layer, loop_oracle(batches))


@pytest.mark.parametrize("router", ROUTERS)
def test_merging_is_adding(router):
    batches = [(record(router, n, seed=n), labels(n, seed=n)) for n in (7, 5, 3, 2)]
    first, second = collected(batches[:1]), collected(batches[1:])
    first.merge(second)
    assert_equal(first.layers["moe"], loop_oracle(batches))
    empty = analysis.RoutingStatistics(CLASSES)
    empty.merge(second)
    second.merge(analysis.RoutingStatistics(CLASSES))
    assert_equal(empty.layers["moe"], loop_oracle(batches[1:]))
    assert_equal(second.layers["moe"], loop_oracle(batches[1:]))


def test_means_by_class_and_position():
    found, classes = record(), labels()
    layer = collected([(found, classes)]).layers["moe"]
    for value in ("weight", "frequency"):
        amount = np.where(found.kept, found.weight if value == "weight" else 1.0, 0.0)
        spread = (amount[..., None] * (found.expert[..., None] == np.arange(E))).sum(2)
        for label in range(CLASSES - 1):
            wanted = spread[classes == label].mean((0, 1))
            np.testing.assert_allclose(layer.by_class(value)[label], wanted)
        assert np.isnan(layer.by_class(value)[CLASSES - 1]).all()
        np.testing.assert_allclose(layer.by_position(value), spread.mean(0))
    with pytest.raises(ValueError, match="value must be one of 'weight', 'frequency'"):
        layer.by_class("sum")


def test_shares_are_those_of_the_record():
    found = record(k=2)
    layer = collected([(found, labels())]).layers["moe"]
    assert layer.dropped_choices == pytest.approx(found.dropped)
    assert layer.dropped_tokens == pytest.approx(1 - found.kept.any(-1).mean())
    np.testing.assert_allclose(layer.buffer_use, found.kept.sum() * found.expert_shares / 21)
    top = np.sort(found.gates, -1)[..., ::-1]
    np.testing.assert_allclose(layer.mean_gates, top[..., :2].mean((0, 1)))
    chosen = record("expert_choice")
    layer = collected([(chosen, labels())]).layers["moe"]
    assert layer.dropped_choices == pytest.approx(chosen.dropped)
    soft = collected([(record("soft"), labels())]).layers["moe"]
    assert soft.dropped_choices == soft.dropped_tokens == 0
    assert np.isnan(soft.buffer_use).all()
    assert soft.experts_per_image.tolist() == [0] * E + [7]


def test_memory_does_not_grow_with_the_images():
    def size(count):
        layer = collected([(record(images=count), labels(count))]).layers["moe"]
        return sum(np.asarray(value).nbytes for value in dataclasses.asdict(layer).values())

    assert size(3) == size(300)


def test_a_single_expert_has_one_gate():
    found = record(experts=1, k=1)
    layer = collected([(found, labels())]).layers["moe"]
    assert layer.gate_histogram.shape == (1, GATE_BINS)
    assert layer.gate_histogram[0, -1] == 7 * T


@pytest.mark.parametrize(
    ("records", "given", "message"),
    [
        ({"moe": record()}, labels(6), "'moe' is of 7 images. Received: 6 labels"),
        ({"moe": record()}, np.full(7, CLASSES), "from 0 to 3.*Received: \\[4, 4"),
        ({"moe": record()}, np.zeros((7, 4)), "float64 of shape \\(7, 4\\)"),
        (
            {"other": record()},
            labels(),
            "of the layers of the batches before, moe. Received: other",
        ),
        ({"moe": record(k=1)}, labels(), "chosen of layer 'moe' .* has shape \\(2,\\)"),
        ({"moe": record("soft")}, labels(), "Received: layer 'moe' \\(soft\\)"),
    ],
)
def test_what_does_not_fit_is_refused(records, given, message):
    statistics = collected([(record(), labels())])
    before = loop_oracle([(record(), labels())])
    with pytest.raises(ValueError, match=message):
        statistics.update(records, given)
    assert_equal(statistics.layers["moe"], before)
    other = analysis.RoutingStatistics(CLASSES + 1)
    other.update({"moe": record()}, labels())
    with pytest.raises(ValueError, match="of 4 classes. Received: 5"):
        statistics.merge(other)


@pytest.fixture(scope="module")
def model():
    return tiny.vmoe()


def test_one_pass_over_a_dataset(model):
    batches = [{"image": tiny.images(n, seed=n), "label": np.arange(n) % 3} for n in (6, 6, 4)]
    seen = []
    statistics = analysis.collect_statistics(model, iter(batches), 3, on_batch=seen.append)
    assert seen == [6, 6, 4]
    assert list(statistics.layers) == [layer.name for layer in models.moe_layers(model)]
    for name, layer in statistics.layers.items():
        records = [analysis.routing_records(model, batch["image"])[name] for batch in batches]
        assert layer.num_images == 16
        assert layer.slots == sum(found.slots for found in records)
        np.testing.assert_array_equal(
            layer.position_count.sum(0),
            sum(np.bincount(r.expert[r.kept], minlength=4) for r in records),
        )
        assert 0 < layer.dropped_choices < 1
        assert (layer.buffer_use <= 1).all()
        assert layer.buffer_use.max() > 0.9


def test_tensors_are_taken_and_nothing_is_refused(model):
    batch = {"image": tiny.images(3), "label": keras.ops.convert_to_tensor([0, 1, 2])}
    assert analysis.collect_statistics(model, [batch], 3).layers
    padded = {
        "image": tiny.images(5),
        "label": np.array([0, 1, 2, 0, 0]),
        "mask": np.array([True, True, True, False, False]),
    }
    real = {name: values[:3] for name, values in padded.items() if name != "mask"}
    found = analysis.collect_statistics(model, [padded], 3).layers["encoder_block_0_moe"]
    wanted = analysis.collect_statistics(model, [real], 3).layers["encoder_block_0_moe"]
    assert found.num_images == 3
    np.testing.assert_array_equal(found.class_weight, wanted.class_weight)
    with pytest.raises(ValueError, match="at least one batch. Received: none"):
        analysis.collect_statistics(model, [], 3)
