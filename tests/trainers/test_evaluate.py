"""`keras-vmoe evaluate` on tiny runs: what it prints, what it writes, what it refuses."""

import csv
import json
import re

import numpy as np
import pytest

from keras_vmoe import analysis, evaluation, models
from keras_vmoe.trainers import cli, evaluate, sweeping, trained
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.models import tiny


def run(capsys, *words):
    code = cli.main(["evaluate", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_it_says_what_the_run_said(finished_run, capsys):
    code, out, _ = run(capsys, f"--workdir={finished_run}")
    assert code == 0
    row = MetricsLog(finished_run / "metrics.jsonl").last("eval")
    accuracy, loss = map(float, re.search(r"accuracy ([\d.]+)%, loss ([\d.]+)", out).groups())
    assert accuracy == pytest.approx(100 * row["accuracy"], abs=0.006)
    assert loss == pytest.approx(row["loss"], abs=6e-4)
    assert "sigmoid" not in out
    # The run's is a mean over batches, of which the last is smaller.
    layer = re.search(r"encoder_block_0_moe +([\d.]+)%", out)
    assert float(layer[1]) == pytest.approx(100 * row["encoder_block_0_moe/dropped"], abs=1)
    assert "digits: 360 held-out images, 10 classes" in out


def test_batches_alone_of_ones_own_size_and_another_loss(finished_run, capsys):
    words = ["--batches=2", "--batch_size=50", "--gin_bindings=train.loss='sigmoid'"]
    _, out, _ = run(capsys, f"--workdir={finished_run}", *words)
    assert "digits: 100 held-out images" in out
    model = trained.load(finished_run)
    first = list(model.eval_batches(50).take(2))
    assert f"accuracy {evaluation.evaluate(model.model, first).accuracy:.2%}" in out
    # Ten binary cross entropies of logits near 0.
    assert float(re.search(r"loss ([\d.]+)", out)[1]) == pytest.approx(10 * np.log(2), rel=0.1)
    assert (
        "NLL, Brier and ECE are of the softmax of the logits; this run's loss is 'sigmoid'" in out
    )


def test_a_dense_file_on_data_of_a_gin_file(dense_run, capsys):
    file = dense_run / "model.keras"
    code, out, _ = run(capsys, f"--model={file}", "--gin_file=data/digits.gin")
    assert code == 0
    assert "MoE layer" not in out


@pytest.fixture(scope="module")
def swept(finished_run, dense_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    words = ["--sweep", "--num_selected=2", "--capacity_factors=0.2,1", "--priority=bpr"]
    words += [f"--dense_workdir={dense_run}", f"--out={out}", "--rounds=2"]
    assert cli.main(["evaluate", f"--workdir={finished_run}", *words]) == 0
    return out


def test_a_sweep_writes_its_rows(swept, finished_run, dense_run):
    assert {path.name for path in swept.iterdir()} == {"sweep.csv", "sweep.json", "sweep.png"}
    content = json.loads((swept / "sweep.json").read_text())
    assert content["model"] == str(finished_run / "model.keras")
    assert content["batch_size"] == 120
    rows = content["rows"]
    assert [(r["num_selected"], r["priority"], r["capacity_factor"]) for r in rows] == [
        (2, "bpr", 0.2),
        (2, "bpr", 1.0),
        (None, "dense", None),
    ]
    assert all(row["milliseconds"] > 0 for row in rows)
    # 8 images of 16 tokens, 2 choices, 4 experts.
    assert rows[0]["capacity"] == pytest.approx(13 * 4 / 256)
    assert rows[0]["group_tokens"] == 128
    dense = trained.load(dense_run).model
    assert rows[-1]["macs"] == analysis.profile(dense).macs
    with (swept / "sweep.csv").open() as file:
        assert [row["priority"] for row in csv.DictReader(file)] == [r["priority"] for r in rows]
    assert (swept / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_macs_are_those_of_the_profile_where_nothing_is_dropped(swept, finished_run):
    rows = json.loads((swept / "sweep.json").read_text())["rows"]
    model = trained.load(finished_run).model
    ample = analysis.profile(model, num_selected=2, capacity_factor=1.0).macs
    row = rows[1]
    assert row["slot_macs"] == pytest.approx(ample, rel=1e-6)
    beside = sweeping.macs_beside_experts(model)
    assert row["macs"] - beside == pytest.approx(row["kept"] * (ample - beside), rel=1e-4)


def test_macs_beside_experts_of_models_in_models():
    vmoe = tiny.vmoe()
    wanted = sweeping.macs_beside_experts(vmoe)
    experts = 2 * round(5 * 2 * 0.8 * 2 * 8 * 8)
    assert wanted == analysis.profile(vmoe).macs - experts
    routed = models.with_routing(vmoe, num_selected=1, capacity_factor=4.0)
    assert sweeping.macs_beside_experts(routed) == wanted
    classifier = models.Classifier(vmoe, "abc")
    assert sweeping.macs_beside_experts(classifier) == wanted
    assert sweeping.macs_beside_experts(tiny.vit()) == analysis.profile(tiny.vit()).macs


@pytest.mark.parametrize(
    ("images", "wanted", "group", "size"),
    [
        (10_000, 256, 8, 200),
        (360, 256, 8, 120),
        (50_000, 256, 8, 200),
        (512, 256, 8, 256),
        (400, 256, 8, 200),
        (2 * 31 * 8, 256, 8, 248),
        (8 * 7, 256, 8, 256),
        (997, 256, 8, 256),
        (90, 256, 1, 90),
        (100, 30, 1, 25),
    ],
)
def test_batch_sizes_that_fit(images, wanted, group, size):
    assert evaluate.even_batch_size(images, wanted, group) == size


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--num_selected=1"], 2, "--num_selected is of sweeps; add --sweep"),
        (["--dense_workdir=x"], 2, "--dense_workdir is of sweeps"),
        (["--rounds=7"], 2, "--rounds is of sweeps"),
        (["--noexact"], 2, "--exact is of sweeps"),
        (["--data_dir=x"], 2, "--data_dir is of --dataset"),
        (["--max_corrupt=1"], 2, 'write --gin_bindings="dataset.max_corrupt=1"'),
        (["--sweep", "--num_selected="], 2, "--num_selected must be different whole numbers"),
        (["--sweep", "--num_selected=1.5"], 2, "Received: --num_selected=1.5"),
        (["--sweep", "--capacity_factors=a"], 2, "--capacity_factors must be different numbers"),
        (["--sweep", "--capacity_factors="], 2, "--capacity_factors must be different numbers"),
        (["--sweep", "--priority=random"], 2, "--priority must be vanilla, bpr or both"),
        (["--sweep", "--priority="], 2, "--priority must be vanilla, bpr or both"),
        (["--sweep", "--rounds=-1"], 2, "rounds"),
        (["--sweep", "--num_selected=9"], 1, "num_selected must be at most num_experts=4"),
        (["--sweep", "--capacity_factors=0"], 1, "capacity_factor must be above 0"),
        (["--sweep", "--capacity_factors=nan"], 1, "capacity_factor must be above 0"),
        (["--dataset=digits", "--dataset=fashion_mnist"], 2, "give one --dataset"),
    ],
)
def test_wrong_command_lines(finished_run, capsys, words, code, message):
    found, _, error = run(capsys, f"--workdir={finished_run}", *words)
    assert found == code
    assert message in error
    assert error.count("\n") == 1


def test_a_dense_model_cannot_be_swept(dense_run, capsys):
    code, _, error = run(capsys, f"--workdir={dense_run}", "--sweep")
    assert code == 1
    assert "--sweep needs a model with MoE layers, but" in error


def test_data_of_other_classes(tmp_path, capsys):
    models.Classifier(tiny.vit(channels=1), "abc").save(tmp_path / "model.keras")
    code, _, error = run(capsys, f"--model={tmp_path / 'model.keras'}", "--dataset=digits")
    assert code == 1
    assert "digits has 10 classes, but the model has 3" in error
    file = tmp_path / "other.keras"
    models.Classifier(tiny.vit(channels=1, num_classes=10), "abcdefghij").save(file)
    code, _, error = run(capsys, f"--model={file}", "--dataset=digits")
    assert "digits has other classes than the model, 0, 1, 2, … against a, b, c" in error
