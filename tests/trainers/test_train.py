"""`keras-vmoe train` from end to end, in this process."""

import json
import os
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.models import moe_layers
from keras_vmoe.trainers import optimizers, run, stopping
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import PICTURE, train

MEASURES = {"loss", "accuracy", "auxiliary_loss", "images_per_second"}
ROUTING = {"expert_load_min", "expert_load_max", "dropped", "confidence", "entropy"}


def rows(workdir):
    return MetricsLog(workdir / "metrics.jsonl").rows()


def losses(workdir):
    return [(row["step"], row["split"], row["loss"], row["accuracy"]) for row in rows(workdir)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole tiny run of 6 steps, evaluated at 4 and 6."""
    workdir = tmp_path_factory.mktemp("trained")
    assert train(workdir, "train.checkpoint_every=2", PICTURE) == 0
    return workdir


def test_it_writes_what_it_promises(trained):
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints",
        "config.gin",
        "metrics.jsonl",
        "model.keras",
        "routing.png",
        "tensorboard",
    }
    assert len(list(trained.glob("checkpoints/*.index"))) == 2
    for split in ("train", "eval"):
        assert list(trained.glob(f"tensorboard/{split}/events*"))
    assert "VMoE.num_experts = 4" in (trained / "config.gin").read_text()


def test_metrics_are_one_object_a_line(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in lines] == [
        (2, "train"),
        (4, "train"),
        (4, "eval"),
        (6, "train"),
        (6, "eval"),
    ]
    for row in lines:
        assert row.keys() >= MEASURES
        assert row.keys() >= {f"encoder_block_0_moe/{name}" for name in ROUTING}
        assert 0 <= row["accuracy"] <= 1
        assert ("learning_rate" in row) == (row["split"] == "train")


def test_every_held_out_image_is_evaluated_once(trained):
    accuracy = rows(trained)[-1]["accuracy"]
    assert accuracy * 360 == pytest.approx(round(accuracy * 360), abs=1e-3)
    load = rows(trained)[-1]["encoder_block_0_moe/expert_load_max"]
    assert load >= 1 / 4


def test_the_saved_model_takes_raw_images_and_agrees_with_the_evaluation(trained):
    from keras_vmoe import data

    model = keras.models.load_model(trained / "model.keras")
    assert list(model.class_names) == [str(digit) for digit in range(10)]
    batch = next(iter(data.make_dataset(data.load("digits").eval, 360, 8, training=False)))
    logits = model.predict((batch["image"].numpy() + 1) * 127.5, batch_size=256, verbose=0)
    accuracy = np.mean(logits.argmax(-1) == batch["label"].numpy())
    assert accuracy == pytest.approx(rows(trained)[-1]["accuracy"], abs=1e-6)


def test_the_checkpoint_holds_the_seeds(trained):
    names = [name for name, _ in tf.train.list_variables(str(trained / "checkpoints"))]
    for part in ("seeds/0", "step", "optimizer/", "means/0"):
        assert any(name.startswith(part) for name in names)


def test_the_same_command_again_says_that_it_is_done(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert train(trained, "train.checkpoint_every=2", PICTURE) == 0
    assert capsys.readouterr().out.startswith("already trained to step 6 in ")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_another_configuration_is_refused_and_harms_nothing(trained, capsys):
    before = (trained / "metrics.jsonl").read_text()
    assert train(trained, "VMoE.num_experts=8") == 1
    assert "VMoE.num_experts 4 -> 8" in capsys.readouterr().err
    assert (trained / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("stop_at", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    trained, tmp_path, monkeypatch, capsys, stop_at
):
    checks = iter(range(100))

    def check(self):
        # Steps and evaluation batches both ask; 4 is between the round and its evaluation.
        if next(checks) == stop_at:
            raise stopping.StopRequested(2)

    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "check", check)
        assert train(tmp_path) == 130
    assert f"stopped by SIGINT at step {stop_at} of 6" in capsys.readouterr().err
    assert not (tmp_path / "model.keras").exists()
    assert train(tmp_path) == 0
    assert f"resume   from step {stop_at}" in capsys.readouterr().out
    for left, right in zip(losses(trained), losses(tmp_path), strict=True):
        assert left[:2] == right[:2]
        np.testing.assert_allclose(left[2:], right[2:], rtol=1e-5)


@pytest.mark.slow
def test_a_longer_run_goes_on(tmp_path, capsys):
    assert train(tmp_path, "train.steps=2") == 0
    assert train(tmp_path, "train.steps=3") == 0
    output = capsys.readouterr().out
    assert "resume   from step 2" in output
    assert "train.steps 2 -> 3" in output
    assert [row["step"] for row in rows(tmp_path) if row["split"] == "eval"] == [2, 3]


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("dataset.name='digit'", "digit"),
        ("dataset.name='image_folder:nowhere'", "nowhere"),
        ("VMoE.num_heads=3", "num_heads"),
        ("VMoE.num_selected=9", "num_selected"),
    ],
)
def test_what_the_data_or_the_model_refuse_is_one_line(tmp_path, capsys, binding, words):
    assert train(tmp_path, binding) == 1
    message = capsys.readouterr().err
    assert message.startswith("keras-vmoe: error: ")
    assert message.count("\n") == 1
    assert words in message


def test_a_full_disk_keeps_what_was_saved(trained, tmp_path, capsys, monkeypatch):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    before = {path: path.read_bytes() for path in workdir.rglob("ckpt*")}
    model = (workdir / "model.keras").read_bytes()

    def full(self, *args, **options):
        (workdir / "checkpoints" / "ckpt-8.data-00000-of-00001.tempstate1").write_text("half")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.CheckpointManager, "save", full)
    assert train(workdir, "train.steps=8") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in workdir.rglob("ckpt*")} == before
    assert (workdir / "model.keras").read_bytes() == model


@pytest.mark.parametrize("part", ["checkpoints", "."])
def test_a_folder_that_vanishes_while_it_trains_loses_nothing_that_comes_after(
    trained, tmp_path, capsys, monkeypatch, part
):
    workdir, on_step = tmp_path / "run", run.Run._on_step

    def vanish(self, step):
        if step == 3:
            shutil.rmtree(workdir / part)
        on_step(self, step)

    monkeypatch.setattr(run.Run, "_on_step", vanish)
    assert train(workdir, "train.checkpoint_every=2", PICTURE) == 0
    assert f"{workdir / 'checkpoints'} has vanished" in capsys.readouterr().err
    kept = [row for row in losses(trained) if row[0] >= 4 or part == "checkpoints"]
    assert losses(workdir) == kept
    for name in ("config.gin", "model.keras", "checkpoints/ckpt-6.index"):
        assert (workdir / name).exists()
    assert train(workdir, "train.checkpoint_every=2") == 0
    assert "already trained to step 6" in capsys.readouterr().out


def test_a_diverged_run_stops_before_it_saves(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    before = sorted(workdir.rglob("ckpt*"))
    words = ("train.steps=12", "train.log_every=6", "train.eval_every=6")
    words += ("adamw.learning_rate=1e30", "adamw.clipnorm=None")
    (workdir / "config.gin").unlink()
    assert train(workdir, *words) == 1
    message = capsys.readouterr().err
    # Step 7 moves the weights out of the numbers, so that step 8 is the first to see it, in the
    # middle of a round. Five epochs of warm-up are cut to half of the run.
    rate = float(optimizers.cosine(1e30, total_steps=12, warmup_steps=6)(7))
    assert f"the training loss is not finite at step 8, learning rate {rate:.3g}; " in message
    assert f"the last good checkpoint is {workdir}/checkpoints/ckpt-6" in message
    assert sorted(workdir.rglob("ckpt*")) == before


@pytest.mark.slow
def test_mixed_precision_is_an_argument_of_the_model(tmp_path):
    assert train(tmp_path, "VMoE.dtype='mixed_bfloat16'", PICTURE) == 0
    model = keras.models.load_model(tmp_path / "model.keras").model
    assert {layer.dtype_policy.name for layer in moe_layers(model)} == {"mixed_bfloat16"}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.output.dtype == "float32"


def test_a_finished_model_without_checkpoints_is_not_replaced(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "model.keras").read_bytes()
    assert train(workdir) == 1
    message = capsys.readouterr().err
    assert "holds a trained model.keras, but no checkpoint to go on from" in message
    assert (workdir / "model.keras").read_bytes() == before


def test_a_damaged_model_of_a_finished_run_is_written_again(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    whole = (workdir / "model.keras").read_bytes()
    (workdir / "model.keras").write_bytes(whole[:500])
    assert train(workdir) == 0
    assert "already trained" not in capsys.readouterr().out
    assert zipfile.is_zipfile(workdir / "model.keras")


def test_a_run_goes_on_before_a_damaged_checkpoint(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    data_file = next(workdir.glob("checkpoints/ckpt-6.data*"))
    os.truncate(data_file, data_file.stat().st_size // 2)
    assert train(workdir, "train.steps=8") == 0
    output = capsys.readouterr()
    assert "ckpt-6 is damaged" in output.err
    assert "resume   from step 4" in output.out
    whole = [row["step"] for row in rows(workdir) if row["split"] == "train"]
    assert whole == [2, 4, 6, 8]


def test_tensorboard_shows_config_load_and_pictures(trained):
    found = {}
    for path in sorted((trained / "tensorboard" / "eval").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    text = found["config.gin"][0][1].tensor.string_val[0].decode()
    assert "VMoE.num_experts = 4" in text
    steps = [step for step, _ in found["expert_load/encoder_block_0_moe"]]
    assert steps == [4, 6]
    histogram = tf.make_ndarray(found["expert_load/encoder_block_0_moe"][-1][1].tensor)
    assert histogram.shape == (4, 3)
    shares = rows(trained)[-1]
    assert histogram[:, 2].sum() > 0
    assert 0 <= shares["encoder_block_0_moe/dropped"] <= 1
    assert [step for step, _ in found["routing"]] == [6]
    assert {"loss", "accuracy", "encoder_block_0_moe/expert_load_max"} <= found.keys()
    train_tags = set()
    for path in (trained / "tensorboard" / "train").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            train_tags |= {value.tag for value in event.summary.value}
    assert {"loss", "steps_per_second", "learning_rate"} <= train_tags


def test_few_shot_transfer_stands_beside_the_evaluation(tmp_path):
    words = ("train.few_shot=@FewShot()", "FewShot.shots=(1, 5)", "FewShot.seeds=2")
    assert train(tmp_path, *words, "FewShot.every=6") == 0
    found = {row["step"]: row for row in rows(tmp_path) if row["split"] == "eval"}
    assert "fewshot/5shot" not in found[4]
    assert 0 < found[6]["fewshot/5shot"] <= 1
    assert 0 < found[6]["fewshot/1shot"] <= 1


def test_a_finished_run_says_that_it_went_further(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    assert train(workdir, "train.steps=2") == 0
    assert "already trained to step 6" in (printed := capsys.readouterr().out)
    assert "further than the 2 asked for" in printed


def test_a_longer_run_that_died_before_its_model_is_not_finished(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained, tmp_path / "copy")
    assert train(workdir, "train.steps=8") == 0
    # As if it had died after its last evaluation: the model is that of the first six steps, and
    # the best checkpoint was not saved.
    shutil.copy2(trained / "model.keras", workdir / "model.keras")
    shutil.rmtree(workdir / "checkpoints" / "best")
    capsys.readouterr()
    assert train(workdir, "train.steps=8") == 0
    assert "already trained" not in capsys.readouterr().out
    assert (workdir / "model.keras").stat().st_mtime > (trained / "model.keras").stat().st_mtime
    assert list((workdir / "checkpoints" / "best").glob("*.index"))


def test_the_best_checkpoint_is_that_of_the_best_evaluation(trained):
    evaluations = [row for row in rows(trained) if row["split"] == "eval"]
    best = max(evaluations, key=lambda row: row["accuracy"])
    names = [path.stem for path in (trained / "checkpoints" / "best").glob("*.index")]
    assert names == [f"ckpt-{best['step']}"]
