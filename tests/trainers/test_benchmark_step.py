"""`keras-vmoe benchmark step`: which operations belong where. Never how long they take."""

import json

import pytest
import tensorflow as tf

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import child, step, step_command, tables

TINY = ["--image_size=64", "--batch_size=2", "--rounds=2"]
TINY += ["num_layers=2", "width=16", "mlp_dim=32", "num_heads=2"]


@pytest.mark.parametrize(
    ("name", "operation", "place"),
    [
        ("vmoe_1/block_1_moe_1/experts_1/MatMul", "_MklMatMul", ("experts", "forward")),
        ("vmoe_1/block_1_moe_1/router_1/TopKV2", "TopKV2", ("router", "forward")),
        (
            "vmoe_1/block_1_1/block_1_moe_1/GatherV2",
            "GatherV2",
            ("dispatch and combine", "forward"),
        ),
        ("gradient_tape/vmoe_1/block_1/mlp_1/hidden/Mul", "Mul", ("dense MLPs", "backward")),
        ("vmoe_1/block_1/mlp_norm_1/Mul", "Mul", ("layer norms", "forward")),
        ("vmoe_1/block_1/attention_norm_1/Mul", "Mul", ("layer norms", "forward")),
        ("vmoe_1/block_1/attention_1/MatMul_3", "_MklMatMul", ("attention", "forward")),
        ("experts_gradient_12/MatMul", "BatchMatMulV2", ("experts", "backward")),
        ("adam_w/ResourceApplyAdam_7", "ResourceApplyAdam", ("optimizer", "")),
        ("L2Loss_7", "L2Loss", ("gradient norm", "")),
        ("AddN_3", "AddN", ("other", "")),
        ("vmoe_1/experts", "AddN", ("other", "")),  # a name, no scope
    ],
)
def test_an_operation_belongs_to_the_layer_in_its_name(name, operation, place):
    assert tuple(step.place_of(name, operation)) == place


def test_parts_are_summed_up_by_step():
    ran = [
        ("m/attention_1/a", "_MklMatMul", 3.0),
        ("m/attention/b", "_MklNativeMatMul", 2.0),
        ("m/attention/c", "Sum", 3.0),
        ("gradient_tape/m/attention/c", "Sum", 10.0),
        ("x", "AddN", 2.0),
    ]
    found = [tuple(row.values()) for row in step.summed(ran, steps=2)]
    assert found == [
        ("attention", "backward", 5, 0.5, "Sum"),
        ("attention", "forward", 4, 0.4, "MatMul"),
        ("other", "", 1, 0.1, "AddN"),
    ]


def test_a_trace_holds_the_operations_that_ran():
    @tf.function(autograph=False)
    def run(x):
        with tf.name_scope("attention"):
            return tf.reduce_sum(tf.linalg.matmul(x, x))

    x = tf.ones([64, 64])
    run(x)
    ran = step.traced(lambda: run(x), steps=3)
    products = [name for name, operation, _ in ran if operation.endswith("MatMul")]
    assert products == ["attention/MatMul"] * 3
    assert all(milliseconds > 0 for _, _, milliseconds in ran)


def test_the_whole_command(monkeypatch, capsys, tmp_path):
    threads = []
    monkeypatch.setattr(child, "use_threads", threads.append)
    out = tmp_path / "step.json"
    words = ["benchmark", "step", "--row=last_1:2", *TINY]
    assert cli.main([*words, f"--json={out}"]) == 0
    assert threads == [1]
    report = json.loads(out.read_text())
    for mode in ("forward", "train"):
        rows = [row for row in report["rows"] if row["pass"] == mode]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert sum(row["cpu_ms"] for row in rows) == pytest.approx(
            report["steps"][mode]["operations_ms"]
        )
        found = {(row["part"], row["direction"]) for row in rows}
        layers = {"experts", "router", "attention", "dense MLPs", "layer norms", "embedding"}
        assert {(part, "forward") for part in layers} <= found
        training = {(part, "backward") for part in layers} | {("optimizer", "")}
        training.add(("gradient norm", ""))
        assert training <= found if mode == "train" else not training & found
    printed = capsys.readouterr().out
    assert tables.header(tables.STEP) in printed
    assert "Means of 2 steps, 2 images of 64 px" in printed
    assert cli.main([*words, "--passes=forward", f"--against={out}"]) == 0
    assert "experts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row=every"], "--row: 'every' is unknown"),
        (["--row=last_9:2"], "--row: 'last_9:2': placement asks"),
        (["--passes=backward"], "--passes: 'backward' is unknown"),
        (["--passes="], "--passes is empty"),
        (["image_size=64"], "'image_size=64' is said by --image_size"),
        (["depth=3"], "VMoE has no argument 'depth'"),
    ],
)
def test_a_wrong_command_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(step_command.child, "use_threads", lambda threads: None)
    assert cli.main(["benchmark", "step", *words]) != 0
    assert message in capsys.readouterr().err
