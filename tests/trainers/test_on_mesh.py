"""`keras-vmoe train --mesh=…`, in processes of their own."""

import os
import subprocess
import sys

import numpy as np
import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import PICTURE, arguments, train


def run(workdir, *bindings, flags=()):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "keras_vmoe.trainers.cli"),
            *arguments(workdir, *bindings),
            *flags,
        ],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def rows(workdir):
    return MetricsLog(workdir / "metrics.jsonl").rows()


@pytest.mark.multi_device
def test_a_run_that_changes_its_mesh_is_the_run_of_one_device(tmp_path):
    """Two meshes, then one device: data, steps, means, averages and checkpoints all go on."""
    wanted, found = tmp_path / "one", tmp_path / "meshes"
    rate = "adamw.schedule=@constant"  # a longer run would stretch another
    # A head of zeros has equal logits: after a step, which is the highest is a matter of rounding.
    head = "VMoE.head_kernel_initializer='glorot_uniform'"
    run(wanted, rate, head)
    for steps, flags in ((2, ["--mesh=batch:2,expert:2"]), (4, ["--mesh=expert:2"]), (6, [])):
        done = run(found, rate, head, PICTURE, f"train.steps={steps}", flags=flags)
        devices = next(line for line in done.stdout.splitlines() if line.startswith("devices  "))
        if flags:
            assert devices.startswith("devices  Mesh(")
            assert devices.endswith(", TensorFlow on CPU")
        else:
            assert devices == "devices  1 replica, OneDeviceStrategy on CPU:0"
        assert ("resume   from step" in done.stdout) == (steps > 2)
    ours = {(row["step"], row["split"]): row for row in rows(found)}
    for row in rows(wanted):
        other = ours[row["step"], row["split"]]
        for name in row.keys() - {"images_per_second", "split"}:
            np.testing.assert_allclose(other[name], row[name], atol=1e-4, err_msg=name)
    assert (found / "model.keras").exists()
    assert (found / "routing.png").exists()


@pytest.mark.multi_device
def test_a_mesh_takes_its_weights_from_a_run(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(first, "train.steps=2")
    done = run(second, "train.steps=1", flags=["--mesh=expert:2", f"--init_from={first}"])
    assert "weights  from" in done.stdout


def test_a_mesh_that_does_not_fit_is_one_line(tmp_path, capsys):
    for words, message in (
        (("train.mesh='batch:2'",), "do not go together; --mesh=batch:2,expert:4 sets both"),
        (("train.distribution='mesh'",), "do not go together"),
        (("train.distribution='mesh'", "train.mesh='rows:2'"), "such as 'batch:2,expert:4'"),
        (("train.distribution='pod'",), "'multi_worker', 'tpu', 'mesh'"),
    ):
        assert train(tmp_path, *words) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "bindings", "message"),
    [
        ("--mesh=", (), "such as 'batch:2,expert:4'. Received: ''"),
        (
            "--mesh=expert:2",
            ("train.distribution='mirrored'",),
            "--mesh=expert:2 sets train.distribution='mesh', but the gin file or a binding says "
            "'mirrored'; leave one out",
        ),
        ("--tpu=local", ("train.distribution='mirrored'",), "says 'mirrored'; leave one out"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(tmp_path, capsys, flag, bindings, message):
    assert cli.main([*arguments(tmp_path, *bindings), flag]) == 1
    assert message in capsys.readouterr().err


def test_several_processes_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DTENSOR_JOBS", "localhost:1,localhost:2")
    assert train(tmp_path, "train.distribution='mesh'", "train.mesh='expert:2'") == 1
    assert "but DTENSOR_JOBS names 2; unset it" in capsys.readouterr().err


@pytest.mark.multi_device
@pytest.mark.parametrize(
    ("binding", "mesh", "message"),
    [
        ("train.seed=0", "expert:3", "must divide num_experts=4, the first axis of"),
        ("train.batch_size=24", "batch:2,expert:2", "error: train.batch_size=24 over images_per"),
        ("train.eval_batch_size=24", "batch:2,expert:2", "error: train.eval_batch_size=24 over"),
    ],
)
def test_a_mesh_that_does_not_divide_is_one_line(tmp_path, binding, mesh, message):
    words = [*arguments(tmp_path, binding), f"--mesh={mesh}"]
    result = subprocess.run(
        [sys.executable, "-m", "keras_vmoe.trainers.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]
