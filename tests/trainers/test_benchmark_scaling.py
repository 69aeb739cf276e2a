"""`keras-vmoe benchmark scaling`: what is varied and what is predicted. Never how long it takes."""

import dataclasses
import io
import json

import numpy as np
import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import scaling, tables
from keras_vmoe.trainers.benchmark import scaling_grid as grid_of
from keras_vmoe.trainers.work_progress import WorkProgress

SMALLEST = grid_of.GRIDS["smallest"]
FORWARD, BOTH = (grid_of.Curve("layer", mode) for mode in ("forward", "forward+backward"))
MODEL = grid_of.Curve("model", "forward")


def test_one_thing_changes_at_a_time():
    for grid in grid_of.GRIDS.values():
        for axis, place in grid_of.places(grid, FORWARD):
            assert place == grid.base._replace(**{axis: getattr(place, axis)})
        axes = list(dict.fromkeys(axis for axis, _ in grid_of.places(grid, FORWARD)))
        assert axes == list(grid_of.AXES)
        assert {axis for axis, _ in grid_of.places(grid, MODEL)} < set(axes)
        for axis, values in grid_of.AXES.items():
            assert getattr(grid.base, axis) in getattr(grid, values), "lines meet at the base"


def test_flops_of_a_layer_are_those_of_a_loop():
    grid = dataclasses.replace(SMALLEST, width=3, hidden_dim=5)
    place = grid_of.Place(4, 2, 1, 1.0, 64, 3)
    tokens, kept, flops = 3 * 16, 70, 0
    for _ in range(tokens):
        flops += 2 * 3 * 4  # the router's logits
    for _ in range(kept):
        flops += 2 * 3 * 5 + 2 * 5 * 3  # into the hidden layer and out of it
        flops += 2 * 3  # times its weight, added
    assert grid_of.layer_flops(grid, place, kept) == flops


def test_the_layer_is_held_against_a_dense_mlp_of_the_base(monkeypatch):
    asked = []
    real = scaling.layer_of.dense_candidate

    def spy(settings, rows, mode):
        asked.append((settings.width, settings.hidden_dim, rows, mode))
        return real(settings, rows, mode)

    monkeypatch.setattr(scaling.layer_of, "dense_candidate", spy)
    place = SMALLEST.base._replace(batch=4, experts=4, capacity_factor=0.5)
    measured = scaling.prepare_layer(SMALLEST, place, "forward+backward")
    assert asked == [(16, 32, 2 * 4, "forward+backward")]
    kept = round(measured.kept_share * 4 * 4)
    assert 0 < kept < 16
    flops = grid_of.layer_flops(SMALLEST, place, kept)
    assert measured.predicted == flops / (4 * 16 * 32 * 8)
    assert np.isfinite(measured.candidate().numpy())


def test_the_model_is_held_against_its_dense_twin_at_the_base():
    more = scaling.prepare_model(SMALLEST, SMALLEST.base._replace(batch=4), "forward")
    base = scaling.prepare_model(SMALLEST, SMALLEST.base, "forward")
    assert more.predicted == 2 * base.predicted
    assert 1 < base.predicted < 1.05, "the same work, and a router"
    assert more.candidate().numpy().shape == (4, 1000)
    assert more.reference().numpy().shape == (2, 1000)


def test_a_place_that_lines_share_is_measured_once(monkeypatch):
    measured = []

    def fake(settings, curve, place, on_round):
        measured.append((curve, place))
        return place._asdict()

    monkeypatch.setattr(scaling, "measure_place", fake)
    bar = WorkProgress(scaling.total_work(SMALLEST), stream=io.StringIO())
    rows = scaling.measure_scaling(SMALLEST, bar, lambda row: None)
    assert len(measured) == len(set(measured)) == scaling.total_work(SMALLEST)
    assert sum(place == SMALLEST.base for _, place in measured) == 3
    assert len(rows) == 12 + 12 + 6
    for row in rows:
        assert row["value"] == row[row["axis"]]


def test_the_whole_command(capsys, tmp_path):
    out, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    words = ["--grid=smallest", "--axes=batch", "--batches=1,2", f"--json={out}", f"--plot={plot}"]
    assert cli.main(["benchmark", "scaling", *words]) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["base"]["image_size"] == 32
    rows = report["rows"]
    assert [(row["subject"], row["pass"], row["value"]) for row in rows] == [
        (*curve, batch) for curve in (FORWARD, BOTH, MODEL) for batch in (1, 2)
    ]
    for row in rows:
        wall = row["relative"]["wall"] / row["predicted"]
        assert row["over_predicted"]["wall"] == wall
    assert plot.stat().st_size > 0
    assert plot.with_suffix(".csv").is_file()
    printed = capsys.readouterr().out
    assert tables.header(tables.SCALING) in printed
    assert "base: E=2, k=1, C=1.05, 2 images of 32 px" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "unexpected 'x'"),
        (["--grid=huge"], "--grid=huge"),
        (["--axes=depth"], "--axes: 'depth' is unknown; known: experts, selected"),
        (["--axes="], "--axes is empty"),
        (["--subjects=router"], "--subjects: 'router' is unknown; known: layer, model"),
        (["--batches=0"], "--batches=0 must list whole numbers above 0"),
        (["--capacities=much"], "--capacities=much must list numbers above 0"),
        (["--selected=9"], "--selected=9 is more than the 8 experts"),
        (["--image_sizes=8"], "--image_sizes=8 is less than a patch of 16 px"),
        (["--rounds=0"], "--rounds=0"),
    ],
)
def test_a_wrong_command_line(capsys, words, message):
    assert cli.main(["benchmark", "scaling", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
