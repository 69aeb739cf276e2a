"""`keras-vmoe repro vmoe`, from end to end in a tiny form."""

import json

import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.repro import vmoe
from tests.trainers.repro.test_upcycling import train_here
from tests.trainers.test_gin_files import idx_folder

TINY = (
    "train.steps=2",
    "train.batch_size=16",
    "train.eval_batch_size=16",
    *(f"{name}.num_layers=2" for name in ("ViT", "VMoE")),
    *(f"{name}.width=8" for name in ("ViT", "VMoE")),
    *(f"{name}.mlp_dim=16" for name in ("ViT", "VMoE")),
    *(f"{name}.num_heads=2" for name in ("ViT", "VMoE")),
)


def words(folder, *more):
    data = idx_folder(folder)
    bindings = [*TINY, f"dataset.data_dir='{data}'"]
    return ["repro", "vmoe", f"--out={folder / 'out'}", *more] + [
        f"--gin_bindings={binding}" for binding in bindings
    ]


@pytest.mark.slow
def test_it_trains_measures_and_judges(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vmoe, "train_all", train_here)
    assert cli.main(words(tmp_path, "--seeds=2")) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    found = json.loads((out / "repro.json").read_text())
    assert found["seeds"] == [0, 1]
    kinds = ("dense", "sparse", "vanilla", "priority")
    assert {kind: len(v) for kind, v in found["accuracy"].items()} == dict.fromkeys(kinds, 2)
    # One choice a token: the router alone is more than what the dense twin does. In so small a
    # model it is more than what C=0.8 saves.
    macs = [found["training_macs"][kind] for kind in kinds]
    assert macs[0] < macs[3] < macs[1] == macs[2] < 1.1 * macs[0]
    assert len(found["sweep"]) == 2 * 2 * len(vmoe.CAPACITY_FACTORS)
    for row in found["sweep"]:
        # Ten percent is the price of whole slots in so small a set.
        assert row["kept"] <= row["capacity_factor"] * 1.1 + 1e-6 or row["capacity_factor"] == 1.0
    assert len(found["claims"]) == 2 + 2 * len(vmoe.CAPACITY_FACTORS) + 2 + len(vmoe.SHOTS)
    assert "the dense twin DOES NOT REACH 88%" in printed
    assert (out / "repro.txt").read_text().strip() in printed
    assert (out / "repro.png").stat().st_size > 10_000
    lines = (out / "repro.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 + 2 * len(vmoe.CAPACITY_FACTORS) + 2 * len(vmoe.SHOTS)


def test_the_runs_are_paired_by_seed(tmp_path):
    runs = vmoe.trainings(tmp_path, [0, 1], ["VMoE.width=8", "ViT.width=8", "train.steps=2"])
    assert [run.name for run in runs[:5]] == [
        "dense, seed 0",
        "sparse, seed 0",
        "vanilla, seed 0",
        "priority, seed 0",
        "dense, seed 1",
    ]
    assert runs[0].bindings == ("ViT.width=8", "train.steps=2", "train.seed=0")
    assert runs[5].bindings == ("VMoE.width=8", "train.steps=2", "train.seed=1")


def made_up(sparse, dense):
    row = dict.fromkeys(vmoe.evaluation.SweepRow._fields)

    def rows(values):
        return [vmoe.evaluation.SweepRow(**{**row, "accuracy": value}) for value in values]

    sweep = {}
    for capacity in vmoe.CAPACITY_FACTORS:
        sweep["bpr", capacity] = rows(sparse)
        sweep["vanilla", capacity] = rows([value * capacity for value in sparse])
    shots = {("sparse", n): sparse for n in vmoe.SHOTS} | {("dense", n): dense for n in vmoe.SHOTS}
    less = [value - 0.01 for value in sparse]
    accuracy = {"dense": dense, "sparse": sparse, "vanilla": less, "priority": less}
    macs = {"dense": 80, "sparse": 100, "vanilla": 100, "priority": 80}
    return vmoe.Measured((0, 1, 2), accuracy, macs, sweep, shots, "digits")


def test_the_table_says_what_was_found():
    text = vmoe.table(made_up([0.90, 0.91, 0.92], [0.89, 0.90, 0.9101]))
    assert "the dense twin reaches 88%: 90.00 ± 0.58" in text
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    claim = "sparse, C={}, beats dense at equal activated FLOPs (0.0001M against 8e-05M MACs)"
    assert lines[claim.format("1.05")].endswith("leans no")
    first = lines[claim.format("2")]
    assert "91.00 ± 0.58 against 90.00 ± 0.58" in first
    assert first.endswith("holds")
    assert lines["at inference with C=1, batch priority beats vanilla"].endswith("leans no")
    assert lines["at inference with C=0.5, batch priority beats vanilla"].endswith("holds")
    # Equal to what was trained: within the margin.
    assert lines["at inference with C=0.5, batch priority keeps the accuracy"].endswith(
        "holds (margin 0.3)"
    )
    trained = "training with batch priority, C=0.8, is as good as vanilla, C={} (-20% MACs)"
    assert lines[trained.format("1.05")].endswith("holds (margin 0.3)")
    assert lines[trained.format("2")].endswith("does not hold (margin 0.3)")


def test_the_table_owns_up_to_a_claim_that_fails():
    text = vmoe.table(made_up([0.80, 0.81, 0.82], [0.89, 0.90, 0.9101]))
    first = next(line for line in text.splitlines() if line.startswith("sparse, C=2, beats"))
    assert first.endswith("does not hold")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one paper of: vmoe, upcycling, limoe, mobile"),
        (["mixer"], "name one paper of: vmoe, upcycling, limoe, mobile"),
        (["vmoe", "--seeds=0"], "seeds"),
        (["vmoe", "--extra=0.5"], "--extra=0.5"),
        (["limoe", "--extra=0.5"], "of upcycling alone"),
        (["upcycling", "--extra=0"], "--extra=0.0 is a share above 0"),
    ],
)
def test_wrong_words_are_one_line(arguments, message, capsys):
    assert cli.main(["repro", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
