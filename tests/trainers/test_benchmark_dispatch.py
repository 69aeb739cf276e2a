"""`keras-vmoe benchmark dispatch`: which ways are measured, and which is held against which."""

import json

import pytest
import tensorflow as tf

from keras_vmoe import layers
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import dispatch, layer, settings, tables
from keras_vmoe.trainers.benchmark.timing import Samples
from keras_vmoe.trainers.work_progress import WorkProgress

TINY = ["--experts=2", "--selected=1", "--tokens=3x5", "--width=4", "--hidden_dim=8"]
TINY += ["--images_per_group=2", "--rounds=1"]


def measured(monkeypatch, seconds):
    """A row of the table where each way takes these seconds, and the pass that each was given."""
    ran = {}

    def interleave(candidates, rounds, warmup, on_round):
        assert (rounds, warmup) == (1, 2)
        return {name: Samples((seconds[name],), (2 * seconds[name],)) for name in candidates}

    def moe_candidate(own, stage, mode):
        ran[stage.moe.dispatch] = mode

    monkeypatch.setattr(dispatch, "interleave", interleave)
    monkeypatch.setattr(layer, "moe_candidate", moe_candidate)
    grid = settings.LayerSettings(
        experts=(2,),
        selected=(1,),
        tokens=(settings.Tokens(3, 5),),
        passes=("forward+backward",),
        width=4,
        hidden_dim=8,
        images_per_group=2,
        rounds=1,
    )
    (row,) = dispatch.measure_dispatch(grid, WorkProgress(1.0), lambda row: None)
    return row, ran


def test_the_choice_is_held_against_the_fastest(monkeypatch):
    row, ran = measured(monkeypatch, {"einsum": 3.0, "gather": 1.0, "grouped": 2.0})
    assert ran == dict.fromkeys(("einsum", "gather", "grouped"), "forward+backward")
    assert (row["chosen"], row["fastest"]) == ("grouped", "gather")
    assert row["chosen_over_fastest"]["wall"] == 2.0
    assert row["einsum"] == {"wall_ms": 3000.0, "cpu_ms": 6000.0}
    assert (row["tokens"], row["group_size"]) == (15, 10)
    assert 4 <= row["rows_per_expert"] <= 7.5  # of 15 choices, those that found a slot


def test_the_choice_is_that_of_the_layer(monkeypatch):
    seconds = dict.fromkeys(("einsum", "gather", "grouped"), 1.0)
    monkeypatch.setattr(dispatch, "has_accelerator", lambda: True)
    row, _ = measured(monkeypatch, seconds)
    assert row["chosen"] == "gather"  # ten tokens a group are too many for einsum beside h = 8


def test_the_whole_command(monkeypatch, capsys, tmp_path):
    ran, mix = [], layers.MoEMLP._mix

    def noted(self, *arguments):
        if tf.inside_function():
            ran.append(self.dispatch)
        return mix(self, *arguments)

    monkeypatch.setattr(layers.MoEMLP, "_mix", noted)
    out = tmp_path / "dispatch.json"
    assert cli.main(["benchmark", "dispatch", *TINY, f"--json={out}"]) == 0
    assert ran == 2 * ["einsum", "gather", "grouped"]  # each graph goes its own way
    report = json.loads(out.read_text())
    assert [row["pass"] for row in report["rows"]] == ["forward", "forward+backward"]
    for row in report["rows"]:
        times = {name: row[name]["wall_ms"] for name in ("einsum", "gather", "grouped")}
        assert row["fastest"] == min(times, key=times.get)
        assert row["chosen"] == "grouped"
    printed = capsys.readouterr().out
    assert tables.header(tables.DISPATCH) in printed
    assert "groups of 2 images" in printed
    assert cli.main(["benchmark", "dispatch", *TINY, f"--against={out}"]) == 0
    assert "new / old" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dispatch=gather"], "Unknown command line flag 'dispatch'"),
        (["--experts="], "--experts is empty"),
        (["--selected=9"], "--selected=9 is more than --experts=8"),
        (["--images_per_group=0"], "--images_per_group=0"),
        (["gather"], "unexpected 'gather'; see keras-vmoe benchmark dispatch --help"),
    ],
)
def test_a_wrong_command_line(capsys, words, message):
    assert cli.main(["benchmark", "dispatch", *words]) == 2
    assert message in capsys.readouterr().err
