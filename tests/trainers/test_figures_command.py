"""`keras-vmoe figures`, on the folders of runs."""

import csv
import json

import numpy as np
import pytest
from matplotlib import image as image_file

from keras_vmoe import analysis, models
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.figures import command, making, runs
from tests.models.tiny import spread
from tests.trainers import tiny

SHAPE = {
    "image_size": 16,
    "channels": 1,
    "patch_size": 8,
    "num_layers": 2,
    "width": 8,
    "mlp_dim": 8,
    "num_heads": 2,
    "num_classes": 10,
    "head_kernel_initializer": "glorot_uniform",
}
CONFIG = """
train.dataset = @dataset
train.batch_size = 16
train.seed = 7
dataset.name = 'digits'
"""
DIGITS = tuple("0123456789")
ROWS = (
    {"step": 2, "split": "train", "loss": 2.0, "accuracy": 0.1, "images_per_second": 8.0},
    {"step": 4, "split": "eval", "loss": 1.5, "accuracy": 0.2, "fewshot/5shot": 0.3},
    {"step": 4, "split": "train", "loss": 1.0, "accuracy": 0.4, "images_per_second": 4.0},
    {"step": 6, "split": "train", "loss": 0.9, "accuracy": 0.5, "images_per_second": 2.0},
    {"step": 6, "split": "eval", "loss": 0.8, "accuracy": 0.75, "fewshot/5shot": 0.5},
    {"step": 8, "split": "train", "loss": 0.7, "accuracy": 0.5, "images_per_second": 2.0},
)


def vmoe(**overrides):
    sparse = {"num_experts": 4, "placement": (0, 1), "num_selected": 1, "images_per_group": 16}
    model = models.VMoE(**{**SHAPE, **sparse, **overrides})
    spread(model)
    return model


def write_run(folder, model, rows=ROWS, config=CONFIG, class_names=DIGITS):
    """The folder that a finished run of this model leaves, without its checkpoints."""
    folder.mkdir()
    (folder / "config.gin").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models.Classifier(model, class_names).save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parent = tmp_path_factory.mktemp("runs")
    write_run(parent / "sparse", vmoe())
    write_run(parent / "dense", models.ViT(**SHAPE))
    return parent


def figures(*words):
    return cli.main(["figures", *map(str, words)])


def table(path):
    pixels = image_file.imread(path)
    assert pixels[..., :3].std() > 0.02
    with open(path.with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_figures_of_one_run(folder, capsys):
    out = folder / "sparse" / "figures"
    before = (folder / "sparse" / "model.keras").read_bytes()
    only = "expert_class,expert_position,gate_weights,buffers,experts_per_image,dropped_patches"
    assert (
        figures(
            f"--workdir={folder / 'sparse'}", f"--only={only}", "--batch_size=32", "--images=30"
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "2 MoE layers" in printed
    assert "images   32 held out of digits" in printed, "whole batches"
    assert "done     6 figures" in printed
    assert {path.stem for path in out.iterdir()} == set(only.split(","))
    assert len(list(out.iterdir())) == 12
    rows = table(out / "expert_class.png")
    assert len(rows) == 2 * 10 * 4
    counted = {int(row["class"]): int(row["images"]) for row in rows}
    assert sum(counted.values()) == 32
    dropped = table(out / "dropped_patches.png")
    assert len(dropped) == 8 * 3 * 4
    lost = {(row["capacity_factor"], row["batch_priority"]): 0 for row in dropped}
    for row in dropped:
        lost[row["capacity_factor"], row["batch_priority"]] += int(row["dropped"])
    # A group of 16 images has 80 tokens: C = 0.2 leaves 4 slots, C = 0.1 but two, not rounded.
    assert lost["0.1", "0"] > lost["0.2", "0"] > 0
    assert {row["image"] for row in dropped} == {"0", "8", "15"}
    assert (folder / "sparse" / "model.keras").read_bytes() == before


def test_the_statistics_are_those_of_the_run_s_images(folder, tmp_path):
    words = (f"--workdir={folder / 'sparse'}", "--only=buffers", "--images=0", f"--out={tmp_path}")
    assert figures(*words) == 0
    from keras_vmoe.trainers import trained

    loaded = trained.load(folder / "sparse")
    found = analysis.collect_statistics(loaded.model, loaded.eval_batches(128), 10).layers
    for row in table(tmp_path / "buffers.png"):
        layer = found[row["layer"]]
        assert layer.num_images == 360
        assert int(row["slots"]) == layer.slots
        assert int(row["filled"]) == layer.position_count[:, int(row["expert"])].sum()


def test_a_file_is_looked_at_on_other_images(folder, tmp_path, capsys):
    file = folder / "sparse" / "model.keras"
    words = (f"--model={file}", "--dataset=digits,test,train", "--batch_size=32", "--images=40")
    assert figures(*words, "--only=experts_per_image", f"--out={tmp_path}") == 0
    assert "images   64 held out of digits" in capsys.readouterr().out
    rows = table(tmp_path / "experts_per_image.png")
    assert sum(int(row["images"]) for row in rows) == 2 * 64


def test_runs_are_compared(folder, tmp_path, capsys):
    both = f"--runs={folder / 'sparse'},{folder / 'dense'}"
    assert figures(both, f"--out={tmp_path}", "--skip=k_matrix") == 0
    printed = capsys.readouterr().out
    assert "1 sparse, 1 dense" in printed
    assert "left out capacity, dropped_patches, expert_class" in printed
    assert "needs a model with experts: --workdir=DIR" in printed
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "quality_cost.csv",
        "quality_cost.png",
    ]
    sparse, dense = table(tmp_path / "quality_cost.png")
    assert (sparse["kind"], dense["kind"], sparse["seed"]) == ("sparse", "dense", "7")
    assert float(sparse["accuracy"]) == float(dense["accuracy"]) == 0.75
    assert float(sparse["train_flops"]) > float(dense["train_flops"])


def test_what_a_run_reached_and_cost(folder):
    model = vmoe(num_selected=None, placement="every_2", capacity_factor=0.5)
    summary = runs.summarise(folder / "sparse", model)
    flops = analysis.profile(model, training=True).flops
    assert summary.train_flops == 3 * flops * 6 * 16
    assert summary.train_seconds == pytest.approx(2 * 16 * (1 / 8 + 1 / 4 + 1 / 2))
    assert (summary.name, summary.sparse, summary.seed) == ("sparse", True, 7)
    assert summary.params == model.count_params()
    assert summary.accuracy == 0.75
    assert summary.few_shot == {"fewshot/5shot": 0.5}
    wanted = {"num_experts": 4, "num_selected": 2, "placement": "every_2", "sparse_blocks": 1}
    wanted |= {"renormalise_gates": False, "capacity_factor": 0.5, "width": 8, "steps": 6}
    assert {name: summary.arguments[name] for name in wanted} == wanted
    chosen = runs.summarise(folder / "sparse", vmoe(num_selected=None, router="expert_choice"))
    assert "num_selected" not in chosen.arguments
    assert chosen.arguments["renormalise_gates"] is False  # of expert choice too
    soft = runs.summarise(folder / "sparse", vmoe(num_selected=None, router="soft"))
    assert not {"num_selected", "renormalise_gates"} & set(soft.arguments)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], "holds no evaluation"),
        (ROWS[4:5], "holds no row of training"),
        (({"step": 2, "split": "train"}, ROWS[4]), "no images_per_second at step 2"),
    ],
)
def test_runs_without_their_numbers_are_refused(tmp_path, rows, message):
    model = vmoe()
    run = write_run(tmp_path / "run", model, rows)
    with pytest.raises(ValueError, match=f"--runs=.*run: metrics.jsonl .*{message}"):
        runs.summarise(run, model)


def test_help_says_where_figures_go(capsys):
    assert figures("--help") == 0
    assert "Default: figures/ in the workdir, beside the model" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["new/deep", "there"])
def test_a_folder_is_tried_and_left_as_it_was(folder, tmp_path, out):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("kept")
    words = (f"--workdir={folder / 'dense'}", "--only=buffers", f"--out={tmp_path / out}")
    assert figures(*words) == 1
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there", tmp_path / "there" / "mine"]


def test_every_name_has_a_recipe():
    assert list(command.FIGURES) == list(making.RECIPES)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "give a run, --workdir=DIR"),
        (("--workdir={0}/sparse", "--only=gates"), 2, "--only=gates: there is no such figure"),
        (("--workdir={0}/sparse", "--skip=gates"), 2, "--skip=gates: there is no such figure"),
        (("--workdir={0}/sparse", "--only=buffers", "--skip=buffers"), 2, "leaves no figure"),
        (("--workdir={0}/sparse", "buffers"), 2, "unexpected 'buffers'"),
        (("--workdir={0}/sparse", "--draws=0"), 2, "--draws=0"),
        (("--workdir={0}/none",), 1, "--workdir={0}/none: there is no such file or folder"),
        (("--workdir={0}",), 1, "is not the workdir of a run: it holds neither model.keras nor"),
        (("--workdir={0}/sparse", "--model={0}/a.keras"), 2, "give either --workdir=DIR"),
        (("--model={0}/a.keras",), 1, "--model={0}/a.keras: there is no such file"),
        (("--runs={0}",), 1, "a finished run: it holds no config.gin and no metrics.jsonl and no"),
        (
            ("--workdir={0}/sparse", "--out={0}/sparse/model.keras"),
            1,
            "model.keras cannot be written to",
        ),
        (
            ("--workdir={0}/sparse", "--out=/proc/z"),
            1,
            "--out=/proc/z cannot be written to (",
        ),
        (
            ("--workdir={0}/dense", "--only=buffers"),
            1,
            "cannot draw buffers: needs experts, and dense is a dense model",
        ),
        (("--workdir={0}/dense",), 1, "expert_class, expert_position, router_value, gate_weights"),
        (
            ("--workdir={0}/sparse", "--only=gate_order,buffers"),
            1,
            "cannot draw gate_order: needs --runs of both kinds",
        ),
        (("--model={0}/sparse/model.keras",), 1, "no images to evaluate"),
        (
            ("--workdir={0}/sparse", "--dataset=digits", "--dataset=other"),
            2,
            "Received: --dataset=digits --dataset=other",
        ),
        (("--workdir={0}/sparse", "--only=sweeps"), 1, "--runs that differ in num_experts"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(folder, tmp_path, capsys, words, code, message):
    words = [word.format(folder) for word in words]
    if words and not any(word.startswith("--out") for word in words):
        words.append(f"--out={tmp_path}")
    assert figures(*words) == code
    captured = capsys.readouterr()
    assert message.format(folder) in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abcdefghij", "classes apart than digits has, a, b, c, … against 0, 1, 2, …; give the"),
        ("abc", "tells 3 classes apart, but digits has 10; give the images"),
    ],
)
def test_images_of_other_classes_are_refused(tmp_path, capsys, names, message):
    file = tmp_path / "model.keras"
    models.Classifier(vmoe(num_classes=len(names)), names).save(file)
    out = tmp_path / "out"
    words = (f"--model={file}", "--dataset=digits", "--only=buffers", f"--out={out}")
    assert figures(*words) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_soft_routing_has_no_buffers_and_no_capacity(tmp_path, capsys):
    run = write_run(tmp_path / "soft", vmoe(router="soft", num_selected=None, num_slots=2))
    out = tmp_path / "out"
    assert figures(f"--workdir={run}", f"--out={out}", "--skip=router_value", "--images=1") == 0
    printed = capsys.readouterr().out
    assert "left out buffers: needs buffers, and soft routing has none" in printed
    assert "dropped_patches, k_matrix: needs routers by which tokens choose" in printed
    assert {path.stem for path in out.iterdir()} == {
        "expert_class",
        "expert_position",
        "gate_weights",
        "experts_per_image",
    }


@pytest.mark.slow
def test_from_training_to_every_figure(tmp_path, capsys):
    folders = [tmp_path / name for name in ("k1", "k2", "renormalised", "more", "dense")]
    assert tiny.train(folders[0]) == 0
    shape = {"patch_size": 4, "num_layers": 1, "placement": (0,), "mlp_dim": 16, "pooling": "gap"}
    shape["images_per_group"] = None
    for folder, overrides in zip(
        folders[1:4],
        ({"num_selected": 2}, {"renormalise_gates": True}, {"num_experts": 8}),
        strict=True,
    ):
        write_run(folder, vmoe(**shape, **overrides))
    write_run(folders[4], models.ViT(**SHAPE), ROWS[:5])
    capsys.readouterr()
    all_of_them = ",".join(map(str, folders))
    words = (f"--workdir={folders[0]}", f"--runs={all_of_them}", "--draws=2")
    assert figures(*words) == 0
    out = folders[0] / "figures"
    # All but that of a detector.
    made = [name for name in command.FIGURES if name != "detections"]
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{end}" for name in made for end in ("png", "csv")
    }
    printed = capsys.readouterr().out
    assert "left out detections: needs" in printed
    assert printed.count("left out") == 1
    assert f"done     {len(made)} figures" in printed
    rows = {name: table(out / f"{name}.png") for name in made}
    assert len(rows["quality_cost"]) == 5
    assert [row["run"] for row in rows["k_matrix"]].count("k2") == 3
    assert {row["trained_k"] for row in rows["k_matrix"]} == {"1", "2"}
    assert len(rows["router_value"]) == 2 * 2
    trained = {float(row["trained_accuracy"]) for row in rows["router_value"]}
    own = {
        float(row["accuracy"])
        for row in rows["k_matrix"]
        if row["run"] == "k1" and row["evaluated_k"] == "1"
    }
    np.testing.assert_allclose(list(trained), list(own))
    assert {row["argument"] for row in rows["sweeps"]} == {"num_experts", "num_selected"}
    assert len({row["order"] for row in rows["gate_order"]}) == 2
