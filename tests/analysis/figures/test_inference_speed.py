"""The picture of speed against capacity, read back from its axes and its CSV."""

import csv

import pytest

from keras_vmoe.analysis import figures


def row(threads, batch, factor, speed, share):
    return {
        "threads": threads,
        "batch": batch,
        "capacity_factor": factor,
        "slots": 4,
        "kept_share": 0.5,
        "images_per_second": speed,
        "cpu_ms_per_image": 1e3 / speed,
        "dense_images_per_second": 10.0 * batch,
        "relative": {"wall": share, "cpu": None},
    }


ROWS = [
    row(1, 1, 1.0, 100.0, 1.0),
    row(1, 1, 0.2, 150.0, 0.3),
    row(1, 8, 1.0, 200.0, 1.0),
    row(2, 1, 1.0, 900.0, 1.0),
]


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_a_column_of_panels_for_each_number_of_threads(tmp_path):
    path = tmp_path / "speed.png"
    figure = figures.plot_inference_speed(ROWS, path, "the model")
    one, two, one_share, _ = figure.axes
    assert (one.get_title(), two.get_title()) == ("1 thread", "2 threads")
    line = lines(one)["batch 1"]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.2, 1.0], [150, 100])
    assert set(lines(one)["batch 8, dense twin"].get_ydata()) == {80.0}
    assert lines(one)["batch 1"].get_color() != lines(one)["batch 8"].get_color()
    assert one_share.get_lines()[0].get_ydata().tolist() == [0.3, 1.0]
    low, high = one.get_ylim()
    assert low == 0
    assert high > 900, "the fastest line of any panel is within"
    assert "the model" in figure.get_suptitle()
    with path.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4
    assert table[1]["moe_over_c1_wall"] == "0.3"
    assert table[1]["moe_over_c1_cpu"] == ""


def test_nothing_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        figures.plot_inference_speed([], tmp_path / "speed.png")
