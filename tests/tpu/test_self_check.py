"""tpu/self_check.py: one training step, wherever it runs."""

import importlib.util
import re

import pytest

from tests.tpu.fake_gcloud import TPU


@pytest.fixture
def self_check(monkeypatch):
    # It sets these for its own process.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.delenv("TPU_NAME", raising=False)
    spec = importlib.util.spec_from_file_location("self_check", TPU / "self_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_step_prints_versions_devices_and_a_loss(self_check, capsys):
    assert self_check.main(["--tpu=none"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"python \S+, keras_vmoe \S+, keras 3\.\S+, tensorflow 2\.", out)
    assert "no TPU: one step without it" in out
    assert re.search(r"devices: .*CPU; OneDeviceStrategy with 1 replica", out)
    loss = float(re.search(r"loss of one step (\S+)", out)[1])
    # Four classes: close to log 4.
    assert 1.0 < loss < 2.0
    assert "passed in" in out


def test_a_loss_that_is_not_finite_fails(self_check, capsys, monkeypatch):
    def one_step(strategy):
        raise FloatingPointError("the loss is nan\nand more")

    monkeypatch.setattr(self_check, "make_strategy", lambda tpu: None)
    monkeypatch.setattr(self_check, "devices", lambda strategy: "")
    monkeypatch.setattr(self_check, "one_step", one_step)
    assert self_check.main(["--tpu=none"]) == 1
    assert "one step without a TPU failed: the loss is nan\n" in capsys.readouterr().err


def test_without_a_tpu_require_tpu_fails(self_check, capsys, monkeypatch):
    monkeypatch.setattr(self_check, "find_tpu", lambda asked: None)
    assert self_check.main(["--require_tpu"]) == 1
    assert "no TPU on this machine and TPU_NAME is not set" in capsys.readouterr().err


def test_the_tpu_is_found_where_it_is(self_check, tmp_path, monkeypatch):
    assert self_check.find_tpu("auto", tmp_path) is None
    assert self_check.find_tpu("none", tmp_path) is None
    assert self_check.find_tpu("local", tmp_path) == "local"
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()
    assert self_check.find_tpu("auto", tmp_path) is None
    (tmp_path / "vfio" / "0").touch()
    assert self_check.find_tpu("auto", tmp_path) == "local"
    assert self_check.find_tpu("none", tmp_path) is None
    monkeypatch.setenv("TPU_NAME", "vmoe-1")
    assert self_check.find_tpu("auto", tmp_path) == "vmoe-1"


@pytest.mark.parametrize("words", [["--require_tpu", "--tpu=none"], ["--tup=none"]])
def test_a_wrong_command_line_is_refused(self_check, words):
    with pytest.raises(SystemExit) as stopped:
        self_check.main(words)
    assert stopped.value.code == 2
