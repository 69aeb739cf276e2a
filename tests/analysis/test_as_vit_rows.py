"""As-ViT's parameters and MACs: the published counts, and the built model's."""

import json

import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import analysis, models
from tests.support.golden import FOLDER

TABLE = json.loads((FOLDER / "asvit" / "params_macs.json").read_text())
TINY = "5,2,2,2|3,1,2|2,2,2|4,1,2|16,9"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["genotype"])
def test_counts_of_the_official_code(row):
    genotype = models.Genotype.parse(f"{row['genotype']}")
    assert genotype.depths == tuple(row["depths"])
    assert genotype.width == row["hidden"]
    found = analysis.profile(models.AsViT, genotype=row["genotype"])
    assert found.params == row["params"]
    # Its counter takes a bias for a product, and its two pools for 49 sums and a division.
    theirs = 56 * 56 * genotype.widths[0] + 2 * genotype.widths[-1] * (49 + 1)
    assert found.macs + theirs == row["macs"]


@pytest.mark.parametrize(
    ("name", "params"), [("s", 29_034_048), ("b", 52_599_692), ("l", 88_109_188)]
)
def test_published_sizes(name, params):
    assert analysis.profile(f"asvit_{name}").params == params


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "identity"},
        {"pos_emb": "absolute", "merge_norm": "post", "head": "linear"},
        {"num_classes": None, "image_size": (50, 70), "pretrain_size": 64},
        {"windows": "number", "image_size": (50, 70)},
        {"placement": "every_2", "num_experts": 3, "num_selected": 1},
        {"placement": (4,), "num_experts": 3, "router": "expert_choice"},
    ],
    ids=str,
)
def test_closed_form_and_built_model_agree(changes):
    arguments = {"image_size": 64, "num_classes": 5, **changes}
    model = models.AsViT(TINY, **arguments)
    closed = analysis.profile(model)
    assert closed.params == model.count_params()
    graph = analysis.profile(models.FunctionalModel(model.input, model.output, name=model.name))
    assert graph.layers == closed.layers
    assert not graph.notes


def test_a_call_with_other_routing_costs_otherwise():
    arguments = {"image_size": 64, "placement": "final_2", "num_experts": 3}
    model = models.AsViT(TINY, num_selected=2, **arguments)
    once = keras_vmoe.with_routing(model, num_selected=1)
    wanted = analysis.profile(models.AsViT, genotype=TINY, num_selected=1, **arguments)
    assert analysis.profile(once).macs == wanted.macs < analysis.profile(model).macs


def test_a_pyramid_of_any_size_counts_its_weights_and_says_what_it_leaves_out():
    model = models.AsViT(TINY, image_size=64, num_classes=None)
    pyramid = analysis.profile(models.feature_pyramid(model))
    norm = 2 * model.genotype.widths[-1]
    assert pyramid.params == model.count_params() - norm
    assert pyramid.notes
    assert np.isclose(
        analysis.profile(models.feature_pyramid(model, image_size=64)).macs,
        analysis.profile(model).macs,
    )
