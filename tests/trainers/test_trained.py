"""Trained models are found by workdir or file, with their data."""

import os

import keras
import numpy as np
import pytest

import gin
from keras_vmoe import data, models
from keras_vmoe.trainers import configurables, gin_config, trained
from tests.models import tiny

DIGITS = tuple(str(digit) for digit in range(10))


def weights_of(path):
    model = keras.models.load_model(path, compile=False)
    return model.get_weights()


def assert_same_weights(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_a_finished_run(finished_run):
    found = trained.load(finished_run)
    assert (found.image_size, found.channels, found.num_classes) == (16, 1, 10)
    assert found.class_names == DIGITS
    assert found.origin == str(finished_run / "model.keras")
    assert found.config.label_smoothing == 0.1
    assert found.source.name == "digits"
    assert_same_weights(found.model.get_weights(), weights_of(finished_run / "model.keras"))
    batches = list(found.eval_batches(200))
    assert [batch["image"].shape for batch in batches] == [(200, 16, 16, 1), (160, 16, 16, 1)]
    assert float(np.min(batches[0]["image"])) == -1.0
    held_out = data.load("digits").eval
    np.testing.assert_array_equal(batches[0]["label"], held_out.labels[:200])
    first = next(iter(found.eval_batches(5, held_out)))
    np.testing.assert_array_equal(first["image"], batches[0]["image"][:5])


def test_an_unfinished_run_has_the_averaged_weights_of_its_checkpoint(copied_run):
    wanted = weights_of(copied_run / "model.keras")
    (copied_run / "model.keras").unlink()
    found = trained.load(copied_run)
    assert_same_weights(found.model.get_weights(), wanted)
    assert found.class_names == DIGITS
    assert found.origin == f"{copied_run}, step 6"
    config = copied_run / "config.gin"
    config.write_text(config.read_text().replace("train.steps = 6", "train.steps = 8"))
    assert trained.load(copied_run).origin == f"{copied_run}, step 6 (not finished)"


def test_the_best_checkpoint(copied_run):
    best = copied_run / "checkpoints" / "best"
    (index,) = best.glob("ckpt-*.index")
    found = trained.load(best)
    assert found.origin == f"{best}, step {index.stem.removeprefix('ckpt-')}"
    assert found.source.name == "digits"
    (copied_run / "config.gin").unlink()
    with pytest.raises(ValueError, match=r"config\.gin is missing"):
        trained.load(best)


def test_a_run_that_goes_on_after_its_end(copied_run):
    (index,) = (copied_run / "checkpoints").glob("ckpt-6.index")
    file = copied_run / "model.keras"
    os.utime(file, (index.stat().st_mtime - 10,) * 2)
    assert "step 6" in trained.load(copied_run).origin


def test_a_damaged_model_gives_way_to_the_checkpoint(copied_run, capsys):
    file = copied_run / "model.keras"
    wanted = weights_of(file)
    file.write_bytes(file.read_bytes()[:1000])
    assert_same_weights(trained.load(copied_run).model.get_weights(), wanted)
    assert "model.keras is damaged; taking the newest checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot be loaded as a Keras model: it is damaged"):
        trained.load(file)


def test_an_empty_config_is_told(copied_run):
    (copied_run / "model.keras").unlink()
    (copied_run / "config.gin").write_text("")
    with pytest.raises(ValueError, match=r"config\.gin is empty"):
        trained.load(copied_run)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copied_run, capsys):
    (copied_run / "model.keras").unlink()
    newest = copied_run / "checkpoints" / "ckpt-6.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:100])
    found = trained.load(copied_run)
    assert "step 4" in found.origin
    warning = capsys.readouterr().err
    assert "warning  " in warning
    assert "a checkpoint is damaged and passed over, ckpt-6" in warning
    before = copied_run / "checkpoints" / "ckpt-4.data-00000-of-00001"
    before.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint that can be read .*ckpt-6.*ckpt-4"):
        trained.load(copied_run)


def test_gin_stays_as_it_was(copied_run):
    (copied_run / "model.keras").unlink()
    gin_config.parse(["runs/quickstart_dense.gin"], ["train.seed=5"])
    configurables.train_config()
    before = (gin_config.operative(), gin.config_str())
    found = trained.load(copied_run, gin_bindings=["train.label_smoothing=0.25"])
    assert found.config.label_smoothing == 0.25
    assert found.config.seed == 0
    assert found.source.num_classes == 10
    assert (gin_config.operative(), gin.config_str()) == before
    with pytest.raises(ValueError, match="lable"):
        _ = trained.load(copied_run, gin_bindings=["train.lable=1"]).config
    assert (gin_config.operative(), gin.config_str()) == before


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.keras"
    models.Classifier(tiny.vit(channels=1, num_classes=10), DIGITS).save(path)
    return path


def test_a_file_with_data_of_its_own(file):
    found = trained.load(file)
    assert (found.image_size, found.channels, found.class_names) == (16, 1, DIGITS)
    assert found.config is None
    with pytest.raises(ValueError, match="--dataset=NAME"):
        _ = found.source
    for words in ({"gin_files": ["data/digits.gin"]}, {"gin_bindings": ["dataset.name='digits'"]}):
        found = trained.load(file, **words)
        assert found.source.name == "digits"
        assert next(iter(found.eval_batches()))["image"].shape == (256, 16, 16, 1)
    with pytest.raises(ValueError, match="--dataset=NAME"):
        _ = trained.load(file, gin_bindings=["train.eval_batch_size=2"]).source


def test_the_crop_of_the_gin_file_is_taken(file):
    bindings = ["dataset.name='digits'", "train.eval_crop=@CentralCrop()", "CentralCrop.resize=24"]
    found = trained.load(file, gin_bindings=bindings)
    squashed = next(iter(trained.load(file, gin_bindings=bindings[:1]).eval_batches(4)))["image"]
    assert np.abs(next(iter(found.eval_batches(4)))["image"] - squashed).max() > 0.1


def test_other_value_ranges_are_mapped(tmp_path):
    vit = tiny.vit()
    models.Classifier(vit, "abc", value_range=(0.5, 2.5)).save(tmp_path / "model.keras")
    x = tiny.images(2)
    found = trained.load(tmp_path / "model.keras").model
    np.testing.assert_allclose(found(x), vit(x + 1.5), atol=1e-5)


def test_a_model_without_names(tmp_path):
    tiny.vit().save(tmp_path / "bare.keras")
    found = trained.load(tmp_path / "bare.keras")
    assert (found.class_names, found.num_classes) == ((), 3)


def written(path, text=""):
    path.write_text(text)
    return path


def saved(model, path):
    model.save(path)
    return path


def tabular():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda at: at / "nothing", FileNotFoundError, "nothing: there is no such file or folder"),
        (lambda at: at, ValueError, "neither model.keras nor config.gin"),
        (lambda at: written(at / "config.gin").parent, ValueError, "no checkpoint yet"),
        (lambda at: written(at / "a.h5"), ValueError, "a.h5 is no .keras file"),
        (lambda at: written(at / "a.keras"), ValueError, "cannot be loaded as a Keras model"),
        (
            lambda at: saved(tiny.vit(image_size=(16, 8)), at / "a.keras"),
            ValueError,
            r"square images .* from \(None, 16, 8, 3\)",
        ),
        (
            lambda at: saved(tabular(), at / "a.keras"),
            ValueError,
            r"Sequential from \(None, 4\) to \(None, 2\)",
        ),
    ],
)
def test_what_is_no_model_is_told(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        trained.load(make(tmp_path))


def test_a_checkpoint_of_another_model(copied_run):
    (copied_run / "model.keras").unlink()
    config = copied_run / "config.gin"
    config.write_text(config.read_text().replace("VMoE.width = 8", "VMoE.width = 16"))
    with pytest.raises(ValueError, match="ckpt-6 is not of the model of .*config.gin"):
        trained.load(copied_run)
