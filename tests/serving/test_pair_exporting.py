"""Exported models of image-text pairs, beside Keras."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_vmoe import models, serving, text
from tests.models import tiny

TEXTS = ["a cat", "The DOG", "a dog on a cat", "cat 7"]


def pair_model(cls=models.LIMoE, **arguments):
    """Texts of up to five tokens, and few slots: tokens are dropped out of training too."""
    words = text.train_tokenizer(["a cat", "the dog on a cat"], vocabulary_size=40)
    sizes = {n: tiny.ARGUMENTS[n] for n in ("image_size", "patch_size", "width", "mlp_dim")}
    sizes |= {"num_layers": 1, "num_heads": 2, "text_length": 5, "eval_capacity_factor": 1.0}
    sizes |= {"placement": (0,), "num_experts": 4, "pairs_per_group": 2}
    model = cls(**sizes, **arguments, vocabulary_size=words.vocabulary_size)
    tiny.spread(model)
    return models.ImageTextModel(model, words.model, value_range=(0.0, 1.0))


def pictures(count, height=21, width=13):
    rng = np.random.default_rng(count)
    return rng.uniform(0, 255, (count, height, width, 3)).astype("float32")


def assert_alike(exported, model, **size):
    for count in (1, 3):
        images = pictures(count, **size)
        wanted = model.encode_image(images)
        np.testing.assert_allclose(exported.encode_image(images), wanted, atol=1e-5)
    wanted = model.encode_text(TEXTS)
    np.testing.assert_allclose(exported.encode_text(TEXTS), wanted, atol=1e-5)
    assert np.abs(wanted - wanted[0]).max() > 0.01, "texts have to matter here"


@pytest.fixture(scope="module")
def model():
    return pair_model()


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "served"
    serving.export_pairs(model, path, batch_size=None)
    return path


def test_a_saved_model_takes_images_of_any_size_and_strings(model, served):
    exported = serving.load_pairs(served)
    facts = exported.metadata
    assert (facts.image.input_name, facts.image.input_shape) == ("images", (None, None, None, 3))
    assert facts.image.value_range == (0.0, 255.0)
    assert (facts.text.input_name, facts.text.input_dtype) == ("texts", "string")
    assert facts.image.output_name == facts.text.output_name == "embeddings"
    assert facts.imports == ("tensorflow_text",)
    assert_alike(exported, model)


def test_sparse_towers_with_a_bias(tmp_path):
    model = pair_model(models.TwoTower, text_placement=(0,), loss="sigmoid")
    serving.export_pairs(model, tmp_path / "served", batch_size=None, verify=False)
    assert_alike(serving.load_pairs(tmp_path / "served"), model)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "litert"])
def test_a_file_of_each_encoder(model, tmp_path, file_format):
    path = tmp_path / "served"
    facts = serving.export_pairs(model, path, file_format, batch_size=None)
    suffix = {"onnx": "onnx", "litert": "tflite"}[file_format]
    names = {f"image.{suffix}", f"text.{suffix}", "tokenizer.model", "keras_vmoe_pairs.json"}
    assert {file.name for file in path.iterdir()} == names
    assert (path / "tokenizer.model").read_bytes() == model.vocabulary
    assert facts.image.input_shape == (None, 16, 16, 3)
    assert facts.text.input_shape == (None, 5)
    assert facts.imports == ()
    exported = serving.load_pairs(path)
    assert exported.metadata == facts
    assert_alike(exported, model, height=16, width=16)
    with pytest.raises(ValueError, match="texts must not be empty"):
        exported.encode_text(["a cat", " "])
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt'.*not overwritten"):
        serving.export_pairs(model, path, file_format, overwrite=True)


@pytest.mark.slow
def test_in_a_process_that_has_tensorflow_text_alone(model, served, tmp_path):
    images = pictures(2)
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, numpy as np, tensorflow as tf, tensorflow_text\n"
        "path, folder = sys.argv[1:]\n"
        "loaded = tf.saved_model.load(path)\n"
        "images = tf.constant(np.load(folder + '/images.npy'))\n"
        "image = loaded.signatures['encode_image'](images=images)['embeddings']\n"
        f"texts = loaded.encode_text(tf.constant({TEXTS}))['embeddings']\n"
        "try:\n    loaded.encode_text(tf.constant(['a cat', ' ']))\n"
        "except tf.errors.InvalidArgumentError as error:\n"
        "    assert 'texts must not be empty' in str(error)\n"
        "else:\n    raise AssertionError('an empty text is taken')\n"
        "assert not [m for m in sys.modules if m.startswith(('keras_vmoe', 'sentencepiece'))]\n"
        "np.savez(folder + '/out.npz', image=image, texts=texts)\n"
    )
    command = [sys.executable, "-c", program, str(served), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    given = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(given["image"], model.encode_image(images), atol=1e-5)
    np.testing.assert_allclose(given["texts"], model.encode_text(TEXTS), atol=1e-5)


def test_each_routed_alone(model, tmp_path):
    with serving.images_alone(model):
        serving.export_pairs(model, tmp_path / "served", batch_size=None, verify=False)
    exported = serving.load_pairs(tmp_path / "served")
    alone = np.concatenate([model.encode_text([one]) for one in TEXTS])
    np.testing.assert_allclose(exported.encode_text(TEXTS), alone, atol=1e-5)
    assert np.abs(model.encode_text(TEXTS) - alone).max() > 1e-3, "groups have to matter here"


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_an_encoder_that_differs_is_not_kept(model, tmp_path, monkeypatch, encoder):
    called = serving.ExportedModel.outputs

    def changed(self, inputs):
        is_text = self.metadata.input_dtype == "string"
        added = 1e-3 * (is_text == (encoder == "text"))
        return {name: output + added for name, output in called(self, inputs).items()}

    monkeypatch.setattr(serving.ExportedModel, "outputs", changed)
    with pytest.raises(RuntimeError, match=r"served differs from the Keras model by 0.00"):
        serving.export_pairs(model, tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_what_stands_at_the_target(model, served, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite it"):
        serving.export_pairs(model, served)
    with pytest.raises(ValueError, match="path must be a folder.*two encoders"):
        serving.export_pairs(model, tmp_path / "model.onnx", "onnx")
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileExistsError, match="photos exists and is no exported model of pairs"):
        serving.export_pairs(model, tmp_path / "photos", overwrite=True)
    with pytest.raises(FileExistsError, match="format='onnx', so it is not overwritten"):
        serving.export_pairs(model, served, "onnx", overwrite=True)
    (served / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 'notes.txt'"):
        serving.export_pairs(model, served, overwrite=True)
    (served / "notes.txt").unlink()
    serving.export_pairs(model, served, batch_size=None, overwrite=True, verify=False)
    assert serving.load_pairs(served).metadata.image.batch_size is None


def test_each_kind_of_model_has_its_function(model, tmp_path):
    with pytest.raises(ValueError, match=r"serving.export_pairs writes.*ImageTextModel"):
        serving.export(model, tmp_path / "served")
    with pytest.raises(ValueError, match="must be an ImageTextModel.*a VMoE"):
        serving.export_pairs(tiny.vmoe(), tmp_path / "served")
    with pytest.raises(ValueError, match="format must be one of"):
        serving.export_pairs(model, tmp_path / "served", "tensorrt")


def test_metadata_is_that_of_the_folder(served):
    file = served / "assets.extra" / "keras_vmoe_pairs.json"
    facts = serving.load_pairs(served).metadata
    assert json.loads(file.read_text())["imports"] == ["tensorflow_text"]
    assert serving.PairMetadata.from_json(file.read_text()) == facts
