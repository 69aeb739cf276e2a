"""Images that are routed alone."""

import numpy as np
import pytest

from keras_vmoe import models, serving
from tests.models import tiny


@pytest.mark.parametrize("router", ["top_k", "expert_choice", "soft"])
def test_a_batch_gives_what_its_images_give_alone(router):
    model = tiny.vmoe(router=router)
    images = tiny.images(5)
    alone = np.concatenate([np.asarray(model(images[i : i + 1])) for i in range(5)])
    with serving.images_alone(model):
        together = np.asarray(model(images))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert {layer.images_per_group for layer in models.moe_layers(model)} == {3}
    assert np.abs(np.asarray(model(images)) - alone).max() > 1e-3, "groups have to matter here"


def test_an_export_of_images_alone(tmp_path):
    model = tiny.vmoe(num_layers=1, placement=(0,))
    with serving.images_alone(model):
        serving.export(model, tmp_path / "model.onnx", "onnx", batch_size=None)
    images = tiny.images(5)
    alone = np.concatenate([np.asarray(model(images[i : i + 1])) for i in range(5)])
    given = serving.load(tmp_path / "model.onnx")(images)
    np.testing.assert_allclose(given, alone, atol=1e-5)
