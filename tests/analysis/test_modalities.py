"""Records of models of images and texts, and what their modalities do."""

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, layers, models, ops

E, P, L, EOS = 3, 4, 5, 1
LAYER = "encoder_block_1_moe"


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return models.LIMoE(
        image_size=16,
        patch_size=8,
        num_layers=2,
        width=8,
        mlp_dim=12,
        num_heads=2,
        vocabulary_size=9,
        text_length=L,
        num_experts=E,
        capacity_factor=1.0,
        eval_capacity_factor=0.8,
        capacity_multiple_of=1,
        pairs_per_group=4,
    )


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 9, (count, L))
    for text, length in zip(tokens, rng.integers(1, L + 2, count), strict=True):
        text[length - 1 :] = EOS  # some have no end
    images = rng.uniform(-1, 1, (count, 16, 16, 3)).astype("float32")
    return {"images": images, "tokens": tokens}


def rows(batch, start, stop):
    return {name: values[start:stop] for name, values in batch.items()}


def test_a_record_tells_which_tokens_are_text_and_which_count(model):
    batch = pairs(6)
    (record,) = analysis.routing_records(model, batch).values()
    assert record.layer == LAYER
    assert record.modalities == ("image", "text")
    np.testing.assert_array_equal(record.modality, [[0] * P + [1] * L] * 6)
    np.testing.assert_array_equal(record.mask[:, :P], True)
    for mask, text in zip(record.mask[:, P:], batch["tokens"], strict=True):
        ends = np.flatnonzero(text == EOS)
        last = ends[0] if len(ends) else L - 1
        assert mask.tolist() == [place <= last for place in range(L)]
    assert not record.mask.all()
    assert not record.kept[~record.mask].any()
    # Padding is not dropped; it was never there.
    assert record.dropped == pytest.approx(1 - record.kept.sum() / record.mask.sum())
    assert 0 < record.dropped < 0.5


def test_batches_are_joined_whatever_else_they_hold(model):
    batch = pairs(7)
    parts = [rows(batch, 0, 4), rows(batch, 4, 7)]
    singles = [analysis.routing_records(model, part)[LAYER] for part in parts]
    given = [{**part, "captions": ["a"]} for part in parts]
    joined = analysis.routing_records(model, (part for part in given))[LAYER]
    assert len(joined.expert) == 7
    for field in ("expert", "kept", "gates", "mask", "modality"):
        wanted = np.concatenate([getattr(single, field) for single in singles])
        np.testing.assert_array_equal(getattr(joined, field), wanted)
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(4)
    again = analysis.routing_records(model, dataset)[LAYER]
    np.testing.assert_array_equal(again.expert, joined.expert)


def test_the_statistics_are_those_of_loops(model):
    record = analysis.routing_records(model, pairs(8))[LAYER]
    counts, kept, tokens = np.zeros((E, 2), int), np.zeros(2), np.zeros(2)
    gates = np.zeros((2, E))
    for b, t in np.argwhere(record.mask):
        m = int(t >= P)
        tokens[m] += 1
        kept[m] += record.kept[b, t, 0]
        counts[record.expert[b, t, 0], m] += record.kept[b, t, 0]
        gates[m] += record.gates[b, t]
    gates /= tokens[:, None]
    np.testing.assert_array_equal(analysis.modality_counts(record), counts)
    np.testing.assert_allclose(analysis.success_rates(record), kept / tokens)
    wanted = np.exp(-(gates * np.log(gates)).sum(-1))
    np.testing.assert_allclose(analysis.effective_experts(record), wanted, rtol=1e-6)
    shares = analysis.modality_shares(record)
    np.testing.assert_allclose(shares, counts / counts.sum(1, keepdims=True))


def test_the_layer_measures_the_same(model):
    batch = pairs(8, seed=1)
    record = analysis.routing_records(model, batch)[LAYER]
    with layers.record_routing() as calls:
        model(batch)
    call = calls[0]
    found = ops.modality_statistics(call.plan, call.modality, call.modalities, call.mask)
    rates, effective = analysis.success_rates(record), analysis.effective_experts(record)
    for m, name in enumerate(record.modalities):
        assert float(found[f"{name}_success_rate"]) == pytest.approx(rates[m], rel=1e-5)
        assert float(found[f"{name}_effective_experts"]) == pytest.approx(effective[m], rel=1e-5)


def test_one_modality_of_a_record(model):
    record = analysis.routing_records(model, pairs(6))[LAYER]
    for name, own in (("image", slice(0, P)), ("text", slice(P, None))):
        alone = record.of_modality(name)
        assert alone.modalities == (name,)
        for field in ("expert", "weight", "kept", "slot", "gates", "mask"):
            wanted = getattr(record, field)[:, own]
            np.testing.assert_array_equal(getattr(alone, field), wanted)
        m = record.modalities.index(name)
        counts = analysis.modality_counts(record)[:, [m]]
        np.testing.assert_array_equal(analysis.modality_counts(alone), counts)
        assert alone.dropped == pytest.approx(1 - analysis.success_rates(record)[m])
    with pytest.raises(ValueError, match="modalities of the record: image. Received: 'text'"):
        record.of_modality("image").of_modality("text")


def test_one_modality_alone(model):
    batch = pairs(3)
    texts = analysis.routing_records(model.text_encoder, batch["tokens"])[LAYER]
    assert texts.modalities == ("image", "text")
    for name, encoder in (("text", model.text_encoder), ("image", model.image_encoder)):
        record = analysis.routing_records(encoder, batch)[LAYER]
        assert len(record.of_modality(name).expert) == 3
    assert texts.of_modality("text").expert.shape == (3, L, 1)
    assert not analysis.modality_counts(texts)[:, 0].any()
    assert np.isnan(analysis.success_rates(texts)[0])
    assert np.isnan(analysis.effective_experts(texts)[0])
    with pytest.raises(ValueError, match="modalities of the record: text. Received: 'image'"):
        texts.of_modality("image")


def by_hand(**overrides):
    """Two choices for two tokens of an image and one of a text; the last expert is idle."""
    expert = np.array([[[0, 1], [1, 0], [1, 0]]])
    fields = {
        "layer": "moe",
        "router": "top_k",
        "expert": expert,
        "weight": np.full((1, 3, 2), 0.5),
        "kept": np.array([[[True, True], [True, False], [False, False]]]),
        "slot": np.zeros((1, 3, 2), int),
        "gates": np.array([[[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0]]]),
        "modality": np.array([[0, 0, 1]]),
        "modalities": ("image", "text"),
    }
    return analysis.RoutingRecord(**{**fields, **overrides})


def test_numbers_by_hand():
    record = by_hand()
    assert analysis.modality_counts(record).tolist() == [[1, 0], [2, 0], [0, 0]]
    assert analysis.success_rates(record).tolist() == [0.75, 0.0]
    np.testing.assert_allclose(analysis.effective_experts(record), [2, 2])
    shares = analysis.modality_shares(record)
    assert shares[:2].tolist() == [[1, 0], [1, 0]]
    assert np.isnan(shares[2]).all()
    masked = by_hand(mask=np.array([[True, False, True]]))
    assert analysis.success_rates(masked).tolist() == [1.0, 0.0]
    assert masked.dropped == 0.5
    assert by_hand(mask=np.zeros((1, 3), bool)).dropped == 0


@pytest.mark.parametrize(
    "function",
    [
        analysis.modality_counts,
        analysis.modality_shares,
        analysis.success_rates,
        analysis.effective_experts,
    ],
)
def test_records_of_one_modality_are_refused(function):
    record = by_hand(modality=None, modalities=())
    with pytest.raises(ValueError, match="tells modalities apart.*layer 'moe'"):
        function(record)
    with pytest.raises(ValueError, match="of the record: none. Received: 'image'"):
        record.of_modality("image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, r"dicts with 'images', 'tokens'. Received: \['images'\]"),
        ({"tokens": np.ones((2, L), int)}, r"Received: \{'images': 3, 'tokens': 2\}"),
        ({"tokens": np.ones((0, L), int), "images": np.zeros((0, 16, 16, 3))}, "at least one"),
    ],
)
def test_pairs_that_are_none(model, change, message):
    batch = {name: v for name, v in {**pairs(3), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        analysis.routing_records(model, batch)
