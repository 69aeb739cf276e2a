"""The picture of a sweep, read back from its axes and its CSV."""

import csv

import pytest

from keras_vmoe.analysis import figures


def row(k, c, priority, accuracy, milliseconds=0.2, macs=2e6):
    return {
        "num_selected": k,
        "capacity_factor": c,
        "priority": priority,
        "capacity": c,
        "accuracy": accuracy,
        "macs": macs,
        "milliseconds": milliseconds,
        "kept_by_layer": {} if priority == "dense" else {"block_1": c / 2, "block_3": c / 4},
    }


ROWS = [
    row(1, 1.0, "bpr", 0.9, macs=4e6),
    row(1, 0.1, "bpr", 0.7),
    row(1, 0.1, "vanilla", 0.5),
    row(1, 1.0, "vanilla", 0.8),
    row(2, 0.1, "bpr", 0.6),
]
DENSE = row(None, None, "dense", 0.65, milliseconds=0.1, macs=3e6)


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_lines_are_by_choices_and_priority(tmp_path):
    figure = figures.plot_capacity([*ROWS, DENSE], tmp_path / "sweep.png", "digits")
    capacity, macs, milliseconds = figure.axes
    names = ["k = 1, batch priority", "k = 1, vanilla", "k = 2, batch priority"]
    assert list(lines(capacity))[:3] == names
    line = lines(capacity)[names[0]]
    assert line.get_xdata().tolist() == [0.1, 1.0]
    assert line.get_ydata().tolist() == pytest.approx([70, 90])
    assert lines(macs)[names[0]].get_xdata().tolist() == [2.0, 4.0]
    assert "MMACs" in macs.get_xlabel()
    assert lines(milliseconds)[names[1]].get_xdata().tolist() == [0.2, 0.2]
    one, other = (lines(capacity)[name] for name in names[:2])
    assert one.get_color() == other.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    assert one.get_color() != lines(capacity)[names[2]].get_color()
    assert "digits" in figure.get_suptitle()


def test_the_dense_model_has_a_line_and_its_cost(tmp_path):
    figure = figures.plot_capacity([*ROWS, DENSE], tmp_path / "sweep.png")
    for axis, cost in zip(figure.axes, (None, 3.0, 0.1), strict=True):
        dense = next(line for name, line in lines(axis).items() if name.startswith("dense"))
        assert set(dense.get_ydata()) == {65}
        stars = [line for line in axis.get_lines() if line.get_marker() == "*"]
        assert [star.get_xdata()[0] for star in stars] == ([] if cost is None else [cost])


def test_without_times_or_choices(tmp_path):
    rows = [{**r, "milliseconds": None, "num_selected": None, "priority": None} for r in ROWS[:2]]
    figure = figures.plot_capacity(rows, tmp_path / "sweep.png")
    assert len(figure.axes) == 2
    assert list(lines(figure.axes[0])) == ["sparse"]


def test_the_data_lies_beside_it(tmp_path):
    figures.plot_capacity([*ROWS, DENSE], tmp_path / "sweep.png")
    with (tmp_path / "sweep.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 6
    assert (found[1]["kept:block_1"], found[1]["kept:block_3"]) == ("0.05", "0.025")
    assert found[-1]["priority"] == "dense"
    assert found[-1]["capacity"] == found[-1]["kept:block_1"] == ""


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one of a sparse model"):
        figures.plot_capacity([DENSE], tmp_path / "sweep.png")
