"""Sparse upcycling: the sparse model begins as the dense one."""

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from tests.models import tiny


@pytest.fixture(scope="module")
def dense():
    model = tiny.vit(num_layers=4, representation_size=6)
    tiny.spread(model)
    return model


# Every token finds room: each of the 4 experts may take all of them.
ROOMY = {
    "top_k": {"router": "top_k", "num_selected": 2, "capacity_factor": 4.0},
    "one choice": {"router": "top_k", "num_selected": 1, "capacity_factor": 4.0},
    "expert_choice": {"capacity_factor": 4.0},
}


@pytest.mark.parametrize("kind", ROOMY)
@pytest.mark.parametrize(
    "placement", [None, *(pytest.param(p, marks=pytest.mark.slow) for p in ("every_2", (0, 3)))]
)
def test_the_output_is_the_dense_models(dense, kind, placement):
    sparse = checkpoints.upcycle(dense, num_experts=4, placement=placement, **ROOMY[kind])
    images = tiny.images(5)
    np.testing.assert_allclose(sparse(images), dense(images), atol=1e-5)


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_without_renormalised_weights_it_is_another(dense, router):
    options = {"router": router, "capacity_factor": 2.0, "renormalise_gates": False}
    sparse, images = checkpoints.upcycle(dense, 4, **options), tiny.images(5)
    assert np.abs(np.asarray(sparse(images) - dense(images))).max() > 0.01


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_where_tokens_find_no_room_it_is_another(dense, router):
    sparse = checkpoints.upcycle(dense, 4, router=router, capacity_factor=0.25)
    images = tiny.images(5)
    assert np.abs(np.asarray(sparse(images) - dense(images))).max() > 0.01


def test_the_papers_choices_are_the_defaults(dense):
    found = checkpoints.upcycle(dense).arguments
    assert found["num_experts"] == 32
    assert found["placement"] == "final_2"
    assert found["router"] == "expert_choice"
    assert found["capacity_factor"] == 2.0
    assert found["renormalise_gates"] is True


def test_every_expert_is_the_mlp_and_routers_are_new(dense):
    keras.utils.set_random_seed(0)
    sparse = checkpoints.upcycle(dense, 64, placement=(1,))
    theirs = checkpoints.reference_variables(dense)
    ours = checkpoints.reference_variables(sparse)
    for part in ("Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias"):
        wanted = np.asarray(theirs[f"Encoder/encoderblock_1/Mlp/{part}"])
        for expert in np.asarray(ours[f"Encoder/encoderblock_1/Moe/Mlp/{part}"]):
            np.testing.assert_array_equal(expert, wanted)
    router = np.asarray(ours["Encoder/encoderblock_1/Moe/Router/dense/kernel"])
    assert 0.017 < router.std() < 0.023
    assert abs(router.mean()) < 0.005


def test_noise_makes_experts_differ(dense):
    sparse = checkpoints.upcycle(dense, 4, placement=(1,), noise=0.1)
    name = "Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    kernel = np.asarray(checkpoints.reference_variables(sparse)[name])
    mlp = checkpoints.reference_variables(dense)["Encoder/encoderblock_1/Mlp/Dense_0/kernel"]
    noise = kernel - np.asarray(mlp)
    assert 0.08 < noise.std() < 0.12
    assert np.abs(noise[0] - noise[1]).max() > 0.01


def test_a_classifier_stays_one(dense):
    whole = models.Classifier(dense, ["a", "b", "c"], (0.0, 1.0))
    sparse = checkpoints.upcycle(whole, 4, capacity_factor=4.0)
    assert isinstance(sparse, models.Classifier)
    assert sparse.class_names == ["a", "b", "c"]
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 20, 3))
    np.testing.assert_allclose(sparse(images), whole(images), atol=1e-5)


def test_the_upcycled_model_trains(dense):
    sparse = checkpoints.upcycle(dense, 4, router="top_k", num_selected=1, noise=0.0)
    sparse.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sparse.fit(tiny.images(9), np.arange(9) % 3, epochs=2, verbose=0)
    name = "Encoder/encoderblock_3/Moe/Mlp/Dense_1/kernel"
    kernel = np.asarray(checkpoints.reference_variables(sparse)[name])
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-5


def test_another_resolution_and_other_classes(dense):
    model = tiny.vmoe(image_size=24, num_classes=7, num_layers=4, placement="last_1")
    done = checkpoints.upcycle_into(model, dense, fresh=["head/", "pre_logits/"])
    assert "head/kernel" in done.fresh
    assert done.resized == ("Encoder/posembed_input/pos_embedding",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1.0}, "noise must not be negative. Received: noise=-1.0"),
        ({"experts": 3}, "VMoE has no argument experts"),
        ({"placement": "none"}, "must hold sparse blocks"),
        ({"placement": "final_9"}, "more blocks than the 4"),
        ({"num_selected": 2}, "num_selected is not of router='expert_choice'"),
    ],
)
def test_what_does_not_fit(dense, options, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.upcycle(dense, **{"num_experts": 4, **options})


def test_weights_that_are_not_renormalised_are_told(dense):
    with pytest.warns(UserWarning, match="set renormalise_gates=True"):
        checkpoints.upcycle_into(tiny.vmoe(num_layers=4, representation_size=6), dense)


def test_a_sparse_source_is_refused():
    with pytest.raises(ValueError, match="dense_model must be a ViT.*Received: VMoE"):
        checkpoints.upcycle(tiny.vmoe())
    with pytest.raises(ValueError, match="source must be dense"):
        checkpoints.upcycle_into(tiny.vmoe(), tiny.vmoe())
