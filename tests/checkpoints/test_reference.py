"""Filling a model with the reference's parameters: all of them, or none and a list."""

import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from tests.models import tiny
from tests.support.golden import load


@pytest.fixture
def model():
    golden = load("04_vmoe_map_k2")
    return models.from_reference_config(golden.config, image_size=32)


@pytest.fixture
def params():
    return dict(load("04_vmoe_map_k2").under("params"))


def test_every_weight_has_one_name(model, params):
    names = checkpoints.reference_variables(model)
    assert set(names) == set(params)
    assert {id(v) for v in names.values()} == {id(v) for v in model.trainable_variables}


def test_values_arrive(model, params):
    checkpoints.assign_reference_params(model, params)
    for name, variable in checkpoints.reference_variables(model).items():
        np.testing.assert_array_equal(np.asarray(variable), params[name])


def test_all_problems_are_listed_and_nothing_is_changed(model, params):
    before = [np.asarray(v) for v in model.weights]
    del params["head/bias"], params["embedding/kernel"]
    params["head/scale"] = np.ones(3)
    params["head/kernel"] = np.ones((16, 11))
    with pytest.raises(ValueError) as error:
        checkpoints.assign_reference_params(model, params)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1:] == [
        "left over: head/scale",
        "missing: embedding/kernel",
        "missing: head/bias",
        "wrong shape: head/kernel is (16, 11), the model needs (16, 10)",
    ]
    for value, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, np.asarray(weight))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "map", "qk_norm": True, "representation_size": 6},
        {"pooling": "gap", "position_embedding": "none", "num_classes": None},
        {"router": "soft"},
        {"router": "expert_choice", "num_layers": 12, "placement": "final_3"},
    ],
)
def test_names_of_any_model_are_complete(overrides):
    model = tiny.vmoe(**overrides)
    names = checkpoints.reference_variables(model)
    assert {id(v) for v in names.values()} == {id(v) for v in model.trainable_variables}


def test_half_precision_models_take_float32():
    model = tiny.vmoe(dtype="mixed_bfloat16")
    params = {n: np.asarray(v) for n, v in checkpoints.reference_variables(model).items()}
    params["cls"] = np.full((1, 1, 8), 1 / 3, "float32")
    checkpoints.assign_reference_params(model, params)
    np.testing.assert_array_equal(np.asarray(model.get_layer("class_token").token), params["cls"])
