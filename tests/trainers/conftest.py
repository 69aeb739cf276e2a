"""What several test files of trainers share."""

import shutil

import pytest

from tests.trainers.tiny import TINY_VIT, train


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The workdir of a tiny V-MoE after 6 steps on digits; not to be written to."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train(workdir, "train.checkpoint_every=4") == 0
    return workdir


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory):
    """The workdir of a tiny ViT after 2 steps on digits; not to be written to."""
    workdir = tmp_path_factory.mktemp("dense") / "run"
    bindings = (*TINY_VIT, "train.steps=6", "train.batch_size=16")
    assert train(workdir, gin_file="runs/quickstart_dense.gin", tiny=bindings) == 0
    return workdir


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """A copy of `finished_run` that may be changed; times of files are kept."""
    return shutil.copytree(finished_run, tmp_path / "copied")
