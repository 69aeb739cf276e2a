"""Profiles of models of images and texts: against the paper's sizes and against built models."""

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_vmoe import analysis, models
from keras_vmoe.analysis.layer_rows import graph_rows
from keras_vmoe.analysis.routing_costs import Counting


def routers(profile):
    """The parameters of all routers."""
    inside = [part for row in profile.layers for block in row.parts for part in block.parts]
    return sum(part.params for part in inside if part.name == "router")


@pytest.mark.parametrize(
    ("size", "per_token", "total"),
    [
        ("s32", 43.7, 0.304),
        ("s16", 42.6, 0.303),
        ("b32", 113.2, 0.992),
        ("b16", 111.6, 0.990),
        ("l16", 338.2, 3.461),
        ("h14", 675.0, 5.554),
    ],
)
def test_sizes_of_the_paper(size, per_token, total):
    """Published are 675M a token and 5.6B of H/14; the others follow from the same count, which
    holds the table of texts, both projections and one expert, but no router and no scale."""
    profile = analysis.profile(f"limoe_{size}")
    assert profile.params / 1e9 == pytest.approx(total, abs=0.51e-3)
    counted = profile.activated_params - routers(profile) - 1
    assert counted / 1e6 == pytest.approx(per_token, abs=0.051)


@pytest.mark.parametrize(
    ("overrides", "total", "digits"),
    [
        ({"num_experts": 16}, 0.537, 3),
        ({"num_experts": 8, "placement": "every_1"}, 0.508, 3),
    ],
)
def test_other_readings_of_b16(overrides, total, digits):
    profile = analysis.profile("limoe_b16", **overrides)
    assert profile.params / 1e9 == pytest.approx(total, abs=0.51 * 10**-digits)


def test_the_counting_rule():
    p, d, m, depth, blocks, e = 16, 768, 3072, 12, 6, 32
    lengths = {"image": (224 // p) ** 2, "text": 16}

    def macs(names, rows_per_token=1.0):
        t = sum(lengths[name] for name in names)
        attention = sum(4 * n * d**2 + 2 * n**2 * d for n in (lengths[name] for name in names))
        found = depth * (attention + 2 * t * d * m) + len(names) * d * d
        found += blocks * (t * d * e + round((rows_per_token - 1) * t * 2 * d * m))
        return found + (lengths["image"] * 3 * p**2 * d if "image" in names else 0)

    # Evaluation drops nothing: a row of an expert for each token, though there are slots for 32.
    pair = analysis.profile("limoe_b16")
    assert pair.macs == macs(("image", "text"))
    assert analysis.profile("limoe_b16", whole_slots=True).macs == macs(("image", "text"), 32)
    training = analysis.profile("limoe_b16", training=True)
    assert training.macs == pytest.approx(macs(("image", "text"), 1.05), abs=6)
    cut = analysis.profile("limoe_b16", eval_capacity_factor=0.5, num_selected=2)
    assert cut.macs == macs(("image", "text"))
    alone = {name: analysis.profile("limoe_b16", modality=name) for name in lengths}
    for name, profile in alone.items():
        assert profile.macs == macs((name,))
    # A sequence attends to itself alone, so nothing is saved or lost by going side by side.
    assert alone["image"].macs + alone["text"].macs == pair.macs


@st.composite
def limoe_arguments(draw):
    heads, layers = draw(st.sampled_from([1, 2])), draw(st.integers(1, 2))
    blocks = range(layers)
    return {
        "image_size": draw(st.sampled_from([16, (16, 24)])),
        "patch_size": draw(st.sampled_from([8, (4, 8)])),
        "num_layers": layers,
        "width": 8 * heads,
        "mlp_dim": draw(st.integers(1, 20)),
        "num_heads": heads,
        "vocabulary_size": draw(st.integers(2, 30)),
        "text_length": draw(st.integers(1, 5)),
        "projection_dim": draw(st.sampled_from([None, 5])),
        "placement": tuple(draw(st.sets(st.sampled_from(blocks)))) or "none",
        "num_experts": draw(st.integers(2, 5)),
        "num_selected": draw(st.integers(1, 2)),
        "capacity_factor": draw(st.sampled_from([0.3, 1.05, 9.0])),
        "eval_capacity_factor": draw(st.sampled_from([None, 0.7])),
        "pairs_per_group": draw(st.sampled_from([1, 3])),
        "loss": draw(st.sampled_from(["softmax", "sigmoid"])),
        "channels": draw(st.sampled_from([1, 3])),
        "position_embedding": draw(st.sampled_from(["learned", "sincos2d"])),
        "qk_norm": draw(st.booleans()),
        "dropout_rate": draw(st.sampled_from([0.0, 0.1])),
    }


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(limoe_arguments(), st.builds(Counting, st.booleans(), st.booleans(), st.none()))
def test_any_limoe_counts_as_it_is_built(arguments, counting):
    model = models.LIMoE(**arguments)
    counted = {"training": counting.training, "whole_slots": counting.whole_slots}
    profile = analysis.profile(models.LIMoE, **counted, **arguments)
    assert profile.params == model.count_params()
    assert analysis.profile(model, **counted).layers == profile.layers
    for name, built in (
        (None, model),
        ("image", model.image_encoder),
        ("text", model.text_encoder),
    ):
        alone = analysis.profile(models.LIMoE, modality=name, **counted, **arguments)
        assert alone.params == built.count_params()
        # The graph is in an order of its own.
        rows = {row.name: row for row in graph_rows(built, counting)}
        assert {row.name: row for row in alone.layers} == rows
        assert alone.unit == (name or "pair")


def test_what_is_counted_is_said():
    assert "FLOPs per pair (2 per MAC), " in str(analysis.profile("limoe_s32"))
    assert "FLOPs per text" in str(analysis.profile("limoe_s32", modality="text"))
    assert "FLOPs per image" in str(analysis.profile("vmoe_s32"))
    assert analysis.profile("limoe_s32").to_dict(0)["unit"] == "pair"
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 1, "width": 8, "mlp_dim": 8}
    model = models.LIMoE(**sizes, num_heads=2, vocabulary_size=9, text_length=3, placement="none")
    for built, unit in (
        (keras.Model(model.inputs, model.outputs), "pair"),
        (model.image_encoder, "image"),
        (model.text_encoder, "text"),
    ):
        assert analysis.profile(built).unit == unit
    with pytest.raises(ValueError, match="Received: modality='text' for a"):
        analysis.profile(model.text_encoder, modality="text")


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("vmoe_s32", {"modality": "text"}, "modality is of models of images and texts"),
        ("limoe_s32", {"modality": "sound"}, "modality must be one of"),
        ("limoe_s32", {"loss": "hinge"}, "loss must be one of"),
        ("limoe_s32", {"num_selected": 0}, "num_selected must be an integer"),
        ("limoe_s32", {"text_length": 0}, "text_length must be an integer"),
        ("limoe_s32", {"pairs_per_group": 0}, "pairs_per_group must be an integer"),
        ("limoe_s32", {"num_layers": 0}, "num_layers must be an integer"),
    ],
)
def test_what_a_model_would_refuse_is_refused(model, overrides, message):
    with pytest.raises(ValueError, match=message):
        analysis.profile(model, **overrides)
