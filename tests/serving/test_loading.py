"""Loading exported models: what is none is said."""

import zipfile

import pytest

from keras_vmoe import serving


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.keras", b"", "SavedModel's folder, an .onnx or a .tflite"),
        ("model.tflite", b"nothing", "holds no metadata"),
        ("model.onnx", b"nothing", "cannot be opened as an ONNX file"),
    ],
)
def test_what_is_no_exported_model_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        serving.load(path)


def test_files_of_others(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        serving.load(tmp_path / "model.onnx")
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="holds no metadata"):
        serving.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.tflite", "w") as archive:
        archive.writestr("labels.txt", "a")
    with pytest.raises(ValueError, match="holds no metadata"):
        serving.load(tmp_path / "model.tflite")
