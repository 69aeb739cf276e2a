"""On JAX the optimizers take the steps that they take on TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.xla import COMPILE_FAST
from tests.trainers.optimizers import jax_program

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.jax
@pytest.mark.slow
def test_updates_on_jax_equal_those_on_tensorflow(tmp_path):
    path = tmp_path / "numbers.npz"
    done = subprocess.run(
        [*(sys.executable, "-W", "ignore", "-m"), jax_program.__name__, str(path)],
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
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(path) as file:
        found = dict(file)
    wanted = {}
    for name in jax_program.MAKERS:
        for accumulate in (1, 3):
            wanted.update(jax_program.trail(name, accumulate))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=3e-6, err_msg=key)
