"""`keras-vmoe tpu-compile`, in processes of its own: Keras runs on JAX there."""

import json
import os
import subprocess
import sys

import pytest

from keras_vmoe.distribution import StepCost, Topology
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.tpu_compile import compilation
from keras_vmoe.trainers.tpu_compile.compilation import WHOLE, Compilation

# Widths and counts that no two have in common, so that shapes tell what they are of.
MODEL = {
    "VMoE.num_experts": 8,
    "VMoE.width": 64,
    "VMoE.mlp_dim": 160,
    "VMoE.num_heads": 2,
    "VMoE.num_layers": 6,
    "VMoE.placement": "'every_2'",
    "train.batch_size": 64,
    "train.image_size": 32,
    "VMoE.patch_size": 8,
}


def call(*words, environment=None, **bindings):
    bound = [f"--gin_bindings={name}={value}" for name, value in {**MODEL, **bindings}.items()]
    return subprocess.run(
        [
            *(sys.executable, "-m", "keras_vmoe.trainers.cli", "tpu-compile"),
            *("--gin_file=runs/quickstart.gin", "--quick", "--dtype=mixed_bfloat16"),
            *(*bound, *words),
        ],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def rows(*words, code=0, **bindings):
    done = call("--json", *words, **bindings)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole():
    (row,) = rows("--topology=v5e:2x4")
    return row


@pytest.mark.tpu_compile
def test_tokens_travel_and_experts_stay(whole):
    assert whole["mesh"] == "batch:1,expert:8"
    # To the experts and back, forward and backward, in three sparse blocks.
    assert whole["collectives"]["all-to-all"]["count"] == 12
    assert whole["expert_kernels_gathered"] == 0
    assert "all-gather" not in whole["collectives"]


@pytest.mark.tpu_compile
def test_a_device_has_its_share_of_the_experts(whole):
    (row,) = rows("--topology=v5e:2x4", "--mesh=batch:4,expert:2")
    experts = 3 * 8 * (2 * 64 * 160 + 64 + 160) * 4
    assert row["parameters"] - whole["parameters"] == experts // 2 - experts // 8
    # Two moments of Adam.
    assert row["optimizer"] - whole["optimizer"] == 2 * (experts // 2 - experts // 8)
    assert row["expert_kernels_gathered"] == 0
    assert "all-to-all" in row["collectives"]


@pytest.mark.tpu_compile
def test_two_and_four_blocks_tell_of_six(whole):
    (row,) = rows("--topology=v5e:2x4", "--blocks=2,4")
    assert row["how"] == "2 and 4 blocks"
    assert row["parameters"] == whole["parameters"]
    assert row["optimizer"] == whole["optimizer"]
    assert row["flops"] == pytest.approx(whole["flops"], rel=0.02)
    bytes_of = [r["collectives"]["all-to-all"]["bytes"] for r in (row, whole)]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.tpu_compile
def test_what_does_not_fit_is_said():
    done = call("--topology=v5e:2x2", **{"train.batch_size": 2**20, "train.image_size": 64})
    assert done.returncode == 3, done.stderr[-3000:]
    assert "does not fit: " in done.stdout


@pytest.mark.tpu_compile
def test_the_smallest_slice_is_found_and_checked():
    small, whole = rows("--topology=v5e")
    assert (small["topology"], whole["topology"]) == ("v5e:1x1", "v5e:1x1")
    assert (small["how"], whole["how"]) == ("2 and 4 blocks", "whole")
    assert whole["fits"]
    assert whole["mesh"] == "batch:1,expert:1"
    assert "count" not in small["collectives"].get("all-reduce", {})
    assert small["accelerator_type"] == "v5litepod-1"


@pytest.mark.tpu_compile
def test_a_family_without_room_is_said():
    done = call("--topology=v5e", "--json", **{"train.batch_size": 4, "VMoE.mlp_dim": 2**26})
    assert done.returncode == 3, done.stderr[-3000:]
    assert "no slice of v5e has room" in done.stderr


def test_one_chip_exchanges_nothing_and_many_operations_are_tera():
    cost = StepCost(2**30, 2**31, 2**30, 2.5e12, 1e9, (), fits=True)
    row = Compilation(Topology("v5e", "1x1"), "batch:1,expert:1", cost, WHOLE, 3.0, 0)
    report = compilation.report(row)
    assert "slice     v5e:1x1 (v5litepod-1): 1 chip of 16 GiB" in report
    assert "a step of a device: 2.5 TFLOP, 1.00 GB" in report
    assert "exchanges between devices: none" in report
    assert "number" not in report


@pytest.mark.tpu_compile
def test_the_report_is_for_people():
    done = call("--topology=v4:2x2x2", "--remat", "--mesh=batch:2,expert:4")
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        *("6 blocks, 3 sparse, 8 experts each, mixed_bfloat16, remat on", "fits: "),
        *("slice     v4:2x2x2 (v4-16): 8 chips of 32 GiB; mesh batch:2,expert:4", " GFLOP, "),
    ):
        assert words in done.stdout
    assert "kernels of experts gathered: none" in done.stdout
    # The loss is a mean over all tokens, and needs none of them in one place.
    assert "all-gather" not in done.stdout


@pytest.mark.slow
@pytest.mark.jax
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--topology=v5e:3x5",), "of v5e 1x1, 2x2, 2x4"),
        (("--topology=h100",), "family must be one of v4, v5e, v5p, v6e"),
        (("--topology=v5litepod-8",), "the accelerator type v5litepod-8 is the slice v5e:2x4"),
        (("--topology=v5e:2x4", "--dtype=bf16"), "--dtype=bf16 is no precision of Keras"),
        (("--topology=v5e:2x4",), "pip install 'keras-vmoe[tpu-compile]'"),
    ],
)
def test_wrong_words_are_one_line(words, message, tmp_path):
    # As where the compiler is not installed.
    (tmp_path / "libtpu.py").write_text("raise ImportError('not here')")
    done = call(*words, environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_jax_the_extra_is_named(tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('not here')")
    done = call("--topology=v5e:2x4", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "pip install 'keras-vmoe[tpu-compile]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mesh=batch:2,expert:2",), "but v5e:2x4 has 8 chips, and batch * expert must be that"),
        (("--gin_bindings=train.batch_size=12",), "multiple of 8"),
        (("--gin_bindings=VMoE.num_experts=6", "--mesh=expert:8"), "must divide num_experts=6,"),
        (("--gin_bindings=VMoE.dispatch='grouped'",), "must be 'auto' or 'einsum'"),
    ],
)
def test_what_does_not_divide_is_one_line(words, message):
    done = call("--topology=v5e:2x4", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--gin_file is missing"),
        (("--gin_file=runs/quickstart.gin",), "--topology is missing"),
        (("--gin_file=runs/none.gin", "--topology=v5e"), "no such file"),
        (("runs/quickstart.gin",), "unexpected 'runs/quickstart.gin'"),
        (
            ("--gin_file=runs/quickstart.gin", "--topology=v5e", "--blocks=3"),
            "--blocks must be 2,4. Received: --blocks=3",
        ),
        (
            ("--gin_file=runs/quickstart.gin", "--topology=v5e", "--mesh=expert:8"),
            "--mesh is of one slice, and --topology=v5e is a family",
        ),
        # This process runs on TensorFlow.
        (("--gin_file=runs/quickstart.gin", "--topology=v5e"), "a process of its own"),
    ],
)
def test_wrong_words_are_told_before_anything_is_loaded(words, message, capsys):
    assert cli.main(["tpu-compile", *words]) != 0
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert cli.main(["tpu-compile", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--topology" in text
    assert "smallest slice" in text
