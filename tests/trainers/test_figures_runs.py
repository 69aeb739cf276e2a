"""Which runs `keras-vmoe figures` takes for seeds of one another, and which it refuses."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from keras_vmoe import analysis, evaluation, models
from keras_vmoe.trainers import cli, trained
from keras_vmoe.trainers.figures import making, runs
from tests.trainers.test_figures_command import (
    CONFIG,
    ROWS,
    SHAPE,
    figures,
    table,
    vmoe,
    write_run,
)

LINES = f"""{CONFIG}
train.augment = None
train.model = @VMoE
train.epochs = 10.0
train.steps = 6
adamw.learning_rate = 0.002
adamw.weight_decay = 0.1
"""
AUGMENT = "train.augment = @Augment()\nAugment.shift = 2"


def rebound(**others):
    """A config in which some parameters of `train`, or of the names given, have other values."""
    text = LINES
    for name, value in others.items():
        name = name.replace("__", ".") if "__" in name else f"train.{name}"
        lines = [line for line in text.splitlines() if not line.startswith(f"{name} =")]
        text = "\n".join([*lines, f"{name} = {value}", ""])
    return text


def configs(tmp_path, *texts, arguments=({},)):
    """Folders that hold a config each, and their summaries without what the configs add."""
    folders, found = [], []
    for number, text in enumerate(texts):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "config.gin").write_text(text)
        own = {"num_selected": 1, "width": 8, "steps": 6, **arguments[number % len(arguments)]}
        seed = int(text.partition("train.seed = ")[2].split()[0])
        summary = analysis.RunSummary(folder.name, True, 0.5, 1.0, 1.0, seed, arguments=own)
        folders.append(folder)
        found.append(summary)
    return folders, found


def added(tmp_path, *texts, **options):
    """The settings that are added to each run's arguments."""
    folders, found = configs(tmp_path, *texts, **options)
    told = runs.tell_apart(folders, found)
    return [
        {name: value for name, value in run.arguments.items() if name not in before.arguments}
        for run, before in zip(told, found, strict=True)
    ]


def test_seeds_have_the_same_arguments(tmp_path):
    how_measured = {"log_every": 7, "keep_best": False, "dataset__data_dir": "'elsewhere'"}
    texts = (rebound(seed=0), rebound(seed=1), rebound(seed=2, **how_measured))
    assert added(tmp_path, *texts) == [{}] * 3


@pytest.mark.parametrize(
    ("other", "label", "values"),
    [
        ({"adamw__learning_rate": 0.01}, "learning_rate", (0.002, 0.01)),
        ({"other__name": "'a'"}, "other.name", ("-", "a")),
        ({"batch_size": 32}, "batch_size", (16, 32)),
        ({"augment": AUGMENT.partition(" = ")[2]}, "augment", (None, "@Augment()")),
        ({"new": 3}, "new", ("-", 3)),
        ({"steps": 8}, "train.steps", (6, 8)),
    ],
)
def test_what_differs_is_an_argument(tmp_path, other, label, values):
    found = added(tmp_path, rebound(seed=0), rebound(seed=1, **other), rebound(seed=2))
    assert found == [{label: values[0]}, {label: values[1]}, {label: values[0]}]


def test_the_model_s_parameters_are_those_that_the_model_has(tmp_path):
    texts = [rebound(seed=seed, VMoE__num_selected=k) for seed, k in enumerate(("None", 1, 2))]
    other = [{}, {}, {"num_selected": 2}]
    assert added(tmp_path, *texts, arguments=other) == [{}] * 3


def test_the_steps_say_how_long_a_run_is(tmp_path):
    texts = [rebound(seed=0), rebound(seed=0, steps=8), rebound(seed=1, steps=8)]
    steps = [{}, {"steps": 8}, {"steps": 8}]
    assert added(tmp_path, *texts, arguments=steps) == [{}] * 3


def test_labels_are_short_and_tell_all_configs_apart(tmp_path):
    many = {f"adamw__beta_{letter}": 1 for letter in "abcdefg"}
    texts = [
        rebound(seed=0, **dict.fromkeys(many, 0)),
        rebound(seed=0, **many, adamw__learning_rate=0.01),
        rebound(seed=1, **many, adamw__learning_rate=0.01),
        rebound(seed=1, **many, adamw__learning_rate=0.01, train__zoom=3),
    ]
    found = added(tmp_path, *texts)
    names = ["learning_rate", "beta_a", "beta_b", "zoom"]
    assert [list(settings) for settings in found] == [names] * 4
    assert found[1] == found[2]
    assert len({repr(settings) for settings in found}) == 3


def test_a_run_does_not_count_twice(tmp_path):
    folders, found = configs(tmp_path, rebound(seed=3), rebound(seed=4), rebound(seed=3))
    message = "--runs=.*run2 has the config and the seed, train.seed=3, of .*run0, and would count"
    with pytest.raises(ValueError, match=message):
        runs.tell_apart(folders, found)
    dense = dataclasses.replace(found[2], sparse=False)
    assert len(runs.tell_apart(folders, [*found[:2], dense])) == 3


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Runs of two numbers of choices, orders and learning rates, and three dense ones."""
    parent = tmp_path_factory.mktemp("compared")
    for name, order, text, accuracy in (
        ("a0", False, rebound(seed=0), 0.5),
        ("a1", False, rebound(seed=1), 0.6),
        ("fast", False, rebound(seed=2, adamw__learning_rate=0.01), 0.9),
        ("after", True, rebound(seed=0), 0.7),
    ):
        write_run(parent / name, vmoe(renormalise_gates=order), rows(accuracy), text)
    write_run(parent / "k2", vmoe(num_selected=2), rows(0.8), rebound(seed=0))
    vit = models.ViT(**SHAPE)
    write_run(parent / "dense0", vit, rows(0.4), rebound(seed=0, model="@ViT"))
    write_run(parent / "dense1", vit, rows(0.2), rebound(seed=1, model="@ViT"))
    text = rebound(seed=2, model="@ViT", batch_size=32)
    write_run(parent / "dense2", vit, rows(0.9), text)
    return parent


def rows(accuracy, steps=6):
    return (ROWS[0], {"step": steps, "split": "eval", "loss": 1.0, "accuracy": accuracy})


def folders_of(parent, *names):
    return ",".join(str(parent / name) for name in names)


def test_the_orders_of_gates_are_compared_at_one_learning_rate(compared, tmp_path):
    several = folders_of(compared, "a0", "a1", "fast", "after")
    assert figures(f"--runs={several}", "--only=gate_order", f"--out={tmp_path}") == 0
    before, after = table(tmp_path / "gate_order.png")
    assert before["setting"] == after["setting"] == "k=1, learning_rate=0.002"
    assert (before["runs"], before["accuracy"], after["accuracy"]) == ("2", "0.55", "0.7")


def test_sweeps_average_seeds_alone(compared, tmp_path, capsys):
    several = folders_of(compared, "a0", "a1", "fast", "k2", "dense0", "dense1")
    assert figures(f"--runs={several}", "--only=sweeps", f"--out={tmp_path}") == 0
    assert "without dense" not in capsys.readouterr().out
    found = {
        (row["setting"], row["value"]): (row["runs"], row["accuracy"])
        for row in table(tmp_path / "sweeps.png")
    }
    assert found == {
        ("learning_rate=0.002", "1"): ("2", "0.55"),
        ("learning_rate=0.01", "1"): ("1", "0.9"),
        ("learning_rate=0.002", "2"): ("1", "0.8"),
    }


def test_dense_runs_that_differ_have_no_mean(compared, tmp_path, capsys, monkeypatch):
    drawn = []
    plot = making.figures.plot_sweeps
    monkeypatch.setattr(
        making.figures, "plot_sweeps", lambda found, path: drawn.append(found) or plot(found, path)
    )
    several = folders_of(compared, "a0", "k2", "dense0", "dense2")
    assert figures(f"--runs={several}", "--only=sweeps", f"--out={tmp_path}") == 0
    assert "without dense runs: these differ in batch_size" in capsys.readouterr().out
    assert [run.name for run in drawn[0]] == ["a0", "k2"]


def test_the_run_of_workdir_is_in_the_matrix_of_k(compared, tmp_path, monkeypatch):
    def swept(_, subject):
        k = subject.num_selected
        return making.figures.SelectedSweep(subject.name, k, {1: 0.5 + 0.1 * k, 2: 0.9})

    monkeypatch.setattr(making, "_selected_sweep", swept)
    words = (f"--runs={folders_of(compared, 'k2', 'a0')}", "--only=k_matrix", "--images=1")
    assert figures(f"--workdir={compared / 'a1'}", *words, f"--out={tmp_path}") == 0
    assert {row["run"] for row in table(tmp_path / "k_matrix.png")} == {"a1", "k2", "a0"}


def test_a_run_that_is_given_twice_is_one_row_of_the_matrix(compared):
    folders = [compared / "a0", compared / "k2"]
    found = [runs.summarise(folder, vmoe()) for folder in folders]
    given = SimpleNamespace(subject=None, detector=None, path=None, folders=folders, runs=found)
    assert making._k_folders(given) == folders
    given.subject = SimpleNamespace(moe=[1], tokens_choose=True)
    for path in (folders[1], folders[1] / "model.keras"):
        given.path = path
        assert making._k_folders(given) == [path, folders[0]]


def test_quality_is_the_mean_of_seeds(compared, tmp_path):
    several = folders_of(compared, "a0", "a1", "fast", "after", "dense0", "dense1", "dense2")
    assert figures(f"--runs={several}", "--only=quality_cost", f"--out={tmp_path}") == 0
    found = {
        row["run"]: (row["kind"], row["runs"], row["accuracy"])
        for row in table(tmp_path / "quality_cost.png")
    }
    assert found == {
        "a0, a1": ("sparse", "2", "0.55"),
        "fast": ("sparse", "1", "0.9"),
        "after": ("sparse", "1", "0.7"),
        "dense0, dense1": ("dense", "2", "0.3"),
        "dense2": ("dense", "1", "0.9"),
    }


@pytest.mark.parametrize(
    ("other", "one", "another"),
    [
        ({"name": "'fashion_mnist'"}, "digits", "fashion_mnist"),
        (
            {"train_split": "'train[:9]'"},
            "digits (train_split=None)",
            "digits (train_split='train[:9]')",
        ),
        (
            {"eval_split": "'train'"},
            "digits (eval_split=None)",
            "digits (eval_split='train')",
        ),
    ],
)
def test_runs_of_different_datasets_are_refused(
    compared, tmp_path, capsys, monkeypatch, other, one, another
):
    # Before any of them is read.
    monkeypatch.setattr("keras_vmoe.trainers.figures.inputs.Inputs", None)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.jsonl", "model.keras"):
        (run / name).touch()
    text = rebound(seed=5, **{f"dataset__{name}": value for name, value in other.items()})
    (run / "config.gin").write_text(text)
    out = tmp_path / "out"
    assert figures(f"--runs={folders_of(compared, 'a0', 'a1')},{run}", f"--out={out}") == 1
    error = capsys.readouterr().err
    assert (
        f"--runs: {compared / 'a0'} was trained on {one}, {run} on {another}; give the runs of "
        "one dataset\n"
    ) in error
    assert error.count("\n") == 1
    assert not out.exists()


# Twins.


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("twins") / "sparse", vmoe(), rows(0.5))


@pytest.mark.parametrize(
    ("model", "steps", "text", "names", "message"),
    [
        ({}, 6, CONFIG, "0123456789", None),
        ({}, 8, CONFIG, "0123456789", "steps=8, not 6"),
        (
            {},
            6,
            CONFIG.replace("digits", "fashion_mnist"),
            "0123456789",
            "dataset.name='fashion_mnist', not 'digits'",
        ),
        (
            {},
            6,
            CONFIG + "dataset.train_split = 'train[:9]'\n",
            "0123456789",
            "dataset.train_split='train[:9]', not 'train'",
        ),
        ({"image_size": 24}, 6, CONFIG, "0123456789", "image_size=24, not 16"),
        ({"channels": 3}, 6, CONFIG, "0123456789", "channels=3, not 1"),
        ({"num_classes": 3}, 6, CONFIG, "012", "num_classes=3, not 10"),
        ({}, 6, CONFIG, "abcdefghij", "class_names=a, b, c"),
        ("sparse", 6, CONFIG, "0123456789", "is no dense run: its model has MoE layers"),
    ],
)
def test_what_is_no_dense_twin(tmp_path, model, steps, text, names, message):
    own = CONFIG + "dataset.train_split = 'train'\n"
    first = write_run(tmp_path / "sparse", vmoe(), rows(0.5), own)
    other = vmoe() if model == "sparse" else models.ViT(**{**SHAPE, **model})
    second = write_run(tmp_path / "dense", other, rows(0.5, steps), text, names)
    why = trained.no_twin(trained.load(second), trained.load(first))
    assert why is None if message is None else message in why


def test_of_a_file_that_is_compared_which_is_known(sparse, tmp_path):
    text = CONFIG.replace("digits", "fashion_mnist")
    dense = write_run(tmp_path / "dense", models.ViT(**SHAPE), rows(0.5, 8), text)
    loaded = trained.load(dense / "model.keras")
    assert trained.no_twin(loaded, trained.load(sparse)) is None


def test_the_dataset_of_a_twin_is_that_of_its_training(sparse, tmp_path):
    text = CONFIG.replace("digits", "fashion_mnist")
    dense = write_run(tmp_path / "dense", models.ViT(**SHAPE), rows(0.5), text)
    loaded = trained.load(sparse, gin_bindings=("dataset.name='fashion_mnist'",))
    assert "dataset.name='fashion_mnist', not 'digits'" in trained.no_twin(
        trained.load(dense), loaded
    )


@pytest.mark.parametrize(("rows_of", "code"), [(rows(0.5), 0), (rows(0.5, 8), 1)])
def test_evaluate_wants_a_twin(sparse, tmp_path, capsys, rows_of, code):
    dense = write_run(tmp_path / "dense", models.ViT(**SHAPE), rows_of)
    words = ["--sweep", "--num_selected=1", "--capacity_factors=1", "--priority=bpr"]
    words += ["--rounds=0", "--batches=1", "--batch_size=16", f"--out={tmp_path / 'out'}"]
    words += [f"--workdir={sparse}", f"--dense_workdir={dense}"]
    assert cli.main(["evaluate", *words]) == code
    error = capsys.readouterr().err
    wanted = f"--dense_workdir={dense} is no twin of {sparse}: steps=8, not 6" if code else ""
    assert wanted in error
    assert error.count("\n") == code


def test_figures_want_a_twin(sparse, tmp_path, capsys):
    dense = write_run(tmp_path / "dense", models.ViT(**SHAPE), rows(0.5, 8))
    words = (f"--workdir={sparse}", f"--runs={dense}", "--images=1", f"--out={tmp_path / 'out'}")
    assert figures(*words, "--only=capacity") == 1
    error = capsys.readouterr().err
    assert f"cannot draw capacity: --runs={dense} is no twin of {sparse}: steps=8, not 6" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("softmax", 0.5)])
def test_capacity_has_the_loss_of_the_run(tmp_path, monkeypatch, kind, smoothing):
    logits, labels = np.random.default_rng(0).normal(size=(4, 10)), np.array([3, 0, 9, 3])

    def swept(*_, loss=evaluation.softmax_loss, **__):
        mean = float(np.mean(loss(labels, logits)))
        return [evaluation.SweepRow(1, 1.0, "bpr", 1.0, 0.5, mean, 1.0, 1, 1, None, 4, 80, {})]

    monkeypatch.setattr(making.sweeping, "sweep", swept)
    text = f"{CONFIG}train.loss = '{kind}'\ntrain.label_smoothing = {smoothing}\n"
    run = write_run(tmp_path / "run", vmoe(), rows(0.5), text)
    assert figures(f"--workdir={run}", "--only=capacity", f"--out={tmp_path / 'out'}") == 0
    (found,) = table(tmp_path / "out" / "capacity.png")
    truth = np.eye(10)[labels] * (1 - smoothing) + smoothing / 10
    if kind == "softmax":
        losses = -(truth * np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)))
    else:
        share = 1 / (1 + np.exp(-logits))
        losses = -(truth * np.log(share) + (1 - truth) * np.log(1 - share))
    assert float(found["loss"]) == pytest.approx(losses.sum(-1).mean(), rel=1e-5)


@pytest.mark.slow
def test_capacity_has_the_dense_twin_among_the_runs(sparse, tmp_path):
    vit = models.ViT(**SHAPE)
    write_run(tmp_path / "short", vit, rows(0.5, 2))
    write_run(tmp_path / "twin", vit, rows(0.5))
    words = (f"--workdir={sparse}", f"--runs={folders_of(tmp_path, 'short', 'twin')}")
    words += ("--only=capacity", "--images=16", "--batch_size=16", f"--out={tmp_path / 'out'}")
    assert figures(*words) == 0
    found = table(tmp_path / "out" / "capacity.png")
    assert [row["priority"] for row in found].count("dense") == 1
    loaded = trained.load(tmp_path / "twin")
    wanted = evaluation.evaluate(loaded.model, loaded.eval_batches(16).take(1))
    assert float(found[-1]["loss"]) == pytest.approx(wanted.loss, rel=1e-5)
