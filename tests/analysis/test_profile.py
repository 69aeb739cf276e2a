"""Profiles in closed form: against the published numbers and against built models."""

import json

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_vmoe import analysis, layers, models
from keras_vmoe.analysis.layer_rows import graph_rows
from keras_vmoe.analysis.routing_costs import Counting

# What the paper's counts rest on: 18,291 classes of JFT-300M and pre-logits of the model's width.
JFT = 18291
WIDTHS = {"s32": 512, "b32": 768, "b16": 768, "l32": 1024, "l16": 1024, "h14": 1280}


def sparse(size, **overrides):
    arguments = {"num_classes": JFT, "representation_size": WIDTHS[size], **overrides}
    return analysis.profile(f"vmoe_{size}", **arguments)


def dense(size):
    return sparse(size, placement="none")


@pytest.mark.parametrize(
    ("found", "params"),
    [
        (lambda: dense("s32"), 36_465_523),
        (lambda: sparse("s32"), 296_895_347),
        (lambda: dense("b16"), 100_455_027),
        (lambda: sparse("b16"), 978_974_835),
        (lambda: dense("l16"), 323_099_507),
        (lambda: sparse("l16"), 3_445_959_539),
        (lambda: dense("h14"), 655_835_251),
        (lambda: sparse("h14", placement="last_5"), 2_688_648_051),
        (lambda: sparse("h14"), 7_160_836_211),
        (lambda: analysis.profile("vmoe_15b", num_classes=29593), 14_705_071_769),
        (lambda: sparse("s32", num_classes=1000, placement="last_2", num_experts=8), 56_999_400),
        (
            lambda: analysis.profile("vmoe_s32", image_size=384, placement="last_2", num_experts=8),
            56_785_384,
        ),
        (lambda: analysis.profile("vmoe_b16", num_classes=21843, num_experts=8), 300_974_931),
        (lambda: analysis.profile("vmoe_b16", image_size=384, num_experts=8), 285_238_504),
    ],
)
def test_published_parameters(found, params):
    assert found().params == params


@pytest.mark.parametrize(
    ("size", "placement", "millions"),
    [
        ("s32", "last_2", 166.680),
        ("s32", "last_3", 231.8),
        ("b32", "none", 102.112),
        ("b32", "every_2", 980.631),
        ("b32", "last_2", 394.952),
        ("b32", "last_3", 541.4),
        ("b32", "last_5", 834.211),
        ("b16", "last_2", 393.295),
        ("b16", "last_3", 539.7),
        ("b16", "last_5", 832.555),
        ("l32", "none", 325.308),
        ("l32", "every_2", 3448.168),
        ("l32", "last_2", 845.785),
        ("l32", "last_5", 1626.500),
        ("l16", "last_2", 843.576),
        ("l16", "last_3", 1103.8),
        ("l16", "last_5", 1624.291),
        ("h14", "last_2", 1468.960),
        ("h14", "last_3", 1875.5),
    ],
)
def test_published_millions(size, placement, millions):
    digits = len(str(millions).split(".")[1])
    assert sparse(size, placement=placement).params / 1e6 == pytest.approx(
        millions, abs=0.51 * 10**-digits
    )


@pytest.mark.parametrize(
    ("size", "overrides", "giga", "percent"),
    [
        ("h14", {"placement": "none"}, 167.32, 100.0),
        ("h14", {"placement": "last_5"}, 185.9, 111.1),
        ("h14", {}, 226.8, 135.5),
        ("h14", {"placement": "last_5", "num_selected": 1}, 168.2, 100.5),
        ("h14", {"placement": "last_5", "capacity_factor": 0.5}, 167.4, 100.0),
        ("h14", {"placement": "last_5", "capacity_factor": 0.6}, 170.7, 102.0),
        ("l16", {"placement": "last_2"}, 65.2, 39.0),
        ("l16", {}, 83.5, 49.9),
    ],
)
def test_published_macs(size, overrides, giga, percent):
    macs = sparse(size, **overrides).macs
    digits = len(str(giga).split(".")[1])
    assert macs / 1e9 == pytest.approx(giga, abs=0.5 * 10**-digits)
    assert 100 * macs / dense("h14").macs == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(
    ("size", "giga"),
    [
        ("s32", (1.365, 1.830, 1.598)),
        ("b32", (4.423, 5.988, 4.945)),
        ("b16", (17.58, 23.74, 19.63)),
        ("l32", (15.40, 20.95, 16.32)),
    ],
)
def test_published_macs_of_dense_every_2_and_last_2(size, giga):
    for placement, wanted in zip(("none", "every_2", "last_2"), giga, strict=True):
        macs = sparse(size, placement=placement).macs / 1e9
        assert macs == pytest.approx(wanted, rel=5e-4)


def test_the_counting_rule():
    p, d, m, depth, e, k, c, classes = 16, 768, 3072, 12, 32, 2, 1.05, 1000
    patches = (224 // p) ** 2
    t = patches + 1
    macs = patches * 3 * p**2 * d + depth * (4 * t * d**2 + 2 * t**2 * d + 2 * t * d * m)
    macs += 6 * (t * (k * c - 1) * 2 * d * m + t * d * e) + d * classes
    assert analysis.profile("vmoe_b16").macs == pytest.approx(macs, abs=6)


def forbid(monkeypatch):
    """Makes everything that would allocate weights or arrays fail."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was allocated")

    for owner, name in (
        (keras.layers.Layer, "add_weight"),
        (keras.layers.Layer, "__init__"),
        (keras.Variable, "__init__"),
        (keras.random.SeedGenerator, "__init__"),
        (keras.ops, "convert_to_tensor"),
    ):
        monkeypatch.setattr(owner, name, refuse)


def test_nothing_is_allocated(monkeypatch):
    forbid(monkeypatch)
    for name in models.list_variants():
        profile = analysis.profile(name)
        assert profile.activated_params <= profile.params
    with pytest.raises(AssertionError, match="allocated"):
        layers.TopKRouter()


ROUTERS = ("top_k", "expert_choice", "soft")


@st.composite
def vit_arguments(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    patch = draw(st.sampled_from([4, 8, (4, 8)]))
    return {
        "image_size": draw(st.sampled_from([16, 20, (16, 24)])),
        "patch_size": patch,
        "num_layers": draw(st.integers(1, 3)),
        "width": 8 * heads,
        "mlp_dim": draw(st.integers(1, 20)),
        "num_heads": heads,
        "num_classes": draw(st.sampled_from([None, 1, 10])),
        "channels": draw(st.sampled_from([1, 3])),
        "pooling": draw(st.sampled_from(["token", "gap", "map", "first"])),
        "representation_size": draw(st.sampled_from([None, 5])),
        "position_embedding": draw(st.sampled_from(["learned", "sincos2d", "none"])),
        "qk_norm": draw(st.booleans()),
        "dropout_rate": draw(st.sampled_from([0.0, 0.1])),
        "stochastic_depth_rate": draw(st.sampled_from([0.0, 0.1])),
    }


@st.composite
def vmoe_arguments(draw):
    arguments = draw(vit_arguments())
    router = draw(st.sampled_from(ROUTERS))
    blocks = range(arguments["num_layers"])
    placement = st.one_of(
        st.sampled_from(["none", "every_1", "final_1"]), st.sets(st.sampled_from(blocks)).map(tuple)
    )
    arguments.update(
        placement=draw(placement),
        num_experts=draw(st.integers(1, 5)),
        router=router,
        capacity_factor=draw(st.sampled_from([None, 0.3, 2.0, 7.0])),
        eval_capacity_factor=draw(st.sampled_from([None, 1.5])),
        capacity_multiple_of=draw(st.sampled_from([None, 3])),
        images_per_group=draw(st.sampled_from([None, 1, 3])),
        expert_capacity=draw(st.sampled_from([None, 2])) if router != "soft" else None,
        num_slots=draw(st.sampled_from([None, 2])) if router == "soft" else None,
    )
    arguments["num_selected"] = draw(st.integers(1, arguments["num_experts"]))
    return arguments


def check(cls, arguments, counting):
    """Closed form against a built model, its own count and the walk through its graph."""
    model = cls(**arguments)
    profile = analysis.profile(cls, **counting._asdict(), **arguments)
    assert profile.params == model.count_params()
    assert profile.params == sum(layer.params for layer in profile.layers)
    assert profile.macs == sum(layer.macs for layer in profile.layers)
    assert profile.activated_params == sum(layer.activated_params for layer in profile.layers)
    # Class, instance and graph tell the same, to the last part of the last layer.
    assert analysis.profile(model, **counting._asdict()).layers == profile.layers
    assert graph_rows(model, counting) == profile.layers
    for row in profile.layers:
        assert row.params == model.get_layer(row.name).count_params()
        assert (None, *row.output_shape) == keras.tree.flatten(model.get_layer(row.name).output)[
            0
        ].shape


COUNTINGS = st.builds(Counting, st.booleans(), st.booleans(), st.none())
QUICK = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@QUICK
@given(vit_arguments(), COUNTINGS)
def test_any_vit_counts_as_it_is_built(arguments, counting):
    check(models.ViT, arguments, counting)


@settings(QUICK, max_examples=20)
@given(vmoe_arguments(), COUNTINGS)
def test_any_vmoe_counts_as_it_is_built(arguments, counting):
    check(models.VMoE, arguments, counting)


@st.composite
def ensemble_arguments(draw):
    arguments = draw(vit_arguments())
    members, experts = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    arguments.update(
        num_members=members,
        num_experts=members * experts,
        num_selected=draw(st.sampled_from([None, experts])),
        placement=draw(st.sets(st.sampled_from(range(arguments["num_layers"])), min_size=1)),
        capacity_factor=draw(st.sampled_from([None, 0.3, 7.0])),
        capacity_multiple_of=draw(st.sampled_from([None, 3])),
        images_per_group=draw(st.sampled_from([None, 1, 3])),
        expert_capacity=draw(st.sampled_from([None, 2])),
    )
    arguments["placement"] = tuple(sorted(arguments["placement"]))
    return arguments


@settings(QUICK, max_examples=20)
@given(ensemble_arguments(), COUNTINGS)
def test_any_ensemble_counts_as_it_is_built(arguments, counting):
    check(models.EfficientEnsemble, arguments, counting)


def test_an_ensemble_has_the_weights_of_one_model_and_the_work_of_several():
    sizes = {"num_classes": 10, "num_experts": 8, "num_selected": 1, "placement": "last_2"}
    single = analysis.profile("vmoe_s32", image_size=128, **sizes)
    ensemble = analysis.profile("eee_s32", image_size=128, **sizes)
    assert ensemble.params == single.params
    rows = {row.name: row for row in single.layers}
    for row in ensemble.layers:
        number = int(row.name.rpartition("_")[2]) if row.name.startswith("encoder_block") else None
        repeated = row.name == "head" or (number is not None and number >= 5)
        router = 512 * 17 * 8 if number in (5, 7) else 0  # each member has half of its columns
        wanted = 2 * rows[row.name].macs - router if repeated else rows[row.name].macs
        assert row.macs == wanted, row.name
    assert ensemble.macs / single.macs == pytest.approx(1.37, abs=0.02)


def tiny(**overrides):
    arguments = {
        "image_size": 16,
        "patch_size": 4,
        "num_layers": 1,
        "width": 8,
        "mlp_dim": 12,
        "num_heads": 2,
        "num_classes": 3,
        "placement": (0,),
        "num_experts": 8,
        "pooling": "gap",
    }
    return analysis.profile(models.VMoE, **{**arguments, **overrides})


def experts_row(profile):
    (mixture,) = (row for row in profile.layers[2].parts if row.name.endswith("_moe"))
    return mixture.parts[-1]


T, ONE_MACS, ONE_PARAMS = 16, 2 * 8 * 12, 2 * 8 * 12 + 8 + 12


@pytest.mark.parametrize(
    ("overrides", "rows", "idle"),
    [
        ({"num_selected": 2, "capacity_factor": 1.5}, T * 3, 6),
        ({"num_selected": 8, "capacity_factor": 4.0}, T * 8, 0),
        ({"num_selected": 1, "expert_capacity": 4}, 8 * 4 / 8, 7),
        # 128 tokens: 1.05 * 128 / 8 = 16.8 slots, rounded up to 20.
        ({"num_selected": 1, "whole_slots": True}, 20, 7),
        ({"num_selected": 1, "eval_capacity_factor": 3.0}, T * 3, 7),
        ({"num_selected": 1, "eval_capacity_factor": 3.0, "training": True}, T * 1.05, 7),
        ({"router": "expert_choice"}, T, 7),
        ({"router": "expert_choice", "capacity_factor": 2.0}, 2 * T, 6),
        # 16 * 1.2 / 8 = 2.4 slots, rounded to 2.
        ({"router": "expert_choice", "capacity_factor": 1.2, "whole_slots": True}, T, 7),
        ({"router": "soft", "num_slots": 3}, 24, 0),
        ({"router": "soft", "num_slots": 3, "images_per_group": 2}, 12, 0),
    ],
)
def test_experts_by_hand(overrides, rows, idle):
    row = experts_row(tiny(**overrides))
    assert row.macs == round(rows * ONE_MACS)
    assert row.idle_params == idle * ONE_PARAMS
    assert row.params == 8 * ONE_PARAMS


def test_soft_routing_counts_scores_dispatch_and_combine():
    router = tiny(router="soft", num_slots=3).layers[2].parts[-1].parts[0]
    assert router.macs == 3 * T * 8 * 24
    assert router.params == 8 * 24 + 1


def test_rows_can_be_printed_and_written():
    profile = analysis.profile("vmoe_s32")
    lines = str(profile).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[0].split() == ["layer", "output", "parameters", "activated", "MACs", "%", "MACs"]
    assert f"{profile.params:,}" in lines[-2]
    assert lines[-1].endswith("of 287.8 M parameters (12.4%)")
    assert len(profile.table(0).splitlines()) == 4
    assert "  encoder_block_1_moe " in profile.table(2)
    assert "    experts " in profile.table(3)
    values = json.loads(json.dumps(profile.to_dict()))
    assert values["params"] == profile.params
    assert values["layers"][4]["parts"][-1]["parts"][0]["name"] == "router"
    assert values["flops"] == 2 * sum(layer["macs"] for layer in values["layers"])


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("vmoe_x", {}, "variant must be one of"),
        ("vmoe_s32", {"widht": 8}, "has no argument 'widht'"),
        ("vit_b16", {"num_experts": 8}, "ViT has no argument 'num_experts'"),
        ("vmoe_s32", {"width": 500}, "num_heads must divide the width"),
        ("vmoe_s32", {"num_selected": 64}, "num_selected must be at most num_experts=32"),
        ("vmoe_s32", {"placement": "odd"}, "placement must be"),
        ("vmoe_s32", {"router": "hash"}, "router must be one of"),
        ("vmoe_s32", {"num_slots": 1}, "num_slots is of soft routers only"),
        ("vmoe_s32", {"capacity_factor": 0}, "capacity_factor must be above 0"),
        ("vmoe_s32", {"image_size": 16}, "must hold at least one patch"),
        ("vmoe_s32", {"pooling": "max"}, "pooling must be one of"),
        ("vmoe_s32", {"num_layers": 0}, "num_layers must be an integer"),
        ("vmoe_s32", {"images_per_group": 0}, "images_per_group must be an integer"),
        ("vmoe_s32", {"position_embedding": "x"}, "position_embedding must be one of"),
        (keras.Model, {}, "Received: Model; profile a built model"),
        (3, {}, "model must be an id"),
    ],
)
def test_what_a_model_would_refuse_is_refused(model, overrides, message):
    with pytest.raises(ValueError, match=message):
        analysis.profile(model, **overrides)
