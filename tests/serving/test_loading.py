"""Loading exported models: what is none is said."""

import json
import zipfile

import numpy as np
import pytest

from keras_vmoe import serving
from keras_vmoe.serving import metadata, packages
from tests.models import tiny


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.keras", b"", "SavedModel's folder, an .onnx or a .tflite"),
        ("model.tflite", b"nothing", "holds no metadata"),
        ("model.onnx", b"nothing", "cannot be read as onnx: onnxruntime cannot open it"),
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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading") / "served"
    serving.export(tiny.vit(num_layers=1), path, verify=False)
    return path


@pytest.fixture
def facts_file(served):
    file = served / "assets.extra" / "keras_vmoe.json"
    text = file.read_text()
    yield file
    file.write_text(text)


def test_fields_of_a_later_version_are_left_out(served, facts_file):
    before = serving.load(served).metadata
    facts_file.write_text(json.dumps({**json.loads(facts_file.read_text()), "later": [1]}))
    assert serving.load(served).metadata == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "tensorrt"}, "in format 'saved_model'.*format='tensorrt'"),
        ({"format": "onnx"}, "in format 'saved_model'.*format='onnx'"),
        ({"input_shape": "many"}, "input_shape must be a list of sizes.*'many'"),
        ({"input_shape": [1, "x"]}, "input_shape must be a list of sizes"),
        ({"input_dtype": "float31"}, "input_dtype must be the name of a dtype.*'float31'"),
        ({"value_range": [1, 0]}, "value_range must be null or"),
        ({"class_names": [1]}, "class_names must be a list of strings"),
        ({"dispatch": []}, "dispatch must be an object"),
        ({"output_name": None}, "output_name must be a string"),
    ],
)
def test_altered_metadata_is_named(served, facts_file, change, message):
    facts_file.write_text(json.dumps({**json.loads(facts_file.read_text()), **change}))
    with pytest.raises(ValueError, match=f"served.*{message}"):
        serving.load(served)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as saved_model: Expecting property name"),
        ("[]", "must be an object"),
        ('{"format": "saved_model"}', "the fields input_name, input_shape, input_dtype, output_n"),
    ],
)
def test_broken_metadata_is_named(served, facts_file, text, message):
    facts_file.write_text(text)
    with pytest.raises(ValueError, match=f"served.*{message}"):
        serving.load(served)


def test_metadata_is_not_read_whatever_its_size(tmp_path, served, facts_file, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_BYTES", 100)
    with zipfile.ZipFile(tmp_path / "a.tflite", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("keras_vmoe.json", " " * 101)
    for path in (tmp_path / "a.tflite", served):
        with pytest.raises(ValueError, match="at most 100 bytes"):
            serving.load(path)


def test_a_damaged_zip_is_named(tmp_path):
    path = tmp_path / "a.tflite"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keras_vmoe.json", "{}")
    path.write_bytes(path.read_bytes().replace(b"{}", b"[]"))
    with pytest.raises(ValueError, match="a.tflite.*zip behind the model is damaged"):
        serving.load(path)


def test_an_onnx_file_is_opened_once(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    serving.export(tiny.vit(num_layers=1), path, "onnx", verify=False)
    runtime, opened = packages.load("onnxruntime"), []
    session = runtime.InferenceSession

    def counted(*args, **kwargs):
        opened.append(args)
        return session(*args, **kwargs)

    monkeypatch.setattr(runtime, "InferenceSession", counted)
    assert np.isfinite(serving.load(path)(tiny.images(1))).all()
    assert len(opened) == 1
