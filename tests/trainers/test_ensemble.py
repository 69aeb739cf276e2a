"""A run of an efficient ensemble: members learn, their mean is what is measured and kept."""

import json
import re

import keras
import numpy as np
import pytest

from keras_vmoe import ops
from keras_vmoe.trainers import cli, trained
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers import test_on_jax
from tests.trainers.tiny import PICTURE, SHORT, TINY_ENSEMBLE, train

GIN_FILE = "runs/e3/digits.gin"


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def run(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    words = (f"train.loss='{request.param}'", "train.label_smoothing=0.1")
    assert train(workdir, *words, PICTURE, gin_file=GIN_FILE, tiny=TINY_ENSEMBLE + SHORT) == 0
    return workdir


def held_out(run):
    model = trained.load(run)
    return model, np.concatenate([batch["label"] for batch in model.eval_batches(256)])


def test_the_held_out_row_is_of_the_mean_probability(run):
    row = MetricsLog(run / "metrics.jsonl").last("eval")
    model, labels = held_out(run)
    members = trained.load(run).config.model(image_size=16, channels=1, num_classes=10)
    members.set_weights(model.model.get_weights())
    images = [batch["image"] for batch in model.eval_batches(256)]
    logits = np.concatenate([np.asarray(members(x)) for x in images])
    assert logits.shape == (360, 2, 10)
    together = ops.ensemble_logits(logits, model.config.loss)
    accuracy = (np.asarray(together).argmax(-1) == labels).mean()
    assert row["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    loss = ops.classification_loss(labels, together, model.config.loss, 0.1)
    assert row["loss"] == pytest.approx(float(np.mean(loss)), abs=1e-4)


def test_file_and_checkpoint_give_the_mean_probability(run):
    model, _ = held_out(run)
    assert model.model.output_shape == (None, 10)
    x = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype("float32")
    best = trained.load(run / "checkpoints" / "best")
    assert best.model.output_shape == (None, 10)
    assert best.num_classes == 10
    (average,) = [x for x in best.model.layers if type(x).__name__ == "EnsembleAverage"]
    assert average.kind == model.config.loss
    classifier = keras.models.load_model(run / "model.keras")
    pixels = np.asarray((x + 1) * 127.5)
    np.testing.assert_allclose(classifier(pixels), np.asarray(model.model(x)), atol=1e-4)


def test_evaluate_prints_its_calibration_and_sweeps(run, capsys, tmp_path):
    assert cli.main(["evaluate", f"--workdir={run}"]) == 0
    printed = capsys.readouterr().out
    row = MetricsLog(run / "metrics.jsonl").last("eval")
    numbers = re.search(
        r"accuracy ([\d.]+)%, loss ([\d.]+), NLL ([\d.]+), Brier ([\d.]+), ECE ([\d.]+)%", printed
    )
    accuracy, loss, nll, brier, ece = map(float, numbers.groups())
    assert accuracy == pytest.approx(100 * row["accuracy"], abs=0.006)
    assert loss == pytest.approx(row["loss"], abs=6e-4)
    assert 0 < nll < 5
    assert 0 < brier < 2
    assert 0 <= ece <= 100
    words = ["--sweep", "--capacity_factors=0.5", "--priority=bpr", "--rounds=0"]
    assert cli.main(["evaluate", f"--workdir={run}", f"--out={tmp_path}", *words]) == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [row["num_selected"] for row in rows] == [1]


def test_it_starts_from_a_v_moe(tmp_path, capsys):
    assert train(tmp_path / "single", "train.steps=2", "VMoE.patch_size=4") == 0
    words = (f"train.init_from='{tmp_path / 'single'}'", "train.steps=1")
    tiny = TINY_ENSEMBLE + SHORT
    code = train(tmp_path / "tuned", *words, gin_file=GIN_FILE, tiny=tiny)
    assert code == 0
    assert (
        "shared out: encoder_block_0/encoder_block_0_moe/router/kernel" in capsys.readouterr().out
    )


def test_it_goes_on_where_it_stopped(tmp_path):
    tiny = TINY_ENSEMBLE + SHORT
    assert train(tmp_path, "train.steps=4", gin_file=GIN_FILE, tiny=tiny) == 0
    assert train(tmp_path, "train.steps=6", gin_file=GIN_FILE, tiny=tiny) == 0
    assert MetricsLog(tmp_path / "metrics.jsonl").last("eval")["step"] == 6


@pytest.mark.slow
@pytest.mark.jax
@pytest.mark.multi_device
def test_on_jax_it_is_the_run_on_tensorflow(tmp_path):
    words = ["train.model=@EfficientEnsemble", *TINY_ENSEMBLE, PICTURE]
    words += ["EfficientEnsemble.noise_std=0.0", "EfficientEnsemble.images_per_group=4"]
    words += ["EfficientEnsemble.patch_size=8", "EfficientEnsemble.capacity_factor=0.9"]
    runs = {"jax": (), "tensorflow": (), "mesh": ("--mesh=batch:2,expert:2",)}
    for name, flags in runs.items():
        backend = "tensorflow" if name == "tensorflow" else "jax"
        done = test_on_jax.run(tmp_path / name, *words, *flags, backend=backend)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "EfficientEnsemble" in done.stdout
    for name in ("tensorflow", "mesh"):
        test_on_jax.assert_same_rows(tmp_path / name, tmp_path / "jax")
    files = [tmp_path / name / "model.keras" for name in ("jax", "tensorflow")]
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype("uint8")
    ours, theirs = (keras.models.load_model(file).predict(images, verbose=0) for file in files)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
