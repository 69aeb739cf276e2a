"""`keras-vmoe export`: what it writes, what it says, what it refuses."""

import re

import numpy as np
import pytest

from keras_vmoe import serving
from keras_vmoe.trainers import cli, trained
from tests.models import tiny


def run(capsys, *words):
    code = cli.main(["export", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_a_workdir_as_onnx(finished_run, tmp_path, capsys):
    path = tmp_path / "new" / "model.onnx"
    code, out, err = run(capsys, finished_run, path, "--batch_size=dynamic", "--images_alone")
    assert code == 0, err
    assert "input    images [any, 16, 16, 1] float32, 0 to 255" in out
    assert "output   logits [any, 10], 10 classes" in out
    assert re.search(r"dispatch \w+ in 1 MoE layers\nwrote    .*model.onnx: onnx, [\d.]+ MB, ", out)
    classifier = trained.load(finished_run).classifier()
    pixels = np.random.default_rng(0).uniform(0, 255, (5, 16, 16, 1)).astype("float32")
    alone = [np.asarray(classifier(pixels[i : i + 1])) for i in range(5)]
    exported = serving.load(path)
    np.testing.assert_allclose(exported(pixels), np.concatenate(alone), atol=1e-5)
    assert exported.metadata.class_names == tuple("0123456789")


def test_a_file_without_class_names(tmp_path, capsys):
    tiny.vmoe(num_layers=1, placement=(0,)).save(tmp_path / "model.keras")
    words = (tmp_path / "model.keras", tmp_path / "served", "--capacity_factor=4")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "input    images [1, 16, 16, 3] float32, -1 to 1\n" in out
    assert "output   logits [1, 3]\n" in out
    assert re.search(r"served: saved_model, [\d.]+ MB, gives what Keras gives", out)
    model = tiny.vmoe(num_layers=1, placement=(0,), capacity_factor=4.0)
    given = serving.load(tmp_path / "served")(tiny.images(1))
    np.testing.assert_allclose(given, np.asarray(model(tiny.images(1))), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["model.keras"], 2, "give MODEL and TARGET. Received: 1 words"),
        (["missing", "model.onnx"], 1, "missing: there is no such file"),
        (["here", "model.onx"], 2, "TARGET must end in .onnx or .tflite, or in nothing"),
        (["here", "here"], 1, "here exists; name another target, or give --overwrite"),
        (["here", "model.onnx", "--batch_size=many"], 2, "--batch_size=many"),
        (["here", "model.onnx", "--batch_size=0"], 2, "--batch_size=0"),
        (["here", "model.onnx", "--format=pb"], 2, "pb"),
        (["here", "gs://bucket/model"], 2, "gs://bucket/model is an address"),
        (["here", "model.onnx"], 1, "here is no .keras file"),
        (["here", "model.onnx", "--format=litert"], 1, "here is no .keras file"),
        (["here", "model.onnx", "--precision=int8"], 2, "--precision=int8 is of --format=litert"),
        (["here", "model.tflite", "--precision=int4"], 2, "--precision=int4"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    found, _, err = run(capsys, *words)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_weights_of_eight_bits(tmp_path, capsys):
    tiny.vit(num_layers=1).save(tmp_path / "model.keras")
    path = tmp_path / "model.tflite"
    code, out, err = run(capsys, tmp_path / "model.keras", path, "--precision=int8")
    assert code == 0, err
    assert re.search(r"model.tflite: litert in int8, [\d.]+ MB, gives what Keras gives", out)
    assert serving.load(path).metadata.precision == "int8"
