"""`keras-vmoe repro mobile`: the runs, the verdicts, the pictures; training itself is made up."""

import csv
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, data, models, superclass
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.repro import mobile, mobile_claims, mobile_figure, mobile_runs
from keras_vmoe.trainers.repro.training import configure

# Fewer pictures are composed, and the data is what every machine has.
TINY = ("dataset.name='digit_pairs'", "train.steps=4", "train.batch_size=8", "train.log_every=2")
DENSE = ["dense_4x64", "dense_4x48", "dense_4x32", "dense_4x24"]
SPARSE = ["mobile_4x64", "mobile_4x48", "mobile_4x32", "mobile_4x24"]
ROUTED = ["random", "learned_image", "learned_token"]
FIRST = [
    *DENSE, "selected_2_dense", "selected_3_dense", *SPARSE, *ROUTED,
    "experts_5", "experts_20", "layers_1", "layers_3", "selected_2", "selected_3",
]  # fmt: skip
PAIRED = [*DENSE[::2], *SPARSE[::2], *ROUTED]


@pytest.fixture(scope="module")
def source():
    return configure(mobile_runs.trainings(["dense_4x32"], Path(), [0], TINY)[0]).dataset()


def mapping(number, num_classes=100):
    ids = np.arange(num_classes) * number // num_classes
    return superclass.Superclasses(
        ids.tolist(),
        [str(i) for i in range(num_classes)],
        modularity=0.5,
        inside_confusion=0.75,
    )


def made_up(sparse=(0.8, 0.81, 0.82), dense=(0.78, 0.792, 0.8)):
    """Each kind as good as the dense or the sparse models, but for what is set below."""
    kinds = mobile_runs.KINDS
    accuracy = {
        name: list(dense if kind.is_dense else sparse)[: 3 if kind.paired else 1]
        for name, kind in kinds.items()
    }
    accuracy["random"] = [0.7, 0.71, 0.72]
    accuracy["layers_3"] = [0.6]
    router = {name: [0.9] * len(accuracy[name]) for name, k in kinds.items() if k.num_experts}
    router["experts_20"], router["layers_3"] = [0.7], [0.8]
    router["random"] = [0.4, 0.41, 0.42]
    wide = {name: k.scale.num_layers * k.scale.width**2 / 1e3 for name, k in kinds.items()}
    mflops = {n: m * (int(n.split("_")[1]) if n[0] == "s" else 1) for n, m in wide.items()}
    found = {number: mapping(number) for number in mobile_runs.EXPERTS}
    return mobile.Measured((0, 1, 2), 4, mflops, accuracy, router, found)


def test_the_runs():
    assert list(mobile_runs.KINDS) == FIRST
    assert [name for name, kind in mobile_runs.KINDS.items() if kind.paired] == PAIRED
    assert mobile_runs.num_runs(1) == len(FIRST)
    assert mobile_runs.num_runs(3) == len(FIRST) + 2 * len(PAIRED)
    runs = mobile_runs.trainings(FIRST, Path("out"), [0, 1], ["train.epochs=2.0"])
    names = [f"{name}-0" for name in FIRST] + [f"{name}-1" for name in PAIRED]
    assert [run.workdir.name for run in runs] == names
    assert runs[0].name == "dense 4x64, seed 0"
    assert runs[0].bindings == (
        "MobileVMoE.num_layers=4",
        "MobileVMoE.width=64",
        "MobileVMoE.mlp_dim=256",
        "MobileVMoE.num_heads=4",
        "train.epochs=2.0",
        "train.seed=0",
    )
    # What is compared wins over what the command binds for all.
    run = mobile_runs.trainings(["experts_5"], Path(), [0], ["MobileVMoE.num_experts=3"])[0]
    assert run.bindings.index("MobileVMoE.num_experts=5") > 4


def test_the_kinds_differ_in_what_they_are_named_after(source):
    taught = mobile.taught({number: mapping(number) for number in mobile_runs.EXPERTS})
    assert set(taught) == {n for n, kind in mobile_runs.KINDS.items() if kind.num_experts}
    macs, found = {}, {}
    for run in mobile_runs.trainings(FIRST, Path(), [0], TINY, taught):
        name = run.workdir.name.removesuffix("-0")
        model = configure(run).make_model(source)
        found[name] = model.arguments
        macs[name] = analysis.profile(model).macs
    base = found["mobile_4x32"]
    assert (base["num_experts"], base["num_moe_layers"], base["num_selected"]) == (10, 2, 1)
    assert base["superclasses"] == list(mapping(10).ids)
    differing = {
        "random": {"superclasses"},
        "learned_image": {"superclasses"},
        "learned_token": {"superclasses", "routing"},
        "experts_5": {"superclasses", "num_experts"},
        "layers_3": {"num_moe_layers"},
        "selected_2": {"num_selected"},
        "dense_4x32": {"superclasses", "routing"},
        "selected_3_dense": {"superclasses", "routing", "num_selected"},
        "mobile_4x64": {"width", "mlp_dim", "num_heads"},
    }
    for name, what in differing.items():
        assert {key for key in base if found[name][key] != base[key]} == what
    assert sorted(found["random"]["superclasses"]) == sorted(base["superclasses"])
    # The router is all that a sparse model computes beside its dense twin.
    for scale in mobile_runs.SCALES:
        more = macs[f"mobile_{scale.name}"] - macs[f"dense_{scale.name}"]
        assert more == scale.width * 10
    for k in (2, 3):
        assert macs[f"selected_{k}"] - macs[f"selected_{k}_dense"] == 32 * 10


def verdicts(found):
    return {claim.text: claim.verdict for claim in mobile_claims.claims(found)}


def test_the_claims_are_judged():
    judged = verdicts(made_up())
    assert judged["4x32: Mobile V-MoE beats its dense twin at equal FLOPs"] == "holds"
    # One seed alone.
    assert judged["4x48: Mobile V-MoE beats its dense twin at equal FLOPs"] == "leans yes"
    assert judged["E=10 beats E=5"] == "leans no"
    assert judged["the router is more accurate with E=5 than with E=20"] == "leans yes"
    assert judged["L=3 of 4 blocks loses to the dense twin"] == "leans yes"
    assert judged["the router is more accurate with L=1 than L=2"] == "leans no"
    assert judged["the router is more accurate with L=2 than L=3"] == "leans yes"
    assert judged["super-classes beat random super-classes"] == "holds"
    assert judged["random super-classes lose to the dense twin"] == "holds"
    assert judged["the router is more accurate on super-classes than on random ones"] == "holds"
    assert judged["the gain is larger for 4x32 than for 4x64"] == "leans no"
    worse = verdicts(made_up(sparse=(0.7, 0.71, 0.72)))
    assert worse["4x32: Mobile V-MoE beats its dense twin at equal FLOPs"] == "does not hold"
    assert worse["k=2 beats a dense model with MLPs 2 times wider, of equal FLOPs"] == "leans no"
    assert worse["super-classes beat random super-classes"] == "leans no"


def test_seeds_that_both_have_are_compared():
    claim = mobile_claims._beats("a", [0.5, 0.7, 0.9], [0.25])
    assert (claim.found, claim.gain.mean) == ("50.00 against 25.00", 0.25)


def test_the_table_says_what_was_found():
    lines = mobile.table(made_up()).splitlines()
    line = next(line for line in lines if line.startswith("random super-classes "))
    words = ["random super-classes", "4.096", "3", "71.00 ± 0.58", "41.00 ± 0.58"]
    assert re.split("  +", line) == words
    dense = next(line for line in lines if line.startswith("dense 4x48"))
    assert re.split("  +", dense) == ["dense 4x48", "9.216", "1", "78.00", "-"]
    assert "the 10 hold 75% of the confusion, modularity 0.50, 10 to 10 classes each" in lines[1]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_pictures_have_their_data_beside_them(tmp_path):
    mobile_figure.plot_mobile(made_up(), tmp_path / "repro.png")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "repro.png",
        "repro_ablations.png",
    ]
    rows = read(tmp_path / "repro.csv")
    assert [row["x"] for row in rows[:4]] == ["4x24", "4x32", "4x48", "4x64"]
    assert len(rows) == 8
    assert float(rows[4]["value"]) == pytest.approx(0.8)
    rows = read(tmp_path / "repro_ablations.csv")
    assert len(rows) == 2 * (1 + 3 + 3) + 6 + 5 + 2
    assert [row["value"] for row in rows if row["series"] == "router, random super-classes"] == [
        "0.41"
    ]


def teacher(tmp_path, source):
    """A dense model that was saved before its first step, its head made to say something."""
    run = mobile_runs.trainings([mobile_runs.TEACHER], tmp_path, [0], TINY)[0]
    model = configure(run).make_model(source)
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    run.workdir.mkdir()
    models.Classifier(model, source.class_names).save(run.workdir / "model.keras")
    return run


def test_super_classes_are_found_once(source, tmp_path):
    few = data.select(source.splits["validation"], np.arange(600))
    source.splits["validation"], whole = few, source.splits["validation"]
    run = teacher(tmp_path, source)
    try:
        found = mobile.find_superclasses(tmp_path, run, source)
    finally:
        source.splits["validation"] = whole
    assert [found[number].num_superclasses for number in (5, 10, 20)] == [5, 10, 20]
    assert found[10].class_names == source.class_names
    assert "validation" in found[10].origin
    # By hand: what the model says of these pictures.
    model = keras.models.load_model(run.workdir / "model.keras").model
    logits = model.predict(few.images / np.float32(127.5) - 1, verbose=0)
    matrix = np.zeros((100, 100))
    np.add.at(matrix, few.labels, np.asarray(keras.ops.softmax(logits)))
    expected = superclass.find_superclasses(matrix, 10, source.class_names)
    assert found[10].ids == expected.ids
    (run.workdir / "model.keras").unlink()
    assert mobile.find_superclasses(tmp_path, run, source) == found


def test_data_without_a_split_for_super_classes(tmp_path):
    with pytest.raises(ValueError, match="'digits' has no split 'validation'.*digit_pairs"):
        mobile.measure(tmp_path, [0], 1, ["dataset.name='digits'"])


def test_it_reads_judges_and_writes(tmp_path, capsys, monkeypatch):
    trained = []

    def pretend(runs, processes, label):
        """Leaves what runs leave."""
        for run in runs:
            trained.append(run.workdir.name)
            run.workdir.mkdir()
            log = MetricsLog(run.workdir / "metrics.jsonl")
            row = {"split": "eval", "step": 4, "loss": 1.0, "accuracy": 0.5}
            is_taught = any("superclasses" in binding for binding in run.bindings)
            log.append({**row, "router_accuracy": 0.75} if is_taught else row)

    def without_a_model(run, source):
        assert run.workdir.name == "dense_4x64-0"
        return np.eye(100) + np.random.default_rng(0).uniform(size=(100, 100))

    monkeypatch.setattr(mobile, "train_all", pretend)
    monkeypatch.setattr(mobile, "_confusion", without_a_model)
    words = [f"--gin_bindings={binding}" for binding in TINY]
    assert cli.main(["repro", "mobile", f"--out={tmp_path}", "--seeds=2", *words]) == 0
    # What is taught waits for what teaches.
    own = [name for name in FIRST if "dense" in name]
    assert trained[: len(own) + 2] == [f"{n}-0" for n in own] + ["dense_4x64-1", "dense_4x32-1"]
    assert sorted(trained) == sorted([f"{n}-0" for n in FIRST] + [f"{n}-1" for n in PAIRED])
    found = json.loads((tmp_path / "repro.json").read_text())
    assert (found["steps"], found["seeds"]) == (4, [0, 1])
    assert found["accuracy"]["dense_4x48"] == [0.5]
    assert found["router_accuracy"]["random"] == [0.75, 0.75]
    assert "learned_image" not in found["router_accuracy"]
    assert sum(found["superclasses"]["20"]["sizes"]) == 100
    assert found["mflops"]["dense_4x32"] < found["mflops"]["selected_2_dense"]
    printed = capsys.readouterr().out
    assert f"{len(FIRST) + len(PAIRED)} runs" in printed
    assert (tmp_path / "repro.txt").read_text().strip() in printed
