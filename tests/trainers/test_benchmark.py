"""`keras-vmoe benchmark`: what is compared with what. Never how long it takes."""

import dataclasses
import io
import itertools
import json
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import layers
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import (
    child,
    graphs,
    layer,
    memory,
    model,
    plain_vit,
    settings,
    tables,
    timing,
)
from keras_vmoe.trainers.work_progress import WorkProgress

TINY_MODEL = {
    "num_layers": 2,
    "width": 16,
    "mlp_dim": 32,
    "num_heads": 2,
    "num_classes": 10,
    "representation_size": 8,
}
TIMES = {"wall_ms", "cpu_ms"}
RATIO = set(timing.Ratio._fields)


def tiny_layer(**changes):
    values = {"experts": (2,), "selected": (1,), "tokens": (settings.Tokens(3, 5),)}
    values |= {"width": 4, "hidden_dim": 8, "images_per_group": 2, "rounds": 1, "warmup": 1}
    return settings.LayerSettings(**{**values, **changes})


def tiny_model(**changes):
    rows = (settings.Row("dense"), settings.Row("last_1:2", "last_1", 2))
    values = {"rows": rows, "image_size": 64, "batch_size": 2, "overrides": TINY_MODEL}
    return settings.ModelSettings(**{**values, "rounds": 1, "warmup": 1, **changes})


# Timing.


class FakeMachine:
    """Clocks that only the forcing of a result moves, and a record of who ran."""

    def __init__(self):
        self.now, self.cpu_now, self.ran = 0.0, 0.0, []

    @property
    def clocks(self):
        return timing.Clocks(wall=lambda: self.now, cpu=lambda: self.cpu_now)

    def candidate(self, name, walls, cpu_share=0.5):
        walls = iter(walls)

        class Pending:
            def numpy(_):
                wall = next(walls)
                self.now += wall
                self.cpu_now += cpu_share * wall
                self.ran.append(name)

        return Pending


def test_candidates_take_turns_and_are_forced_within_the_time():
    fake = FakeMachine()
    found = {
        "a": fake.candidate("a", [100.0, 1.0, 2.0, 6.0]),
        "b": fake.candidate("b", [200.0, 2.0, 8.0, 3.0], cpu_share=2.0),
    }
    shares = []
    samples = timing.interleave(found, 3, 1, fake.clocks, shares.append)
    assert "".join(fake.ran) == "ab" + "ababab"
    assert samples["a"].wall == (1.0, 2.0, 6.0)
    assert samples["b"].cpu == (4.0, 16.0, 6.0)
    assert samples["a"].milliseconds() == {"wall_ms": 2000.0, "cpu_ms": 1000.0}
    assert shares == [1 / 3, 2 / 3, 1.0]


def test_ratios_are_formed_within_each_round():
    # The machine slows down tenfold after the first round: medians of times alone would mislead.
    one = timing.Samples(wall=(2.0, 20.0, 40.0), cpu=(3.0, 30.0, 30.0))
    other = timing.Samples(wall=(1.0, 10.0, 10.0), cpu=(1.0, 10.0, 15.0))
    assert one.over(other) == timing.Ratio(wall=2.0, cpu=3.0, wall_of_medians=2.0, cpu_of_medians=3)
    skewed = timing.Samples(wall=(1.0, 100.0, 2.0), cpu=(1.0, 1.0, 1.0))
    assert skewed.over(other).wall == 1.0
    assert skewed.over(other).wall_of_medians == 0.2


def test_a_clock_that_stands_still_gives_no_ratio():
    still = timing.Samples(wall=(1.0, 1.0), cpu=(0.0, 1.0))
    assert still.over(still) == timing.Ratio(1.0, None, 1.0, 1.0)
    with pytest.raises(ValueError, match="same rounds. Received: 1 rounds beside 2"):
        still.over(timing.Samples((1.0,), (1.0,)))


# The layer.


def test_kept_rows_are_those_of_this_very_input():
    stage = layer.make_stage(tiny_layer(), 3, 2, settings.Tokens(5, 4))
    for seed in (None, stage.seed):
        routed = layer.count_kept(stage.moe, stage.inputs, seed)
        assert (routed.choices, routed.groups) == (40, 3)
        assert routed.kept == count_by_loop(stage, seed, 2)
    assert layer.count_kept(stage.moe, stage.inputs, capacity_factor=0.2).kept < 40


def count_by_loop(stage, seed, num_selected):
    """Counts per group and expert, each at most its capacity: 1.05 * s * k / e, by fours."""
    noise = None if seed is None else layer.router_noise(stage.moe, stage.inputs, seed).numpy()
    kernel = keras.ops.convert_to_numpy(stage.moe.router.kernel)
    kept = 0
    for group, images in enumerate(([0, 1], [2, 3], [4])):
        tokens = stage.inputs.numpy()[images].reshape(-1, kernel.shape[0])
        logits = tokens @ kernel
        if noise is not None:
            logits = logits + noise[group, : len(tokens)] / kernel.shape[1]
        chosen = np.argsort(-logits, axis=-1)[:, :num_selected]
        slots = 4 * -(-len(tokens) * num_selected * 1.05 / kernel.shape[1] // 4)
        slots = min(int(slots), len(tokens))
        kept += sum(min(slots, int((chosen == e).sum())) for e in range(kernel.shape[1]))
    return kept


def test_dropped_tokens_are_no_work_done():
    # All tokens are alike, so all choose one expert, and only its slots are filled.
    stage = layer.make_stage(tiny_layer(), 2, 1, settings.Tokens(2, 8))
    routed = layer.count_kept(stage.moe, tf.ones_like(stage.inputs))
    assert routed == layer.Routed(choices=16, kept=12, slots=12, groups=1)


def test_the_dense_mlp_gets_exactly_the_kept_rows(monkeypatch):
    given = {}
    real = layer.dense_calls

    def spy(mlp, rows, chunk_rows):
        def watch(name, call):
            def watched(x):
                given[name] = tuple(x.shape)
                return call(x)

            return watched

        return {name: watch(name, call) for name, call in real(mlp, rows, chunk_rows).items()}

    monkeypatch.setattr(layer, "dense_calls", spy)
    values = tiny_layer(capacity_factor=0.5)
    stage = layer.make_stage(values, 2, 1, values.tokens[0])
    routed = layer.count_kept(stage.moe, stage.inputs)
    assert routed.kept < routed.choices
    layer.make_candidates(values, stage, settings.FORWARD, routed)
    assert given == dict.fromkeys(("one_shot", "chunked"), (routed.kept, 4))


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 65])
def test_chunks_make_the_same_rows(rows):
    mlp = layers.MLP(8)
    x = tf.random.stateless_normal([rows, 4], [0, 0])
    outputs = {name: call(x)[0] for name, call in layer.dense_calls(mlp, rows, 16).items()}
    np.testing.assert_allclose(outputs["chunked"], outputs["one_shot"], rtol=1e-5, atol=1e-6)
    assert max(layer.chunk_sizes(rows, 16)) <= 16


def test_noise_has_the_shape_that_the_router_draws():
    stage = layer.make_stage(tiny_layer(), 4, 1, settings.Tokens(3, 5))
    noise = layer.router_noise(stage.moe, stage.inputs, stage.seed)
    assert noise.shape == (2, 10, 4)
    single = layer.router_noise(stage.moe, stage.inputs[:1], stage.seed)
    assert single.shape == (1, 5, 4)


def test_a_backward_graph_holds_the_whole_forward_pass_and_all_gradients(monkeypatch):
    traced = []
    real = graphs.trace

    def spy(*arguments):
        traced.append(real(*arguments))
        return traced[-1]

    monkeypatch.setattr(graphs, "trace", spy)
    mlp = layers.MLP(8)
    mlp.build((None, 4))
    x = tf.random.stateless_normal([6, 4], [0, 0])
    candidate = graphs.forward_backward(
        lambda x: (mlp(x), [tf.reduce_sum(x) * 3]), mlp.trainable_variables, x, x * 0
    )
    outputs, gradients, first = traced[0]()
    np.testing.assert_allclose(outputs, mlp(x), rtol=1e-5, atol=1e-6)
    assert candidate().numpy() == first.numpy() == outputs.numpy()[0, 0]
    assert [g.shape for g in gradients] == [x.shape, *(w.shape for w in mlp.trainable_variables)]
    np.testing.assert_allclose(gradients[0], np.full([6, 4], 3.0))  # the loss's alone


def test_layer_table_and_json(tmp_path, capsys):
    file = tmp_path / "layer.json"
    command = "benchmark layer --experts=2,3 --selected=1 --tokens=3x5 --width=4 --hidden_dim=8"
    command += f" --rounds=1 --capacities=1,0.5 --dispatch=gather --json={file}"
    assert cli.main(command.split()) == 0
    report = json.loads(file.read_text())
    check_report(report, "layer")
    assert report["settings"]["dispatch"] == "gather"
    places = [(row["experts"], row["pass"]) for row in report["rows"]]
    assert places == list(itertools.product((2, 3), ("forward", "forward+backward")))
    for row in report["rows"]:
        assert row["tokens"] == row["choices"] == 15
        assert 0 < row["kept_rows"] <= min(15, row["padded_rows"])
        assert row["kept_share"] == row["kept_rows"] / 15
        assert set(row["moe"]) == set(row["dense"]) == set(row["padded"]) == TIMES
        assert set(row["efficiency"]) == set(row["padded_floor"]) == RATIO
        assert row["dense"] == row["dense_forms"][row["faster_dense"]]
        walls = [form["wall_ms"] for form in row["dense_forms"].values()]
        assert row["dense"]["wall_ms"] == min(walls)
    check_capacity(report["capacity_rows"])
    check_text(capsys.readouterr().out, [tables.LAYER, tables.CAPACITY], [4, 4])


def check_report(report, name):
    assert report["benchmark"] == name
    assert set(report["machine"]) == {"cpu", "cores", "memory_bytes", "system"}
    assert report["machine"]["memory_bytes"] > 2**28
    assert {"keras_vmoe", "keras", "tensorflow", "python"} <= set(report["versions"])
    assert {when: len(load) for when, load in report["load_average"].items()} == {
        "before": 3,
        "after": 3,
    }
    assert report["date"].endswith("+00:00")


def check_capacity(rows):
    assert [(row["experts"], row["capacity_factor"]) for row in rows] == [
        (2, 1.0),
        (2, 0.5),
        (3, 1.0),
        (3, 0.5),
    ]
    assert all(set(row["relative"]) == RATIO and set(row["moe"]) == TIMES for row in rows)
    for full, cut in (rows[:2], rows[2:]):
        assert full["relative"]["wall"] == 1.0
        assert cut["slots"] < full["slots"]
        assert cut["kept_rows"] < full["kept_rows"]


def check_text(text, columns, counts):
    """Each table: a header of two lines, a rule, its rows, all of one length; two lines below."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if line and set(line) == {"-"}]
    assert len(rules) == len(counts)
    for rule, table, count in zip(rules, columns, counts, strict=True):
        block = lines[rule - 2 : rule + 1 + count]
        assert "\n".join(block[:3]) == tables.header(table)
        assert {len(line) for line in block} == {len(lines[rule])}
        assert lines[rule + 1 + count] == ""
        assert all(lines[rule + 2 + count : rule + 4 + count])
    assert "load average" in lines[0]


# The models.


def test_plain_vit_does_the_work_of_our_dense_twin():
    values = tiny_model()
    plain, dense = (model.build_model(row, values) for row in (model.PLAIN, values.rows[0]))
    # Ours has position embeddings for 4 patches and the class token, and that token.
    assert dense.count_params() - plain.count_params() == (4 + 1 + 1) * 16
    images, labels = model.batch(values, 10)
    assert plain(images).shape == dense(images).shape == labels.shape
    assert plain_vit.plain_vit(32, 1, num_layers=1, representation_size=None).output_shape == (
        1,
        1000,
    )


def test_rows_are_the_models_that_they_name():
    sparse = model.build_model(settings.parse_row("last_1:2"), tiny_model())
    arguments = sparse.arguments
    assert (arguments["placement"], arguments["num_experts"]) == ("last_1", 2)
    assert (arguments["num_selected"], arguments["capacity_factor"]) == (1, 1.05)
    assert (arguments["images_per_group"], arguments["batch_priority"]) == (8, True)
    assert arguments["representation_size"] == 8
    only_sparse = tiny_model(overrides={**TINY_MODEL, "num_selected": 2})
    assert model.build_model(settings.Row("dense"), only_sparse).count_params() > 0
    assert 0 < model.kept_share(model.record(sparse, tiny_model())) <= 1
    dense = model.build_model(settings.Row("dense"), tiny_model())
    assert model.kept_share(model.record(dense, tiny_model())) is None


def test_experts_are_loaded_as_in_a_trained_model():
    # Where most tokens were dropped, a sparse model would do little work and look fast.
    wide = {**TINY_MODEL, "num_layers": 4, "width": 128, "mlp_dim": 256}
    values = tiny_model(image_size=256, batch_size=8, overrides=wide)
    sparse = model.build_model(settings.parse_row("every_2:8"), values)
    assert model.kept_share(model.record(sparse, values)) > 0.9


def test_training_steps_do_the_work_and_leave_the_weights():
    values = tiny_model()
    built = model.build_model(values.rows[1], values)
    before = [keras.ops.convert_to_numpy(v) for v in built.trainable_variables]
    step = model.make_step(built, settings.TRAIN, values)
    losses = [float(step().numpy()) for _ in range(2)]
    assert np.isfinite(losses).all()
    for old, variable in zip(before, built.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable))
    images, labels = model.batch(values, 10)
    logits = built(images, training=False)
    task = float(tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits)))
    assert losses[0] > task - 0.5


def test_routing_metrics_can_be_left_out():
    for enabled in (True, False):
        values = tiny_model(routing_metrics=enabled)
        built = model.build_model(values.rows[1], values)
        model.make_step(built, settings.TRAIN, values)().numpy()
        counts = {float(metric.count.numpy()) for metric in built.metrics}
        assert counts == ({1.0} if enabled else {0.0})


@pytest.mark.slow
def test_model_table_and_json(tmp_path, capsys):
    file = tmp_path / "model.json"
    command = "benchmark model --rows=dense,last_1:2 --image_size=64 --batch_size=2 --rounds=1"
    words = [*command.split(), f"--json={file}", *(f"{k}={v}" for k, v in TINY_MODEL.items())]
    assert cli.main(words) == 0
    report = json.loads(file.read_text())
    check_report(report, "model")
    rows = report["rows"]
    assert [(row["row"], row["pass"]) for row in rows] == [
        *itertools.product(("dense", "last_1:2"), ("forward", "train"))
    ]
    assert all(set(row["model"]) == set(row["plain"]) == TIMES for row in rows)
    assert all(set(row["ratio"]) == RATIO for row in rows)
    assert all(row["peak_memory_bytes"] is None for row in rows)
    assert rows[0]["params"] < rows[2]["params"]
    assert rows[0]["kept_share"] is None
    assert 0 < rows[2]["kept_share"] <= 1
    assert report["plain"]["params"] < rows[0]["params"]
    text = capsys.readouterr().out
    check_text(text, [tables.MODEL], [4])
    assert "plain ViT: 0.1 M parameters.\n" in text


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    # This process holds half a gigabyte more than the measuring one; it must not be counted.
    ballast = np.ones(2**29, "uint8")
    peak = memory.measure(model.PLAIN, settings.FORWARD, tiny_model())
    assert 2**27 < peak < memory.peak_bytes() - len(ballast) // 2


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; print('noise'); sys.exit('a\\nno room')", "ended with 1: no room"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9: it said nothing"),
    ],
)
def test_a_failed_measurement_of_memory_says_why(monkeypatch, program, message):
    monkeypatch.setattr(child, "command_line", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(RuntimeError, match=f"memory of dense train {message}"):
        memory.measure(settings.Row("dense"), settings.TRAIN, tiny_model())


def test_a_process_tells_as_it_goes_and_ends_with_who_listens(monkeypatch):
    program = "import time; print('{\"a\": 1}', flush=True); time.sleep(600)"
    monkeypatch.setattr(child, "command_line", lambda *_: [sys.executable, "-c", program])
    told = child.messages("x", {}, "x")
    began = time.monotonic()
    assert next(told) == {"a": 1}
    told.close()
    assert time.monotonic() - began < 300


def test_memory_is_measured_for_every_row_and_the_plain_vit(monkeypatch):
    asked = []

    def fake(row, mode, values):
        asked.append((row.name, mode))
        return 7

    monkeypatch.setattr(model.memory, "measure", fake)
    monkeypatch.setattr(model, "make_step", lambda *_: lambda: tf.constant(0.0))
    values = tiny_model(memory=True)
    bar = WorkProgress(model.total_work(values), stream=io.StringIO())
    rows, plain = model.measure_model(values, bar, lambda row: None)
    assert {row["peak_memory_bytes"] for row in rows} == {7}
    assert plain["peak_memory_bytes"] == {"forward": 7, "train": 7}
    names = ("dense", "last_1:2", "plain_vit")
    assert asked == list(itertools.product(names, ("forward", "train")))
    assert tables.plain_line(plain).endswith("peak 0.00 GB forward, 0.00 GB train.")
    assert bar.line().startswith(" 94%")  # only the last process of 16 units is left


def test_settings_survive_json():
    values = tiny_model(memory=True)
    assert memory.read_settings(json.loads(json.dumps(dataclasses.asdict(values)))) == values
