"""The table of presets."""

import keras
import pytest

import keras_vmoe
from keras_vmoe import models
from keras_vmoe.models import variants
from tests.support.golden import load
from tests.support.unallocated import unallocated

TINY = {
    "image_size": 28,
    "num_layers": 2,
    "width": 8,
    "mlp_dim": 8,
    "num_heads": 2,
    "num_classes": 3,
    "patch_size": 14,
}


@pytest.mark.parametrize("name", keras_vmoe.list_variants())
def test_every_preset_builds_with_overrides(name):
    overrides = dict(TINY)
    if name.startswith("asvit_"):
        genotype = "4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|8,8"
        overrides = {"image_size": 28, "num_classes": 3, "genotype": genotype}
    elif name.startswith("mobile_"):
        overrides.update(num_moe_layers=1, num_experts=2)
    elif not name.startswith(("vit_", "asvit_")):
        overrides.update(placement="final_1", num_experts=2)
    shape = (None, 2, 3) if name.startswith("eee_") else (None, 3)
    if name.startswith("limoe_"):
        del overrides["num_classes"]
        overrides["vocabulary_size"] = 5
        embedding = (None, overrides["width"])
        shape = dict.fromkeys(("image_embedding", "text_embedding"), embedding)
        shape["logit_scale"] = (None,)
    with unallocated():
        model = models.from_variant(name, **overrides)
    assert model.name == name
    assert keras.tree.map_structure(lambda x: x.shape, model.output) == shape
    cls, preset = variants.variant(name)
    assert type(model) is cls
    for argument, value in {**preset, **overrides}.items():
        found = model.arguments[argument]
        assert found == (tuple(value) if isinstance(value, list) else value)


SIZES = {  # layers, width, mlp, heads
    "ti16": (12, 192, 768, 3),
    "b32": (12, 768, 3072, 12),
    "b16": (12, 768, 3072, 12),
    "l32": (24, 1024, 4096, 16),
    "l16": (24, 1024, 4096, 16),
    "h14": (32, 1280, 5120, 16),
}
DEIT_S, VMOE_S = (12, 384, 1536, 6), (8, 512, 2048, 8)
ROWS = {
    **{f"{family}_{size}": row for size, row in SIZES.items() for family in ("vit", "vmoe")},
    **{f"softmoe_{size}": row for size, row in SIZES.items()},
    "vit_s16": DEIT_S,
    "softmoe_s16": DEIT_S,
    "softmoe_s14": DEIT_S,
    **{f"limoe_{size}": SIZES[size] for size in ("b32", "b16", "l16", "h14")},
    "limoe_s32": VMOE_S,
    "limoe_s16": VMOE_S,
    "vmoe_s32": VMOE_S,
    "vmoe_s16": VMOE_S,
    "vmoe_15b": (48, 1408, 6400, 16),
}


@pytest.mark.parametrize("name", ROWS)
def test_sizes_of_the_papers(name):
    _, preset = variants.variant(name)
    sizes = tuple(preset[n] for n in ("num_layers", "width", "mlp_dim", "num_heads"))
    assert sizes == ROWS[name]
    digits = "".join(c for c in name.split("_")[1] if c.isdigit())
    assert preset["patch_size"] == (14 if name == "vmoe_15b" else int(digits))


def test_families():
    assert keras_vmoe.list_variants("vmoe_l") == ["vmoe_l16", "vmoe_l32"]
    assert keras_vmoe.list_variants() == sorted(keras_vmoe.list_variants())
    _, sparse = variants.variant("vmoe_b16")
    assert (sparse["placement"], sparse["num_experts"]) == ("every_2", 32)
    for name, blocks, experts in (
        ("s16", 6, 128),
        ("b16", 6, 128),
        ("l16", 12, 128),
        ("h14", 16, 256),
    ):
        _, soft = variants.variant(f"softmoe_{name}")
        assert soft["placement"] == f"final_{blocks}"
        assert (soft["num_experts"], soft["num_slots"], soft["pooling"]) == (experts, 1, "gap")
        assert soft["qk_norm"]
        assert soft["router"] == "soft"


def count(name, **overrides):
    with unallocated():
        return models.from_variant(name, **overrides).count_params()


@pytest.mark.parametrize(
    ("name", "overrides", "wanted"),
    [
        ("vit_vmoe_s32", {"representation_size": 512}, 36_465_523),
        ("vmoe_s32", {"representation_size": 512}, 296_895_347),
        ("vit_b16", {"representation_size": 768}, 100_455_027),
        ("vmoe_b16", {"representation_size": 768}, 978_974_835),
        ("vmoe_15b", {"num_classes": 29_593}, 14_705_071_769),
    ],
)
def test_parameters_of_the_paper(name, overrides, wanted):
    assert count(name, **{"num_classes": 18_291, **overrides}) == wanted


@pytest.mark.parametrize(
    ("name", "per_token", "wanted"),
    [("limoe_b16", 111.6, 0.990), ("limoe_h14", 675.0, 5.554)],
)
def test_parameters_of_limoe(name, per_token, wanted):
    """Billions in all; millions that a token meets, routers aside: those of a dense tower."""
    assert count(name) / 1e9 == pytest.approx(wanted, abs=5e-4)
    assert count(name, placement="none") / 1e6 == pytest.approx(per_token, abs=0.1)


@pytest.mark.parametrize(
    ("name", "placement", "wanted"),
    [
        ("vmoe_s32", "last_2", 166.680),
        ("vmoe_b32", "last_3", 541.4),
        ("vmoe_h14", "last_5", 2688.648),
    ],
)
def test_parameters_by_placement(name, placement, wanted):
    width = variants.variant(name)[1]["width"]
    found = count(name, num_classes=18_291, representation_size=width, placement=placement)
    assert found / 1e6 == pytest.approx(wanted, abs=0.06)


def test_classes_build_their_own_presets():
    model = models.VMoE.from_variant("vmoe_s32", **TINY, num_experts=2, num_selected=1)
    assert isinstance(model, models.VMoE)
    assert isinstance(models.ViT.from_variant("vit_b16", **TINY), models.ViT)


def test_names_of_the_papers():
    for cls, short, name in (
        (models.ViT, "B/16", "vit_b16"),
        (models.VMoE, "S/32", "vmoe_s32"),
        (models.LIMoE, "H/14", "limoe_h14"),
    ):
        _, preset = variants.variant(name)
        assert variants.variant_arguments(short, cls, {}) == {**preset, "name": name}
    assert models.ViT.from_variant("Ti/16", **TINY).name == "vit_ti16"
    with pytest.raises(ValueError, match="vit_b16.*Received: variant='B/15'"):
        models.ViT.from_variant("B/15")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: models.from_variant("vmoe_b17"),
            "vit_b16.*vmoe_s32.*Received: variant='vmoe_b17'",
        ),
        (lambda: models.ViT.from_variant("vmoe_b16"), "of VMoE, not of ViT"),
        (lambda: models.VMoE.from_variant("vit_b16"), "of ViT, not of VMoE"),
        (lambda: models.from_variant("vit_b16", num_experts=2), "no argument 'num_experts'"),
        (lambda: models.from_variant("vmoe_b16", experts=2), "experts=2.*It has: .*num_experts"),
        (lambda: models.from_variant("vmoe_b16", width=770), "num_heads=12, width=770"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_defaults_of_the_families():
    """V-MoE's defaults where the reference's config, which differs, is not asked for."""
    with unallocated():
        model = models.VMoE.from_variant("vmoe_s32", **TINY, num_experts=4)
        soft = models.VMoE.from_variant("softmoe_s16", **TINY, placement="final_1")
        choice = models.VMoE.from_variant("expertchoice_s16", **TINY, placement="final_1")
    moe = model.get_layer("encoder_block_1").mlp
    router = moe.router
    assert (router.num_selected, router.batch_priority, router.noise_std) == (2, True, 1.0)
    assert (router.importance_loss_weight, router.load_loss_weight) == (0.005, 0.005)
    assert (router.capacity_factor, router.eval_capacity_factor) == (1.05, None)
    assert (router.capacity_rounding, router.capacity_multiple_of) == ("ceil", 4)
    assert moe.images_per_group == 8
    for other in (soft, choice):
        moe = other.get_layer("encoder_block_1").mlp
        assert moe.images_per_group == 1
        assert moe.router.capacity_factor == 1.0
        assert (moe.router.capacity_rounding, moe.router.capacity_multiple_of) == ("round", 1)
    assert load("05_vmoe_token_k2_grads").config["encoder"]["moe"]["layers"] == [1, 3]
