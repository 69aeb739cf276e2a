"""`keras-vmoe predict`: what it says of images, what it draws, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_vmoe import models, serving
from keras_vmoe.trainers import cli, predict, trained
from tests.models import tiny


def run(capsys, *words):
    code = cli.main(["predict", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answers(capsys, *words):
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def confidences(answer):
    return {entry["name"]: entry["confidence"] for entry in answer["classes"]}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A classifier in which neighbours matter."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    models.Classifier(tiny.vmoe(num_selected=1), ["ant", "bee", "cat"]).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images of different sizes, one of them grey, in two folders."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate(["a.png", "b.bmp", "c.gif", "more/a.png"]):
        pixels = rng.integers(0, 256, (10 + 5 * i, 24, 3), "uint8")
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(rng.integers(0, 256, (16, 16), "uint8")).save(folder / "grey.png")
    return folder


def test_each_image_is_answered_as_if_it_were_alone(model_file, folder, capsys):
    found = answers(capsys, model_file, folder)
    assert [answer["image"] for answer in found] == [
        str(folder / name) for name in ("a.png", "b.bmp", "c.gif", "grey.png", "more/a.png")
    ]
    classifier = trained.load(model_file).classifier()
    for answer in found:
        pixels = np.asarray(Image.open(answer["image"]).convert("RGB"))
        name, share = classifier.classify(pixels[None])[0]
        assert answer["classes"][0]["name"] == name
        assert answer["classes"][0]["confidence"] == pytest.approx(share, abs=1e-5)
        assert sum(confidences(answer).values()) == pytest.approx(1)
    for size in (1, 2):
        again = answers(capsys, model_file, folder, f"--batch_size={size}")
        for one, other in zip(found, again, strict=True):
            assert confidences(one) == pytest.approx(confidences(other), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("served", 1),
        pytest.param("model.onnx", None, marks=pytest.mark.slow),
        pytest.param("model.tflite", 1, marks=pytest.mark.slow),
    ],
)
def test_exported_models_say_the_same(model_file, folder, tmp_path, capsys, name, batch_size):
    import keras

    classifier = keras.models.load_model(model_file)
    formats = {"served": "saved_model", "model.onnx": "onnx", "model.tflite": "litert"}
    serving.export(classifier, tmp_path / name, formats[name], batch_size, verify=False)
    wanted = answers(capsys, model_file, folder)
    for one, other in zip(wanted, answers(capsys, tmp_path / name, folder), strict=True):
        assert confidences(one) == pytest.approx(confidences(other), abs=1e-5)


def test_a_workdir_in_words(finished_run, folder, capsys):
    code, out, _ = run(capsys, finished_run, folder / "a.png", "--top=2")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == str(folder / "a.png")
    assert len(lines) == 3
    assert all(line.endswith(tuple("0123456789")) and "%" in line for line in lines[1:])


def test_probabilities_of_a_run_are_those_of_its_loss(copied_run, folder, capsys):
    words = (folder / "a.png", "--top=10")
    softmax = confidences(answers(capsys, copied_run, *words)[0])
    with (copied_run / "config.gin").open("a") as config:
        config.write("\ntrain.loss = 'sigmoid'\n")
    sigmoid = confidences(answers(capsys, copied_run, *words)[0])
    assert list(sigmoid) == list(softmax)
    assert sum(softmax.values()) == pytest.approx(1)
    # Logits are the logs of the one, up to a constant, and the log odds of the other.
    odds = {name: p / (1 - p) for name, p in sigmoid.items()}
    total = sum(odds.values())
    assert {name: p / total for name, p in odds.items()} == pytest.approx(softmax, rel=1e-4)
    assert sum(sigmoid.values()) != pytest.approx(1, abs=0.1)
    file = confidences(answers(capsys, copied_run / "model.keras", *words)[0])
    assert file == pytest.approx(softmax)


def test_pictures_of_the_routing(model_file, folder, tmp_path, capsys):
    pictures = tmp_path / "new" / "pictures"
    paths = (folder / "a.png", folder / "more" / "a.png")
    code, _, _ = run(capsys, model_file, *paths, f"--routing={pictures}")
    assert code == 0
    files = sorted(pictures.iterdir())
    assert [file.name for file in files] == ["a_2_routing.png", "a_routing.png"]
    first, second = (np.asarray(Image.open(file)) for file in files)
    assert first.shape == second.shape
    assert first.std() > 10
    assert (first != second).any()


def test_unreadable_images_are_named_and_left_out(model_file, folder, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    code, out, err = run(capsys, model_file, broken, folder / "a.png", "--json")
    assert code == 1
    found = [json.loads(line) for line in out.splitlines()]
    assert "Unknown image file format" in found[0]["error"]
    assert confidences(found[1])
    assert f"warning  {broken} is left out: Unknown image" in err
    assert "1 of 2 images cannot be read" in err
    assert run(capsys, model_file, broken)[0] == 1


def test_ample_capacity(model_file, folder, capsys):
    found = answers(capsys, model_file, folder / "a.png", "--capacity_factor=4")[0]
    classifier = trained.load(model_file).classifier()
    ample = models.with_routing(classifier, capacity_factor=4.0)
    pixels = np.asarray(Image.open(folder / "a.png"))[None]
    name, share = ample.classify(pixels)[0]
    assert confidences(found)[name] == pytest.approx(share, abs=1e-5)
    assert classifier.classify(pixels)[0][1] != pytest.approx(share, abs=1e-3)


def test_models_that_do_not_fit_are_named(dense_run, folder, tmp_path, capsys):
    image = folder / "a.png"
    tiny.vit().save(tmp_path / "bare.keras")
    _, _, err = run(capsys, tmp_path / "bare.keras", image)
    assert "without class names; `keras-vmoe convert` gives it some with --class_names=FILE" in err
    _, _, err = run(capsys, dense_run, image, f"--routing={tmp_path}")
    assert "--routing needs a model with MoE layers, but this one is dense" in err
    serving.export(tiny.vit(), tmp_path / "bare", verify=False)
    assert "without class names" in run(capsys, tmp_path / "bare", image)[2]
    classifier = models.Classifier(tiny.vit(), "abc")
    serving.export(classifier, tmp_path / "pairs", batch_size=2, verify=False)
    assert "export it with --batch_size=1" in run(capsys, tmp_path / "pairs", image)[2]
    serving.export(classifier, tmp_path / "one", verify=False)
    assert "does not show" in run(capsys, tmp_path / "one", image, f"--routing={tmp_path}")[2]
    assert "cannot change" in run(capsys, tmp_path / "one", image, "--capacity_factor=2")[2]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["model.keras"], 2, "give MODEL and at least one image"),
        (["missing.keras", "photo.png"], 1, "missing.keras: there is no such file"),
        (["photo.png", "missing.png"], 1, "missing.png: there is no such file"),
        (["photo.png", "photo.png"], 1, "photo.png is no .keras file"),
        (["photo.png", "empty"], 1, "empty holds no images"),
        (["photo.png", "photo.png", "--top=0"], 2, "top"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").touch()
    (tmp_path / "empty").mkdir()
    found, _, err = run(capsys, *words)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_an_exported_encoder_of_pairs_has_no_classes():
    facts = serving.Metadata("onnx", "images", (1, 8, 8, 3), "float32", "embeddings", (1, 4))
    encoder = serving.ExportedModel(Path("image.onnx"), facts, lambda images: images)
    with pytest.raises(ValueError, match=r"image.onnx holds an encoder.*keras-vmoe zeroshot"):
        predict._of_exported(encoder)
