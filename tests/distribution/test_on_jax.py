"""Meshes of eight virtual CPUs on the JAX backend, each test in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import distribution

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.jax, pytest.mark.multi_device]


def run(*words, backend="jax", devices=8):
    """The lines that a part of the program prints, as words."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.distribution.jax_program", *words],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module", params=["float32", "mixed_bfloat16"])
def alone(request, tmp_path_factory):
    """The precision, and what TensorFlow computes without a mesh."""
    path = tmp_path_factory.mktemp("alone") / "numbers.npz"
    run("alone", str(path), request.param, backend="tensorflow")
    with np.load(path) as file:
        return request.param, dict(file)


@pytest.mark.parametrize("sizes", ["batch:1,expert:8", "batch:2,expert:4", "batch:8,expert:1"])
def test_five_steps_on_jax_equal_tensorflow_on_one_device(sizes, alone, tmp_path):
    dtype, wanted = alone
    run("numbers", str(tmp_path / "numbers.npz"), sizes, dtype)
    with np.load(tmp_path / "numbers.npz") as found:
        assert found.keys() == wanted.keys()
        if dtype == "float32":
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
        else:
            # Adam's first steps are signs of gradients, which half precision gets wrong near zero.
            np.testing.assert_allclose(found["losses"], wanted["losses"], atol=0.03)


@pytest.mark.parametrize(("sizes", "parts"), [("expert:8", 8), ("batch:2,expert:4", 4)])
def test_experts_and_their_slots_take_their_share_of_each_device(sizes, parts):
    for _, *each, whole in run("memory", sizes):
        assert len(each) == 8
        assert {int(size) for size in each} == {int(whole) // parts}


def test_tokens_travel_and_experts_stay():
    (_, *exchanged), (_, *gathered) = run("collectives", "expert:8")
    assert exchanged
    # 12 x 20 is a kernel of an expert, in both directions.
    assert not [shape for shape in gathered if {"12", "20"} <= set(shape.split(","))]


def test_a_step_is_compiled_once():
    # On one device JAX has most words for the place of an array.
    assert run("compilations", "batch:1,expert:1", devices=1) == [["compiled", "1"]]


def test_experts_are_born_apart_with_the_values_that_they_have_without_a_mesh():
    assert run("births", "batch:2,expert:4") == [["drawn", "2", "True"]]


def test_a_model_off_the_mesh_is_the_same_on_one_device():
    ((_, apart, devices),) = run("gathered", "batch:2,expert:4")
    assert float(apart) < 1e-5
    assert devices == "1"


def test_fit_under_keras_own_distribution_gives_what_it_gives_without():
    ((_, *numbers),) = run("fit", "batch:2,expert:4")
    losses, parts = np.array(numbers[:4], "float64"), numbers[4:]
    np.testing.assert_allclose(losses[2:], losses[:2], atol=1e-4)
    assert parts == ["2"] * 8


def test_on_tensorflow_there_is_another_mesh():
    assert keras.backend.backend() == "tensorflow"
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=jax"):
        distribution.JaxMesh()
