"""Gin files: found, read, refused with a line that says where."""

import sys
import types

import pytest

from keras_vmoe.trainers import configurables, errors, gin_config

FULL = """
include "data/digits.gin"
include "models/vmoe_digits.gin"
train.optimizer = @adamw
"""


@pytest.fixture(autouse=True)
def clean():
    yield
    gin_config.load().clear_config()


def parse(*bindings):
    gin_config.parse([], [FULL, *bindings])
    return configurables.train_config()


def test_without_gin_config_the_extra_is_named(monkeypatch):
    # What `import gin` finds in a checkout: the folder of gin files, as an empty namespace.
    monkeypatch.setitem(sys.modules, "gin", types.ModuleType("gin"))
    with pytest.raises(ImportError, match=r"pip install 'keras-vmoe\[train\]'"):
        gin_config.load()


def test_files_are_found_here_and_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.gin").write_text("")
    assert gin_config.find("own.gin").name == "own.gin"
    assert gin_config.find("runs/quickstart.gin").is_relative_to(gin_config.SHIPPED)
    with pytest.raises(FileNotFoundError, match="runs/quickstart.gin"):
        gin_config.find("nowhere.gin")


def test_an_own_file_includes_shipped_ones_and_its_neighbours(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "part.gin").write_text("train.epochs = 7.0\n")
    (tmp_path / "sub" / "own.gin").write_text(FULL + 'include "part.gin"\n')
    gin_config.parse(["sub/own.gin"], ["train.seed=3"])
    config = configurables.train_config()
    assert (config.epochs, config.seed) == (7.0, 3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("train.stps=3", ["'train'", "'stps'"]),
        ("VMoE.num_expert=3", ["'VMoE'", "'num_expert'"]),
        ("trainer.steps=3", ["'trainer'"]),
        ("train.model=@VMo", ["@VMo"]),
        ("train.model=VMoE", ["VMoE"]),
        ("train.steps=", ["--gin_bindings=train.steps=", "line 1"]),
        ("train.model=@VMoE()", ["train.model"]),
        ("train.steps=0", ["train.steps=0"]),
        ("train.batch_size=1.5", ["train.batch_size=1.5"]),
        ("train.epochs='many'", ["train.epochs='many'"]),
        ("train.loss='hinge'", ["train.loss='hinge'", "softmax"]),
        ("train.distribution='pod'", ["train.distribution='pod'", "one_device"]),
        ("train.distribution='mesh'", ["train.distribution='mesh'", "--mesh=batch:2,expert:4"]),
        ("train.mesh='batch:2'", ["train.mesh='batch:2'", "train.distribution='one_device'"]),
        ("train.label_smoothing=1.0", ["train.label_smoothing=1.0"]),
        ("train.label_smoothing='much'", ["train.label_smoothing='much'"]),
        ("train.epochs=None", ["train.epochs=None must be a positive number"]),
        ("train.cache=1", ["train.cache=1 must be True or False"]),
        ("train.keep_best='no'", ["train.keep_best='no' must be True or False"]),
        ("train.seed=0.5", ["train.seed=0.5 must be a whole number of 0 or more"]),
        ("train.routing_images=-1", ["train.routing_images=-1 must be a whole number"]),
        ("train.channels=2", ["train.channels=2 must be 1, 3 or None"]),
        ("train.init_from=3", ["train.init_from=3 must be a path in quotes"]),
        ('include "nowhere.gin"', ["nowhere.gin"]),
        ("train.dataset=%data", ["data"]),
    ],
)
def test_a_wrong_binding_is_named(binding, words):
    with pytest.raises((ValueError, SyntaxError, OSError, TypeError)) as caught:
        parse(binding)
    line = errors.one_line(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_what_a_run_must_bind_is_listed():
    gin_config.parse([], ["train.epochs=3.0"])
    with pytest.raises(ValueError, match=r"train\.model.*runs/quickstart\.gin"):
        configurables.train_config()


def test_the_operative_config_holds_defaults_and_reads_back():
    parse("train.seed=5")
    bindings = gin_config.bindings(gin_config.operative())
    assert bindings["train.seed"] == "5"
    assert bindings["train.keep_checkpoints"] == "2"
    assert bindings["train.model"] == "@VMoE"


def test_the_length_of_a_run():
    assert parse("train.epochs=2.5").total_steps(10) == 25
    assert parse("train.epochs=2.5", "train.steps=4").total_steps(10) == 4
    assert parse("train.epochs=0.001").total_steps(10) == 1


def test_a_folder_here_that_is_called_like_one_of_ours_is_in_nobodys_way(tmp_path, monkeypatch):
    for name in ("data", "models", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gin_config.parse(["runs/quickstart.gin"], [])
    assert configurables.train_config().epochs == 60.0


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("train.epoch=3", r"n.t have a parameter named 'epoch'.*did you mean train\.epochs\?"),
        ("VMoE.num_expert=3", r"did you mean VMoE\.num_experts"),
        ("trian.epochs=3", r"matching 'trian'.*did you mean train\?"),
        ("train.model=@VMOE", r"did you mean VMoE\?"),
        ("train.model=@Xyzzy", r"matching reference '@Xyzzy'[^?]*$"),
    ],
)
def test_a_misspelt_name_brings_the_nearest(binding, words):
    with pytest.raises(ValueError, match=words):
        gin_config.parse([], [binding])
