"""As-ViT in every format that `serving.export` writes; `verify` compares each with Keras."""

import pytest

from keras_vmoe import serving
from tests.models.test_as_vit import tiny_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "name"),
    [("saved_model", "model"), ("litert", "model.tflite"), ("onnx", "model.onnx")],
)
def test_windows_that_are_filled_up_are_exported(file_format, name, tmp_path):
    model = tiny_model(pos_emb="absolute", image_size=(50, 70), pretrain_size=64)
    metadata = serving.export(model, tmp_path / name, format=file_format)
    assert metadata.input_shape[1:] == (50, 70, 3)
    assert serving.load(tmp_path / name) is not None
