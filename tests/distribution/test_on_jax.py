"""Meshes of eight virtual CPUs on the JAX backend, in processes of their own."""

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import distribution
from tests.distribution.parts import lines_by_part, once, require_done
from tests.support.xla import COMPILE_FAST

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.jax, pytest.mark.multi_device]


def output_of(*parts, backend="jax", devices=8):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.distribution.jax_program", *parts],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {COMPILE_FAST}",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


MESHES = ("batch:1,expert:8", "batch:2,expert:4", "batch:8,expert:1")
DTYPES = ("float32", "mixed_bfloat16")
MEMORY = {"expert:8": 8, "batch:2,expert:4": 4}
PARTS = (
    *(f"memory {sizes}" for sizes in MEMORY),
    "collectives expert:8",
    *(f"{name} batch:2,expert:4" for name in ("births", "gathered", "fit")),
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Part to what it printed; all that run on eight devices share a process."""

    def make(folder):
        numbers = (
            shlex.join(["numbers", str(folder / f"{sizes}-{dtype}.npz"), sizes, dtype])
            for sizes, dtype in itertools.product(MESHES, DTYPES)
        )
        return output_of(*numbers, *PARTS)

    return lines_by_part(once(tmp_path_factory, "on_jax", make))


@pytest.fixture(scope="module")
def run(lines):
    """The lines of a part that did not fail."""
    return lambda part: require_done(lines[part])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory, lines):
    """Reads what a mesh computes, as the sizes and the precision say, and TensorFlow without."""

    def make(folder):
        parts = (shlex.join(["alone", str(folder / f"{dtype}.npz"), dtype]) for dtype in DTYPES)
        return output_of(*parts, backend="tensorflow")

    both = {**lines, **lines_by_part(once(tmp_path_factory, "on_tensorflow", make))}

    def read(*words):
        (part,) = [part for part in both if shlex.split(part)[2:] == list(words)]
        require_done(both[part])
        with np.load(shlex.split(part)[1]) as file:
            return dict(file)

    return read


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", MESHES)
def test_five_steps_on_jax_equal_tensorflow_on_one_device(sizes, dtype, numbers):
    found, wanted = numbers(sizes, dtype), numbers(dtype)
    assert found.keys() == wanted.keys()
    if dtype == "float32":
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
    else:
        # Adam's first steps are signs of gradients, which half precision gets wrong near zero.
        np.testing.assert_allclose(found["losses"], wanted["losses"], atol=0.03)


@pytest.mark.parametrize(("sizes", "parts"), MEMORY.items())
def test_experts_and_their_slots_take_their_share_of_each_device(sizes, parts, run):
    lines = run(f"memory {sizes}")
    assert len(lines) == 2
    for _, *each, whole in lines:
        assert len(each) == 8
        assert {int(size) for size in each} == {int(whole) // parts}


def test_tokens_travel_and_experts_stay(run):
    (_, *exchanged), (_, *gathered) = run("collectives expert:8")
    assert exchanged
    # 12 x 20 is a kernel of an expert, in both directions.
    assert not [shape for shape in gathered if {"12", "20"} <= set(shape.split(","))]


def test_a_step_is_compiled_once():
    # On one device JAX has most words for the place of an array.
    part = "compilations batch:1,expert:1"
    assert lines_by_part(output_of(part, devices=1)) == {part: [["compiled", "1"]]}


def test_experts_are_born_apart_with_the_values_that_they_have_without_a_mesh(run):
    assert run("births batch:2,expert:4") == [["drawn", "2", "True"]]


def test_a_model_off_the_mesh_is_the_same_on_one_device(run):
    ((_, apart, devices),) = run("gathered batch:2,expert:4")
    assert float(apart) < 1e-5
    assert devices == "1"


def test_fit_under_keras_own_distribution_gives_what_it_gives_without(run):
    ((_, *numbers),) = run("fit batch:2,expert:4")
    losses, parts = np.array(numbers[:4], "float64"), numbers[4:]
    np.testing.assert_allclose(losses[2:], losses[:2], atol=1e-4)
    assert parts == ["2"] * 8


def test_on_tensorflow_there_is_another_mesh():
    assert keras.backend.backend() == "tensorflow"
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=jax"):
        distribution.JaxMesh()
