"""`keras-vmoe benchmark device`: which files are compared. Never how long they take."""

import json

import numpy as np
import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import device, device_memory, settings, tables
from keras_vmoe.trainers.benchmark.timing import Samples

TINY = {"image_size": 32, "num_layers": 2, "num_moe_layers": 1, "num_experts": 3, "num_classes": 2}


def tiny(**changes):
    values = {"models": ("mobile_vmoe_6x64",), "overrides": TINY, "rounds": 2, "warmup": 1}
    return settings.DeviceSettings(**{**values, "memory": False, **changes})


def test_the_whole_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "measure", lambda path, threads: 10**6 * threads)
    out = tmp_path / "device.json"
    words = ["--model=mobile_vmoe_6x64", "--form=auto,einsum", "--rounds=2", f"--json={out}"]
    overrides = [f"{name}={value}" for name, value in TINY.items()]
    assert cli.main(["benchmark", "device", *words, *overrides]) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["overrides"] == TINY
    assert [(row["form"], row["threads"]) for row in report["rows"]] == [
        (form, threads) for threads in (1, 2) for form in ("dense", "kernels", "einsum")
    ]
    dense, chosen, every = report["rows"][:3]
    assert dense["ratio"] == dict.fromkeys(dense["ratio"], 1.0)
    assert dense["distinct_experts"] is None
    assert 1 <= chosen["distinct_experts"] == every["distinct_experts"] <= 3
    assert dense["file_bytes"] < chosen["file_bytes"]
    router = 2 * 64 * 3
    assert dense["flops_paper"] == chosen["flops_paper"] - router, "a twin of equal FLOPs"
    assert [row["memory_bytes"] for row in report["rows"]] == [10**6] * 3 + [2 * 10**6] * 3
    printed = capsys.readouterr().out
    assert [line.split()[2:4] for line in printed.splitlines() if line.startswith("mobile")] == [
        [row["form"], str(row["threads"])] for row in report["rows"]
    ]


def test_a_model_is_the_same_each_time_and_its_router_is_decided():
    one, other = (device.build_model("mobile_vmoe_6x64", "einsum", tiny()) for _ in range(2))
    for found, wanted in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert one.arguments["dispatch"] == "einsum"
    assert np.asarray(one.get_layer("router").kernel).std() > 2


def test_percentiles_are_of_the_wall_clock():
    samples = Samples(wall=tuple(i / 1e3 for i in range(101)), cpu=(1.0,) * 101)
    found = device.percentiles(samples)
    assert found == pytest.approx({"p50": 50.0, "p90": 90.0, "p99": 99.0})


def test_the_process_that_measures_memory(tmp_path, capsys):
    import tensorflow as tf

    function = tf.function(lambda x: tf.matmul(x, tf.ones((4, 4))))
    concrete = function.get_concrete_function(tf.TensorSpec((1, 4)))
    path = tmp_path / "model.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())
    asked = json.dumps({"path": str(path), "threads": 1})
    assert cli.main(["benchmark", device_memory.COMMAND, asked]) == 0
    assert json.loads(capsys.readouterr().out)["peak_memory_bytes"] >= 0
    with pytest.raises(RuntimeError, match="memory of missing.tflite ended with 1"):
        device_memory.measure(tmp_path / "missing.tflite", 1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--form=gather"], 2, "--form: 'gather' is unknown; known: auto, branches"),
        (["--precision=int4"], 2, "--precision: 'int4' is unknown; known: float32"),
        (["--threads=0"], 2, "--threads=0 must list whole numbers above 0"),
        (["--model="], 2, "--model is empty"),
        (["num_selected"], 2, "'num_selected' is not NAME=VALUE"),
        (["dispatch=einsum"], 2, "'dispatch=einsum' is said by --form"),
        (["--model=vmoe_s32"], 1, "--model must name presets of MobileVMoE"),
        (["routing=dense", "num_layers=3"], 1, "measures routing='image' beside its dense twin"),
        (["breadth=3"], 1, "no argument 'breadth'"),
    ],
)
def test_a_wrong_command_line(capsys, words, code, message):
    assert cli.main(["benchmark", "device", *words]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_the_note_says_what_the_forms_are():
    note = tables.device_note(tiny())
    assert "2 interleaved rounds over 32 random images" in note
    assert all(form in note for form in settings.FORMS[1:])
