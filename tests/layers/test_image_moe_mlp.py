"""Experts for whole images: every way to them gives the numbers of a loop."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers, ops
from tests.layers import cases, harness
from tests.layers.test_experts import one_expert
from tests.support.gradients import value_and_gradients

WAYS = ("grouped", "kernels", "branches", "einsum")


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.IMAGE_MOE.values(), ids=cases.IMAGE_MOE)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def make(dispatch, seed=0, **arguments):
    layer = layers.ImageMoEMLP(4, 6, dispatch=dispatch, **arguments)
    layer.build((None, 5, 8))
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(0.5 * rng.normal(size=weight.shape))
    return layer


def tokens(images=7):
    return np.random.default_rng(1).normal(size=(images, 5, 8)).astype("float32")


def plan_of(images=7, k=2, seed=2):
    # Expert 3 is nobody's choice.
    logits = np.random.default_rng(seed).normal(size=(images, 4))
    logits[:, 3] = -9.0
    return ops.image_routing(logits.astype("float32"), k)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dispatch", WAYS)
def test_it_is_the_weighted_sum_of_an_images_experts(dispatch, k):
    layer, x, plan = make(dispatch), tokens(), plan_of(k=k)
    found = np.asarray(layer(x, plan=plan))
    for i, image in enumerate(x):
        wanted = sum(
            float(plan.weight[i, j]) * one_expert(layer.experts, int(plan.expert[i, j]), image)
            for j in range(k)
        )
        np.testing.assert_allclose(found[i], wanted, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_branches_lead_a_single_image_to_each_of_the_experts(k):
    layer, x = make("branches"), tokens(1)
    for expert in range(4):
        logits = np.roll([[4.0, 2.0, 1.0, 0.0]], expert, axis=1).astype("float32")
        plan = ops.image_routing(logits, k)
        wanted = sum(
            float(plan.weight[0, j]) * one_expert(layer.experts, (expert + j) % 4, x[0])
            for j in range(k)
        )
        np.testing.assert_allclose(np.asarray(layer(x, plan=plan))[0], wanted, atol=1e-5)


def test_branches_are_for_a_single_image_out_of_training():
    layer = make("branches")
    assert layer._method(tokens(1)) == "branches"
    assert layer._method(tokens(1), training=True) == "kernels"
    assert layer._method(tokens(2)) == layer._method(keras.Input((5, 8))) == "kernels"


def gradients(dispatch, k):
    layer, cotangent = make(dispatch), tokens()[::-1]
    parameters = [np.asarray(w) for w in layer.weights]

    def total(x, logits, *values):
        with keras.StatelessScope(state_mapping=list(zip(layer.weights, values, strict=True))):
            return keras.ops.sum(layer(x, plan=ops.image_routing(logits, k)) * cotangent)

    logits = np.asarray(plan_of(k=k).logits)
    return value_and_gradients(total, tokens(), logits, *parameters)[1]


@pytest.mark.parametrize("k", [1, 2])
def test_all_ways_have_the_same_gradients(k):
    one, *others = (gradients(dispatch, k) for dispatch in WAYS)
    assert all(np.abs(part).max() > 1e-3 for part in one)
    for other in others:
        for found, wanted in zip(other, one, strict=True):
            np.testing.assert_allclose(found, wanted, atol=5e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("dispatch", WAYS)
def test_an_image_does_not_depend_on_the_others(dispatch):
    layer, x, plan = make(dispatch), tokens(), plan_of()
    together = np.asarray(layer(x, plan=plan))
    order = np.array([3, 0, 6, 1])
    moved = ops.ImagePlan(*(np.asarray(part)[order] for part in plan))
    np.testing.assert_allclose(np.asarray(layer(x[order], plan=moved)), together[order], atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="looks at TensorFlow's graph")
def test_what_a_single_image_computes_is_one_expert():
    import tensorflow as tf

    def flops(dispatch, images):
        layer = make(dispatch)

        @tf.function
        def run(x, logits):
            return layer(x, plan=ops.image_routing(logits, 1))

        graph = run.get_concrete_function(
            tf.TensorSpec((images, 5, 8)), tf.TensorSpec((images, 4))
        ).graph
        products = [op for op in graph.get_operations() if "MatMul" in op.type]
        return sum(np.prod(op.inputs[0].shape) * op.outputs[0].shape[-1] for op in products)

    one = 2 * 5 * 8 * 6
    assert flops("auto", 1) == one
    assert flops("einsum", 1) == 4 * one


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its own choice on TensorFlow")
def test_auto_is_grouped_for_several_images_on_a_cpu():
    layer = make("auto")
    assert layer._method(tokens(7)) == "grouped"
    assert layer._method(keras.Input((5, 8))) == "grouped"
    assert layer._method(tokens(1)) == "kernels"


def test_bad_arguments_and_calls():
    with pytest.raises(ValueError, match="dispatch must be one of 'auto', 'grouped', 'kernels'"):
        layers.ImageMoEMLP(4, 6, dispatch="gather")
    layer = make("auto")
    with pytest.raises(ValueError, match="plan must be of 4 experts"):
        layer(tokens(2), plan=ops.image_routing(np.zeros((2, 3), "float32")))
    router = layers.ImageRouter(3)
    with pytest.raises(ValueError, match="plan must be of 4 experts.*one of 3"):
        layer(keras.Input((5, 8)), plan=router(keras.Input((8,))))
    with pytest.raises(ValueError, match=r"inputs must have shape \[images, tokens, width\]"):
        layer(tokens()[:, 0], plan=plan_of())
    block = layers.EncoderBlock(2, layers.ImageMoEMLP(4, 6), name="block")
    with pytest.raises(ValueError, match="plan must be that of an ImageRouter for the"):
        block(tokens())
    dense = layers.EncoderBlock(2, layers.MLP(6), name="dense")
    with pytest.raises(ValueError, match="plan is of a block with an ImageMoEMLP; 'dense' has"):
        dense(tokens(), plan=plan_of())


def test_a_block_that_is_recomputed_teaches_the_router():
    found = {}
    for remat in (False, True):
        router = layers.ImageRouter(4, 2, name="router")
        block = layers.EncoderBlock(2, layers.ImageMoEMLP(4, 6), remat=remat, name="block")
        x = keras.Input((5, 8))
        model = keras.Model(x, block(x, plan=router(x[:, 0])))
        rng = np.random.default_rng(0)
        for weight in model.trainable_variables:
            weight.assign(0.3 * rng.normal(size=weight.shape))
        model.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=False)
        before = np.asarray(router.kernel)
        model.fit(tokens(), tokens()[::-1], batch_size=7, verbose=0)
        found[remat] = np.asarray(router.kernel) - before
    assert np.abs(found[False]).max() > 1e-4
    np.testing.assert_allclose(found[True], found[False], atol=1e-6)
