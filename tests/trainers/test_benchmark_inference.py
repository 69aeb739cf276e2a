"""`keras-vmoe benchmark inference`: what is measured at which capacity. Never how long it takes."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import models
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import child, inference, inference_command, tables
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.work_progress import WorkProgress

TINY = {"num_layers": 2, "width": 16, "mlp_dim": 32, "num_heads": 2, "num_classes": 10}


def tiny(**changes):
    values = {"experts": 2, "image_size": 64, "batches": (3,), "threads": (1,), "rounds": 1}
    return settings_of.InferenceSettings(**{**values, "overrides": TINY, **changes})


def within(monkeypatch, threads=()):
    """Lets this process do what a process of its own would."""
    told, used = [], list(threads)

    def messages(command, asked, what):
        told.clear()
        assert cli.main(["benchmark", command, json.dumps(asked)]) == 0
        yield from told

    monkeypatch.setattr(child, "messages", messages)
    monkeypatch.setattr(child, "tell", lambda **values: told.append(values))
    monkeypatch.setattr(child, "use_threads", used.append)
    return used


def test_the_whole_command(monkeypatch, capsys, tmp_path):
    used = within(monkeypatch)
    monkeypatch.setattr(inference_command.environment, "machine", machine)
    out, plot = tmp_path / "speed.json", tmp_path / "speed.png"
    words = ["--experts=2", "--image_size=64", "--batches=1,3", "--threads=1,2", "--rounds=1"]
    words += ["--capacities=0.5,train", f"--json={out}", f"--plot={plot}"]
    words += [f"{name}={value}" for name, value in TINY.items()]
    assert cli.main(["benchmark", "inference", *words]) == 0
    assert used == [1, 2]
    report = json.loads(out.read_text())
    assert report["settings"]["capacities"] == [0.5, "train"]
    assert {"machine", "versions", "load_average"} <= set(report)
    rows = report["rows"]
    assert [(row["threads"], row["batch"], row["capacity_factor"]) for row in rows] == [
        (threads, batch, factor) for threads in (1, 2) for batch in (1, 3) for factor in (0.5, 1.05)
    ]
    for row in rows:
        speed = 1e3 * row["batch"] / row["model"]["wall_ms"]
        assert row["images_per_second"] == pytest.approx(speed)
        assert row["cpu_ms_per_image"] == row["model"]["cpu_ms"] / row["batch"]
        assert row["relative"]["wall"] > 0, "C = 1 is measured although no row has it"
    assert plot.stat().st_size > 0
    assert len(plot.with_suffix(".csv").read_text().splitlines()) == 1 + len(rows)
    printed = capsys.readouterr().out
    assert tables.header(tables.INFERENCE) in printed
    assert "vmoe_s32 with 2 experts, images of 64 px" in printed


def machine():
    return {"cpu": "EPYC", "cores": 2, "memory_bytes": 8e9, "system": "Linux"}


def test_capacity_and_twin_are_what_the_rows_say():
    settings = tiny(capacities=(0.25, 1.0))
    sparse, dense = inference.build_models(settings)
    cut, full = inference.measure_batch(sparse, dense, 3, settings)
    # 3 images of 4 patches and a class token, two choices each, two experts: 15 slots, by fours,
    # at most the tokens of the group.
    assert (cut["slots"], full["slots"]) == (4, 15)
    assert cut["kept_share"] == 8 / 30
    assert full["kept_share"] == 1.0
    assert full["relative"]["wall"] == 1.0
    assert cut["dense"] == full["dense"]
    expert = dense.get_layer("encoder_block_1").mlp.count_params()
    router = 16 * 2
    assert sparse.count_params() - dense.count_params() == expert + router
    assert sparse.arguments["batch_priority"] is True


def test_the_layers_alone_are_all_of_them_at_their_capacity():
    sparse, _ = inference.build_models(tiny(overrides={**TINY, "num_layers": 4}))
    moes = models.moe_layers(sparse)
    tokens = tf.random.stateless_normal([3, 5, 16], [0, 1])
    wanted = sum(moe(tokens, capacity_factor=0.25).numpy() for moe in moes)
    candidate = inference.layers_alone(moes, tokens, 0.25)
    assert len(moes) == 2
    np.testing.assert_allclose(candidate().numpy(), wanted[0, 0, 0], rtol=1e-5)


def test_a_capacity_is_measured_once():
    sparse, _ = inference.build_models(tiny())
    assert inference.factors(sparse, (1.05, "train", 0.5)) == [1.05, 0.5]


def test_settings_survive_json():
    values = tiny()
    sent = json.loads(json.dumps(dataclasses.asdict(values)))
    back = settings_of.InferenceSettings(**sent)
    assert {**dataclasses.asdict(back)} == sent


def test_progress_reaches_the_end(monkeypatch):
    messages = [{"batch": 3}, {"share": 1.0}, {"row": {"batch": 3}}]
    monkeypatch.setattr(child, "messages", lambda *_: iter(messages))
    bar = WorkProgress(inference.total_work(tiny(threads=(1, 2))), stream=io.StringIO())
    rows = inference.measure_inference(tiny(threads=(1, 2)), bar, lambda row: None)
    assert rows == [{"batch": 3}] * 2
    assert bar.line().startswith("100%")


@pytest.mark.slow
def test_threads_are_those_of_a_process_of_its_own():
    asked = {"threads": 1, "settings": dataclasses.asdict(tiny(capacities=(1.0,)))}
    told = list(child.messages(inference_command.CHILD, asked, "inference"))
    assert [next(iter(message)) for message in told] == ["batch", "share", "row"]
    assert told[-1]["row"]["threads"] == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--capacities=full"], 2, "--capacities: 'full' is unknown; a capacity factor is"),
        (["--capacities=0.5,0"], 2, "--capacities: '0' is unknown"),
        (["--capacities="], 2, "--capacities is empty"),
        (["--batches=0"], 2, "--batches=0 must list whole numbers above 0"),
        (["--threads=0"], 2, "--threads=0 must list whole numbers above 0"),
        (["--threads=1,3"], 2, "--threads=1,3: 3 threads are more than the 2 cores"),
        (["--plot=speed"], 2, "--plot=speed: a picture's name ends in .png"),
        (["--plot=/no/such/folder/x.png"], 2, "no file can be written there"),
        (["num_experts=4"], 2, "'num_experts=4' is said by --experts"),
        (["--model=vit_s32"], 1, "--model must name a preset of VMoE"),
        (["router=soft"], 1, "Received: router='soft'"),
        (["breadth=3"], 1, "no argument 'breadth'"),
        (["num_selected=9"], 1, "num_selected"),
    ],
)
def test_a_wrong_command_line(monkeypatch, capsys, words, code, message):
    monkeypatch.setattr(inference_command.environment, "machine", machine)
    assert cli.main(["benchmark", "inference", *words]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_threads_default_to_the_cores_there_are(monkeypatch):
    monkeypatch.setattr(inference_command.environment, "machine", lambda: {**machine(), "cores": 1})
    assert inference_command._parse_threads(None) == (1,)
