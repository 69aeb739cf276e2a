"""The router of whole images."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers
from tests.layers import cases, harness


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.IMAGE_ROUTER.values(), ids=cases.IMAGE_ROUTER)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def test_it_is_a_linear_layer_and_a_softmax():
    case = cases.IMAGE_ROUTER["bias"]
    router, x = case.built(), case.inputs()
    wanted = x @ np.asarray(router.kernel) + np.asarray(router.bias)
    np.testing.assert_allclose(np.asarray(router(x).logits), wanted, rtol=1e-5)
    assert router(x).expert.shape == (3, 2)
    assert router(x, num_selected=4).expert.shape == (3, 4)


def test_it_begins_undecided():
    router = layers.ImageRouter(num_experts=4)
    router(np.random.default_rng(0).normal(size=(8, 64)).astype("float32"))
    assert 0 < np.asarray(router.kernel).std() < 0.03


def metrics_of(router):
    return {m.name.split("/")[1]: float(m.result()) for m in router.metrics}


def test_false_images_count_in_no_metric():
    router = layers.ImageRouter(num_experts=3)
    router.build((None, 3))
    router.kernel.assign(4 * np.eye(3))
    images = np.eye(3, dtype="float32")[[0, 0, 1, 2, 2, 2]]
    router(images, mask=np.array([True, True, True, False, False, False]))
    found = metrics_of(router)
    assert found["expert_load_max"] == pytest.approx(2 / 3)
    assert found["expert_load_min"] == 0.0
    gate = np.exp(4) / (np.exp(4) + 2)
    assert found["confidence"] == pytest.approx(gate, rel=1e-5)


def test_its_routing_is_recorded_by_image():
    case = cases.IMAGE_ROUTER["plain"]
    router = case.built(name="router")
    with layers.record_routing() as calls:
        plan = router(case.inputs())
    (call,) = calls
    assert (call.layer, call.tokens_per_image, call.batch) == ("router", 1, 3)
    np.testing.assert_array_equal(np.asarray(call.plan.expert)[:, 0], np.asarray(plan.expert))
    assert np.asarray(call.plan.kept).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, "num_experts must be an integer"),
        ({"num_experts": 2, "num_selected": 3}, "num_selected must be at most num_experts=2"),
        ({"gate": "sharp"}, "gate must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.ImageRouter(**arguments)


def test_bad_calls():
    router = layers.ImageRouter(num_experts=2, name="router")
    with pytest.raises(ValueError, match=r"inputs must have shape \[images, width\]"):
        router(np.zeros((2, 3, 4), "float32"))
    with pytest.raises(ValueError, match="capacity_factor cannot be changed on an ImageRouter"):
        router.check_routing(capacity_factor=1.0)
    with pytest.raises(ValueError, match="num_selected must be at most num_experts=2"):
        router.check_routing(num_selected=3)
    assert router.check_routing(num_selected=2) == {"num_selected": 2}


def test_a_mask_of_keras_is_no_warning(recwarn):
    tokens = keras.Input((4, 8))
    masked = keras.layers.Masking()(tokens)
    layers.ImageRouter(num_experts=2)(masked[:, 0])
    assert not [w for w in recwarn if "mask" in str(w.message)]
