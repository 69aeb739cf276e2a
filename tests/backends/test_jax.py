"""JAX gives TensorFlow's numbers. All of JAX's are computed in one process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.backends import cases
from tests.support.golden import max_error
from tests.support.xla import COMPILE_FAST

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.jax


# The rest takes a minute, and is run with the slow tests.
QUICK = {
    "grouped_matmul",
    "plans",
    "losses",
    "layers/moe_mlp/auto",
    "masked/grouped",
    "masked/expert_choice",
    "reference/top_k",
    "fit/remat",
    "fit/limoe",
}


@pytest.fixture(scope="module")
def jax_numbers(tmp_path_factory, request):
    """The numbers of all cases that this session compares."""
    path = tmp_path_factory.mktemp("jax") / "numbers.npz"
    items = [item for item in request.session.items if item.path == request.path]
    names = sorted({item.callspec.params["name"] for item in items})
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.backends.cases", str(path), *names],
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": COMPILE_FAST,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in cases.CASES],
)
def test_numbers_of_jax_are_those_of_tensorflow(name, jax_numbers):
    assert keras.backend.backend() == "tensorflow"
    wanted = cases.compute([name])
    found = {key: value for key, value in jax_numbers.items() if key.startswith(f"{name}: ")}
    assert found.keys() == wanted.keys()
    # Gradients that are zero but for rounding are judged by the size of the others.
    floats = [np.abs(v).max() for v in wanted.values() if v.dtype.kind == "f" and v.size]
    for key, value in wanted.items():
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(found[key], value, err_msg=key)
        elif value.size and np.abs(value).max() > 1e-5 * max(floats):
            assert max_error(found[key], value) < 1e-4, key
