"""The comparison of exported files with Keras."""

import numpy as np
import pytest

from keras_vmoe.serving import Metadata, verification
from tests.models import tiny


class Standing:
    """In the place of an exported model: Keras' outputs, changed."""

    def __init__(self, model, change, batch_size=None):
        self.path = type("P", (), {"name": "file"})
        shape = (batch_size, 16, 16, 3)
        self.metadata = Metadata("onnx", "images", shape, "float32", "logits", (batch_size, 3))
        self.model, self.change, self.sizes = model, change, []

    def outputs(self, images):
        self.sizes.append(len(images))
        return {"logits": self.change(np.asarray(self.model(images)), len(self.sizes))}


def test_an_open_batch_is_tried_alone_and_beyond_a_group():
    model = tiny.vmoe()
    exported = Standing(model, lambda x, _: x)
    assert verification.compare_with_keras(model, exported) <= 1e-6
    assert exported.sizes == [1, 4]
    fixed = Standing(model, lambda x, _: x, batch_size=2)
    verification.compare_with_keras(model, fixed)
    assert fixed.sizes == [2]


def test_a_decision_within_the_rounding_may_fall_either_way():
    model = tiny.vmoe()
    once = Standing(model, lambda x, call: x + (call == 1), batch_size=2)
    assert verification.compare_with_keras(model, once) <= 1e-6
    always = Standing(model, lambda x, _: x + 3e-5 * max(1, np.abs(x).max()), batch_size=2)
    with pytest.raises(RuntimeError, match="file differs .* on each of 3 random batches of 2"):
        verification.compare_with_keras(model, always)
    short = Standing(model, lambda x, _: x[:, :2], batch_size=2)
    with pytest.raises(RuntimeError, match=r"\(2, 2\), Keras of \(2, 3\)"):
        verification.compare_with_keras(model, short)


def test_dtypes_of_a_model():
    assert verification.compute_dtypes(tiny.vmoe()) == {"float32"}
    assert verification.compute_dtypes(tiny.vmoe(dtype="mixed_float16")) == {"float16"}
