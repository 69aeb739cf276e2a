"""What a model cannot do it says, instead of doing half of it."""

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import layers, models, ops
from tests.models import tiny


class Wrap(keras.layers.Layer):
    """A layer of a user, that holds a MoE layer and takes no routing arguments."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.moe = layers.MoEMLP(layers.TopKRouter(4, 1), 8)

    def call(self, inputs):
        return self.moe(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.VMoE(num_layer=2), "VMoE has no argument 'num_layer'.*mean 'num_layers'"),
        (lambda: models.ViT(num_experts=2), "ViT has no argument 'num_experts'. Received: .*=2"),
        (lambda: models.MobileVMoE(super_classes=[0]), "mean 'superclasses'"),
        (lambda: models.LIMoE(tokenizer="x"), "LIMoE has no argument 'tokenizer'"),
        (lambda: models.Classifier(None, [], names=["a"]), "Classifier has no argument 'names'"),
    ],
)
def test_misspelt_arguments_are_not_swallowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("also_reachable", [False, True])
def test_routing_that_cannot_be_reached_is_not_passed_over(also_reachable):
    tokens = keras.Input((5, 8))
    x = Wrap(name="mine")(tokens)
    if also_reachable:
        x = layers.MoEMLP(layers.TopKRouter(4, 1), 8)(x)
    with pytest.raises(ValueError, match="'mine' .*cannot be reached"):
        keras_vmoe.with_routing(keras.Model(tokens, x), capacity_factor=0.5)


def test_a_classifier_with_other_routing_is_a_classifier():
    classifier = models.Classifier(tiny.vmoe(num_classes=2), ["cat", "dog"])
    cheap = keras_vmoe.with_routing(classifier, num_selected=1)
    assert cheap.class_names == ["cat", "dog"]
    assert len(cheap.classify(np.zeros((1, 24, 24, 3), "uint8"))) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"router": "soft", "eval_capacity_factor": 3.0},
        {"router": "soft", "expert_capacity": 2},
        {"router": "expert_choice", "num_selected": 1},
        {"router": "expert_choice", "z_loss_weight": 1.0},
        {"router": "top_k", "num_slots": 2},
    ],
)
def test_arguments_of_another_router(arguments):
    name = list(arguments)[-1]
    with pytest.raises(ValueError, match=f"{name} is not of router='{arguments['router']}'"):
        tiny.vmoe(**arguments)


@pytest.mark.parametrize("images_per_group", [1, 8])
@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_an_empty_batch_is_empty(router, images_per_group):
    moe = layers.MoEMLP(router, 8, images_per_group=images_per_group)
    assert tuple(moe(np.zeros((0, 3, 5), "float32")).shape) == (0, 3, 5)


@pytest.mark.parametrize("method", ["einsum", "gather"])
def test_a_capacity_that_is_not_the_plans(method):
    gates = np.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]], "float32")
    plan = ops.top_k_routing(gates, num_selected=1, capacity=3)
    tokens = np.ones((1, 3, 4), "float32")
    with pytest.raises(ValueError, match="capacity must be that of the plan, which uses 3"):
        ops.dispatch(tokens, plan, num_experts=2, capacity=2, method=method)


def test_expert_ids_beyond_the_experts():
    expert = np.array([[[0], [2]]], "int32")
    with pytest.raises(ValueError, match="ids from 0 to 1"):
        ops.assign_slots(expert, np.ones((1, 2, 1)), np.ones((1, 2, 2)), capacity=1)


@pytest.mark.parametrize("shape", [(24, 24, 3), (1, 24, 24, 1), (1, 2, 24, 24, 3)])
def test_images_of_another_rank_or_other_channels(shape):
    classifier = models.Classifier(tiny.vmoe(num_classes=2), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"images must have shape \[images, height, width, 3\]"):
        classifier.classify(np.zeros(shape, "uint8"))
    with pytest.raises(ValueError, match="images must have shape|expected"):
        classifier(np.zeros(shape, "uint8"))


def test_a_single_grey_image_is_not_taken_for_many():
    classifier = models.Classifier(tiny.vmoe(num_classes=2, channels=1), ["cat", "dog"])
    with pytest.raises(ValueError, match=r"images\[None\]"):
        classifier.classify(np.zeros((8, 8, 1), "uint8"))
    assert len(classifier.classify(np.zeros((2, 8, 8, 1), "uint8"))) == 2


def test_patches_of_other_channels():
    embedding = layers.PatchEmbedding(4, 8)
    embedding.build((None, 8, 8, 3))
    with pytest.raises(ValueError, match="3 channels, as built"):
        embedding(np.zeros((1, 8, 8, 1), "float32"))
