"""`keras-vmoe repro upcycling`: equal FLOPs, pairs by seed, the picture, a tiny run of it all."""

import csv
import json
import re

import pytest

from keras_vmoe import analysis
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.repro import upcycling, upcycling_figure
from tests.trainers.test_gin_files import idx_folder
from tests.trainers.tiny import TINY_VIT, TINY_VMOE

TINY = (
    *TINY_VIT,
    *TINY_VMOE,
    "train.steps=2",
    "train.batch_size=16",
    "train.eval_batch_size=16",
)
KINDS = ("base", "dense", "upcycled", "scratch")


def train_here(trainings, processes):
    """`train_all` in this process: a process of its own takes longer to start than to train."""
    for training in trainings:
        assert cli.main(training.command()[3:]) == 0, training.name


def lengths(dense=100, sparse=130, steps=(40, 20, 15, 15)):
    macs = dict(zip(KINDS, (dense, dense, sparse, sparse), strict=True))
    return upcycling.Lengths(macs, dict(zip(KINDS, steps, strict=True)), batch_size=2)


def test_equal_flops_by_hand():
    # 936 steps of 877,000 MACs are 820,872,000; over 1,147,000 they are 715.67 steps.
    assert upcycling.equal_flops_steps(936, 877_000, 1_147_000) == 715
    assert upcycling.equal_flops_steps(10, 100, 100) == 10
    assert upcycling.equal_flops_steps(1, 100, 10_000) == 1
    # Three products of two FLOPs for each multiply-accumulate: forward, and two backward.
    assert lengths().flops("dense") == 20 * 2 * 100 * 6
    assert lengths().flops("upcycled", 3) == 3 * 2 * 130 * 6


def test_the_plan_spends_equal_flops(tmp_path):
    bindings = [
        "train.steps=41",
        "train.batch_size=16",
        f"dataset.data_dir='{idx_folder(tmp_path)}'",
    ]
    found = upcycling.plan(tmp_path, [0], bindings, extra=0.5)
    # Of a token: 4 blocks of 4 w^2 (attention), 2 t w (its scores and sums) and 2 w h; then the
    # patches, and the head once an image. Two blocks more of MLP and two routers when sparse.
    tokens, width, hidden, experts = 16, 32, 128, 8
    block = 4 * width**2 + 2 * tokens * width + 2 * width * hidden
    dense = tokens * (4 * block + 49 * width) + 10 * width
    sparse = dense + tokens * 2 * (2 * width * hidden + width * experts)
    assert found.macs == {"base": dense, "dense": dense, "upcycled": sparse, "scratch": sparse}
    assert found.steps["base"] == 41
    assert found.steps["dense"] == 20
    assert found.steps["upcycled"] == found.steps["scratch"] == 20 * dense // sparse
    assert found.flops("dense") - found.flops("upcycled") < found.flops("upcycled", 1)
    assert found.batch_size == 16


def test_rivals_see_the_same_images_and_go_on_alike(tmp_path):
    bindings = ["VMoE.width=8", "ViT.width=16", "train.steps=40"]
    runs = {
        kind: upcycling.trainings(kind, tmp_path, [0, 1], bindings, lengths()) for kind in KINDS
    }

    def bound(kind, name):
        words = [word for word in runs[kind][1].bindings if word.startswith(f"{name}=")]
        return words[-1].split("=", 1)[1] if words else None

    assert [run.workdir.name for run in runs["upcycled"]] == ["upcycled-0", "upcycled-1"]
    assert [bound(kind, "train.seed") for kind in KINDS] == ["1", "1001", "1001", "1001"]
    assert [bound(kind, "train.steps") for kind in KINDS] == ["40", "20", "15", "15"]
    assert [bound(kind, "rsqrt.first_step") for kind in KINDS] == [None, "40", "40", None]
    assert [bound(kind, "rsqrt.cooldown_steps") for kind in KINDS] == [None, "6", "5", "5"]
    base = repr(str(tmp_path / "base-1"))
    assert [bound(kind, "train.init_from") for kind in KINDS] == [None, base, base, None]
    assert [bound(kind, "ViT.width") for kind in KINDS] == ["16", "16", None, None]
    assert [bound(kind, "VMoE.width") for kind in KINDS] == [None, None, "8", "8"]


def made_up(upcycled, dense, scratch):
    def curves(steps, ends):
        return [[(steps // 2, end - 0.01), (steps, end)] for end in ends]

    found = {"base": [[(40, end - 0.02)] for end in dense], "dense": curves(20, dense)}
    found |= {"upcycled": curves(15, upcycled), "scratch": curves(15, scratch)}
    return upcycling.Measured((0, 1, 2), lengths(), found)


def test_the_table_says_what_was_found():
    text = upcycling.table(made_up([0.90, 0.91, 0.92], [0.89, 0.90, 0.9101], [0.95, 0.94, 0.96]))
    lines = {re.split("  +", line)[0]: line for line in text.splitlines()}
    assert re.split("  +", lines["upcycled"])[1:] == ["0.000M", "15", "0.000", "91.00 ± 0.58"]
    claim = "at equal extra FLOPs the upcycled model beats "
    first = lines[claim + "the dense model that goes on"]
    assert "91.00 ± 0.58 against 90.00 ± 0.58" in first
    assert first.endswith("holds")
    assert not first.endswith("does not hold")
    assert lines[claim + "the sparse model from scratch"].endswith("does not hold")


def test_the_picture_has_its_data_beside_it(tmp_path):
    found = made_up([0.90, 0.91, 0.92], [0.89, 0.90, 0.91], [0.80, 0.81, 0.82])
    upcycling_figure.plot_upcycling(found, tmp_path / "repro.png")
    assert (tmp_path / "repro.png").stat().st_size > 10_000
    with open(tmp_path / "repro.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["series"] for row in rows[:3]] == ["dense model to start from"] + 2 * [
        "dense, going on"
    ]
    assert len(rows) == 1 + 3 * 2
    assert (rows[0]["extra_tflops"], rows[0]["accuracy"]) == ("0", "0.88")
    assert [float(row["extra_tflops"]) for row in rows[1:3]] == pytest.approx(
        [steps * 2 * 100 * 6 / 1e12 for steps in (10, 20)]
    )
    last = rows[4]
    assert (last["series"], last["step"], last["seeds"]) == ("upcycled", "15", "3")
    assert float(last["extra_tflops"]) == pytest.approx(15 * 2 * 130 * 6 / 1e12)
    assert float(last["accuracy"]) == pytest.approx(0.91)
    assert float(last["standard_error"]) == pytest.approx(0.01 / 3**0.5)


def command(folder, *more):
    bindings = [*TINY, f"dataset.data_dir='{idx_folder(folder)}'"]
    words = [f"--gin_bindings={binding}" for binding in bindings]
    return ["repro", "upcycling", f"--out={folder / 'out'}", "--seeds=1", *words, *more]


@pytest.mark.slow
def test_it_trains_measures_and_judges(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(upcycling, "train_all", train_here)
    assert cli.main(command(tmp_path, "--extra=1.5")) == 0
    printed, out = capsys.readouterr().out, tmp_path / "out"
    found = json.loads((out / "repro.json").read_text())
    assert found["steps"]["base"] == 2
    assert found["steps"]["dense"] == 3 > found["steps"]["upcycled"]
    assert [step for step, _ in found["curves"]["dense"][0]] == [1, 2, 3]
    assert {kind: len(values) for kind, values in found["accuracy"].items()} == dict.fromkeys(
        KINDS, 1
    )
    assert len(found["claims"]) == 2
    assert (out / "repro.txt").read_text().strip() in printed
    # The dense model goes on whole; of the upcycled one the router alone is new.
    assert printed.count(f"weights  from {out / 'base-0'}: ") == 2
    assert "fresh: Encoder/encoderblock_0/Moe/Router/dense/kernel" in printed
    assert "fresh: head" not in printed
    assert (out / "repro.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_second_command_trains_nothing_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(upcycling, "train_all", train_here)
        assert cli.main(command(tmp_path)) == 0
    models = [tmp_path / "out" / f"{kind}-0" / "model.keras" for kind in KINDS]
    before = [model.stat().st_mtime_ns for model in models]
    found = (tmp_path / "out" / "repro.json").read_text()
    assert cli.main(command(tmp_path)) == 0
    assert [model.stat().st_mtime_ns for model in models] == before
    assert (tmp_path / "out" / "repro.json").read_text() == found


def test_the_models_are_the_same_but_for_their_experts(tmp_path):
    dense = upcycling.configure(upcycling.trainings("base", tmp_path, [0], [])[0])
    parameters = {"dense": dense.model(image_size=28, channels=1, num_classes=10)}
    config = upcycling.configure(upcycling.trainings("upcycled", tmp_path, [0], [])[0])
    parameters["sparse"] = config.model(image_size=28, channels=1, num_classes=10)
    counts = {kind: analysis.profile(model).params for kind, model in parameters.items()}
    mlp = 2 * 32 * 128 + 32 + 128
    assert counts["sparse"] - counts["dense"] == 2 * (7 * mlp + 32 * 8)
    assert config.upcycle
    assert config.keep_head
