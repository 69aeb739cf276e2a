"""`train.retokenization`: runs of coarse phases, on from wherever they stopped."""

import shutil

import keras
import numpy as np
import pytest

from keras_vmoe import models
from keras_vmoe.trainers import jax_run
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.retokenization import Retokenization, phases_of
from tests.trainers.tiny import train

TINY = (
    "AsViT.genotype='8,2,2|4,1,2|4,1,2|2,1,2|8,8'",
    "train.batch_size=16",
    "train.eval_batch_size=360",
    "train.steps=6",
    "train.log_every=1",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=9",
    "train.keep_best=False",
    # Of 90 steps an epoch has.
    "train.retokenization=((0.0222, 16, 5), (0.0444, 8, 2))",
)


def run(workdir, *bindings):
    return train(workdir, *bindings, gin_file="runs/asvit/quickstart.gin", tiny=TINY)


def rows(workdir, *names):
    found = MetricsLog(workdir / "metrics.jsonl").rows()
    return [tuple(row[name] for name in names) for row in found if row["split"] == "train"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps in each phase."""
    workdir = tmp_path_factory.mktemp("retokenized")
    assert run(workdir) == 0
    return workdir


def test_each_phase_has_its_tokens(trained):
    assert rows(trained, "step", "token_stride") == list(
        zip(range(1, 7), [16, 16, 8, 8, 4, 4], strict=True)
    )
    # One warm-up and one cosine, whatever the phase.
    rates = [rate for (rate,) in rows(trained, "learning_rate")]
    np.testing.assert_allclose(rates, [2e-3 / 3, 4e-3 / 3, 2e-3, 1.5e-3, 5e-4, 0.0], atol=1e-8)


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 5]
)
def test_a_run_goes_on_from_each_phase(trained, tmp_path, capsys, step):
    workdir = tmp_path / "workdir"
    shutil.copytree(trained, workdir)
    (workdir / "model.keras").unlink()
    name = next((workdir / "checkpoints").glob(f"*-{step}.index")).stem
    for path in (workdir / "checkpoints").glob("*-*.*"):
        if int(path.stem.split("-")[-1]) > step:
            path.unlink()
    (workdir / "checkpoints" / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    assert run(workdir) == 0
    assert f"resume   from step {step}" in capsys.readouterr().out
    found = rows(workdir, "step", "loss", "accuracy")
    np.testing.assert_allclose(found, rows(trained, "step", "loss", "accuracy"), rtol=1e-5)


def test_the_saved_model_has_its_own_tokens(trained):
    classifier = keras.models.load_model(trained / "model.keras")
    assert isinstance(classifier.model, models.AsViT)


def test_phases_by_step():
    model = models.AsViT("4,2,2|2,1,2|2,1,2|2,1,2|8,8", num_classes=2, image_size=32)
    phases = Retokenization(model, phases_of(((1.5, 16, 5), (3, 8, 2))), 10, 100)
    assert [phases.at(step) for step in (0, 14, 15, 29, 30, 99)] == [0, 0, 1, 1, 2, 2]
    assert [phases.stride(step) for step in (1, 15, 16, 30, 31)] == [16, 16, 8, 8, 4]
    assert phases.models[2] is model
    assert str(phases) == "stride 16 to epoch 1.5, stride 8 to epoch 3, then 4"
    with pytest.raises(ValueError, match="ends with epoch 3, step 30, but the run ends with step"):
        Retokenization(model, phases.phases, 10, 30)
    for setting in (((0.001, 16, 5),), ((1, 16, 5), (1.001, 8, 2))):
        with pytest.raises(ValueError, match="train.retokenization must give each phase a step"):
            Retokenization(model, phases_of(setting), 10, 100)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ((40, 16, 5), "must hold"),
        (((40, 16),), "must hold"),
        (((0, 16, 5),), "must hold"),
        (((40, 16.5, 5),), "must hold"),
        (None, "must hold"),
        (((40, 16, 5), (40, 8, 2)), "later than the one before"),
        (((1, 4, 1), (2, 16, 5)), "multiples of the model's 4 pixels and above"),
        (((40, 6, 2),), "train.retokenization=.*multiples of the model's 4"),
        (((1, 8, 2), (2, 16, 5)), "finer from each phase to the next"),
        (((float("inf"), 16, 5),), "must hold"),
        (((float("nan"), 16, 5),), "must hold"),
    ],
)
def test_what_is_no_schedule_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        phases_of(setting)


def config(**changes):
    references = {"model": models.AsViT, "optimizer": print, "dataset": print, "image_size": 32}
    return TrainConfig(**references, retokenization=((1, 16, 5),), **changes)


def test_trainers_that_cannot_do_it_say_so():
    with pytest.raises(ValueError, match="train.retokenization.*not built for a mesh"):
        config(distribution="mesh", mesh="batch:2")
    with pytest.raises(ValueError, match="train.retokenization.*training on JAX has one graph"):
        jax_run.require_supported(config())


def test_other_models_are_refused(tmp_path, capsys):
    words = ("train.steps=20", "train.batch_size=64", "train.retokenization=((0.1, 16, 5),)")
    assert train(tmp_path, *words) == 1
    assert "model must be an AsViT" in capsys.readouterr().err
