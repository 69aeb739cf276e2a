"""Which variables decay and which are frozen, by hand and in a V-MoE."""

import re

import pytest

from keras_vmoe import layers, models
from keras_vmoe.trainers.optimizers import VariableRules
from keras_vmoe.trainers.optimizers.adafactor import EXPERTS, factored_axes

PATHS = ("moe/experts/hidden_kernel", "moe/router/kernel", "head/kernel", "head/bias")


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        (None, (0.0, 0.0, 0.0, 0.0)),
        (0.1, (0.1, 0.1, 0.1, 0.1)),
        (1, (1, 1, 1, 1)),
        (((".*kernel", 0.1),), (0.1, 0.1, 0.1, 0.0)),
        (((".*/kernel", 0.1),), (0.0, 0.1, 0.1, 0.0)),
        ([["head/kernel", 3.0], ["kernel$", 0.03]], (0.03, 0.03, 3.0, 0.0)),
        ((("router", 0.0), ("", 0.5)), (0.5, 0.0, 0.5, 0.5)),
    ],
)
def test_the_first_regex_that_matches_decides(decay, wanted):
    assert VariableRules(decay).decay_rates(PATHS) == wanted


def test_frozen_variables():
    assert VariableRules(freeze=("router", "^head")).frozen(PATHS) == (False, True, True, True)
    assert VariableRules(freeze="router").frozen(PATHS) == (False, True, False, False)
    assert VariableRules().frozen(PATHS) == (False,) * 4


@pytest.mark.parametrize("name", ["weight_decay", "freeze"])
def test_a_regex_that_matches_nothing_is_an_error_that_names_it(name):
    pattern = "encoder/kernle"
    if name == "freeze":
        with pytest.raises(ValueError, match=r"freeze holds 'encoder/kernle'.*head/bias"):
            VariableRules(freeze=("head", pattern)).frozen(PATHS)
    else:
        with pytest.raises(ValueError, match=r"weight_decay holds 'encoder/kernle'.*head/bias"):
            VariableRules((("head", 0.1), (pattern, 0.1))).decay_rates(PATHS)


def test_something_is_left_to_train():
    with pytest.raises(ValueError, match="leaves no variable to train"):
        VariableRules(freeze=(".*",)).frozen(PATHS)


@pytest.mark.parametrize(
    "decay",
    [-0.1, "kernel", True, (), ("kernel", 0.1), (("kernel",),), (("kernel", -1.0),), {"a": 1}],
)
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=r"weight_decay=.* must be a number of at least 0"):
        VariableRules(decay)


@pytest.mark.parametrize("options", [{"weight_decay": (("(", 0.1),)}, {"freeze": ("(",)}])
def test_a_pattern_that_is_no_regex_is_refused(options):
    with pytest.raises(ValueError, match=r"holds '\(', which is no regex"):
        VariableRules(**options)


def test_a_pattern_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="freeze holds 3"):
        VariableRules(freeze=(3,))


# In a model.


@pytest.fixture(scope="module")
def model():
    return models.VMoE(
        image_size=8,
        patch_size=4,
        width=8,
        num_layers=2,
        mlp_dim=16,
        num_heads=2,
        num_experts=4,
        placement=(1,),
        num_classes=3,
    )


def expert_variables(model):
    found = [layer for layer in model._flatten_layers() if isinstance(layer, layers.ExpertMLP)]
    assert found
    return {v.path for layer in found for v in layer.trainable_variables}


def test_kernels_of_experts_and_routers_decay(model):
    variables = model.trainable_variables
    rates = VariableRules(((".*kernel", 0.1),)).decay_rates([v.path for v in variables])
    decayed = {v.path for v, rate in zip(variables, rates, strict=True) if rate}
    assert {path for path in expert_variables(model) if "kernel" in path} <= decayed
    assert any("router/kernel" in path for path in decayed)
    assert {v.name for v in variables if v.path not in decayed} == {
        "bias", "hidden_bias", "output_bias", "gamma", "beta", "token", "embedding"
    }  # fmt: skip
    assert all(len(v.shape) >= 2 for v in variables if v.path in decayed)


def test_adafactor_knows_the_variables_of_experts(model):
    found = {v.path for v in model.trainable_variables if re.search(EXPERTS, v.path)}
    assert found == expert_variables(model)


@pytest.mark.parametrize(
    ("shape", "stacked", "wanted"),
    [
        ((512, 1024), False, (0, 1)),
        ((512, 8, 64), False, (0, 2)),
        ((8, 64, 512), False, (1, 2)),
        ((32, 32, 3, 512), False, (1, 3)),
        ((512, 31), False, None),
        ((512,), False, None),
        ((), False, None),
        ((512, 1024), True, None),
        ((128, 64, 48), True, (1, 2)),
        ((128, 64, 31), True, None),
        ((8, 64, 48), False, (1, 2)),
    ],
)
def test_the_axis_of_experts_is_never_factored(shape, stacked, wanted):
    assert factored_axes(shape, 32, stacked) == wanted
