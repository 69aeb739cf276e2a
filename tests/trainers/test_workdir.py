"""The folder of a run."""

import os

import pytest

from keras_vmoe.trainers import gin_config
from keras_vmoe.trainers.workdir import Workdir, default_path

CONFIG = "# Parameters for train:\ntrain.epochs = 3\ntrain.seed = 0\nVMoE.num_experts = 8\n"


def test_it_is_made_with_its_parents(tmp_path):
    assert Workdir(tmp_path / "a" / "b").path.is_dir()


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--workdir=.*file cannot be written to"):
        Workdir(tmp_path / "file")


def with_run(path):
    workdir = Workdir(path)
    workdir.write_config(CONFIG)
    workdir.checkpoints.mkdir()
    (workdir.checkpoints / "ckpt-1.index").write_text("")
    return workdir


def test_the_same_config_may_resume(tmp_path):
    assert Workdir(tmp_path).check_config(CONFIG) == []
    assert with_run(tmp_path).check_config(CONFIG) == []


def test_a_run_that_saved_nothing_is_in_nobodys_way(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    assert workdir.check_config("VMoE.num_experts = 16\n") == []


def test_a_longer_run_may_resume_and_says_so(tmp_path):
    workdir = with_run(tmp_path)
    changes = workdir.check_config(CONFIG.replace("epochs = 3", "epochs = 5"))
    assert changes == ["train.epochs 3 -> 5"]


def test_another_model_may_not(tmp_path):
    workdir = with_run(tmp_path)
    with pytest.raises(ValueError, match=r"VMoE.num_experts 8 -> 16.*another --workdir"):
        workdir.check_config(CONFIG.replace("8", "16"))
    with pytest.raises(ValueError, match=r"VMoE.num_experts 8 -> -"):
        workdir.check_config(CONFIG.replace("VMoE.num_experts = 8\n", ""))


def test_a_parameter_of_a_later_version_is_no_change_unless_it_is_given(tmp_path):
    workdir = with_run(tmp_path)
    later = CONFIG + "train.retokenization = ((2, 16, 5),)\n"
    gin_config.parse([], [])
    assert workdir.check_config(later) == []
    gin_config.parse([], ["train.retokenization = ((2, 16, 5),)"])
    with pytest.raises(ValueError, match=r"train.retokenization - -> \(\(2, 16, 5\),\)"):
        workdir.check_config(later)


def test_an_empty_config_is_an_error(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config("")
    workdir.checkpoints.mkdir()
    (workdir.checkpoints / "ckpt-1.index").touch()
    with pytest.raises(ValueError, match=r"its config\.gin is empty"):
        workdir.check_config(CONFIG)


def test_what_differs_is_told_by_name(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    assert workdir.changes(CONFIG) == {}
    assert workdir.changes(CONFIG.replace("8", "16")) == {
        "VMoE.num_experts": "VMoE.num_experts 8 -> 16"
    }


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.model.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"cannot write .*model\.keras \(disk full\)"):
        workdir.replace(workdir.model, fail)
    assert workdir.model.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.keras"]


def test_one_process_at_a_time(tmp_path):
    with (
        Workdir(tmp_path).locked(),
        pytest.raises(ValueError, match=r"--workdir=.* is in use: another process trains there"),
        Workdir(tmp_path).locked(),
    ):
        pass
    with Workdir(tmp_path).locked():
        pass


def test_default_paths_keep_runs_apart():
    assert str(default_path("runs/quickstart.gin", 1)) == "workdir/quickstart-seed1"
    assert str(default_path("/a/gin/runs/e3/x.gin", 0)) == "workdir/e3/x-seed0"
    assert default_path("a/x.gin", 0) != default_path("a/y.gin", 0)
