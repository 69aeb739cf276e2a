"""How often a router of whole images finds the super-class."""

import numpy as np
import pytest

from keras_vmoe import evaluation, models
from tests.models import tiny

IDS = [0, 1, 1]


def mobile(**arguments):
    model = models.MobileVMoE(**{**tiny.ARGUMENTS, "num_layers": 3}, num_experts=2, **arguments)
    tiny.spread(model)
    return model


def batches():
    """Seven images in two batches, the last padded."""
    images, labels = tiny.images(8), np.array([0, 1, 2, 0, 1, 2, 0, 0])
    mask = np.arange(8) < 7
    return [
        {"image": images[part], "label": labels[part], "mask": mask[part]}
        for part in (slice(4), slice(4, 8))
    ]


@pytest.mark.parametrize("k", [1, 2])
def test_it_counts_the_images_that_are_there(k):
    model = mobile(superclasses=IDS, num_selected=k)
    found = evaluation.image_routing(model, batches())
    outputs = models.with_router_outputs(model).predict(tiny.images(8), verbose=0)
    experts = outputs["experts"][:7]
    wanted = np.array(IDS)[[0, 1, 2, 0, 1, 2, 0]]
    assert found.images == 7
    assert found.accuracy == pytest.approx((experts[:, 0] == wanted).mean())
    shares = np.bincount(experts.ravel(), minlength=2) / experts.size
    np.testing.assert_allclose(found.expert_shares, shares)


def test_a_classifier_is_measured_by_its_model():
    model = mobile(superclasses=IDS)
    classifier = models.Classifier(model, list("abc"))
    pixels = [{**b, "image": (b["image"] + 1) * 127.5} for b in batches()]
    found, wanted = (
        evaluation.image_routing(*pair) for pair in ((classifier, pixels), (model, batches()))
    )
    assert found.accuracy == pytest.approx(wanted.accuracy)


def test_without_super_classes_there_is_no_accuracy():
    assert evaluation.image_routing(mobile(), batches()).accuracy is None


def test_the_evaluation_of_such_a_model_has_no_layers():
    result = evaluation.evaluate(mobile(), batches())
    assert (result.images, result.layers) == (7, {})


def test_bad_input():
    with pytest.raises(ValueError, match="model must be a MobileVMoE"):
        evaluation.image_routing(tiny.vit(), batches())
    with pytest.raises(ValueError, match="batches must hold at least one image"):
        evaluation.image_routing(mobile(), [])
