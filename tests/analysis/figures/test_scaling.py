"""The picture of scaling, read back from its axes and its CSV."""

import csv

import pytest

from keras_vmoe.analysis import figures


def row(subject, mode, axis, value, time, predicted):
    head = {"subject": subject, "pass": mode, "axis": axis, "value": value, "experts": 8}
    cpu = None if value == 32 else 2 * time
    return {**head, "predicted": predicted, "relative": {"wall": time, "cpu": cpu}}


ROWS = [
    row("layer", "forward", "experts", 32, 1.5, 1.02),
    row("layer", "forward", "experts", 8, 1.2, 1.01),
    row("layer", "forward+backward", "experts", 8, 1.4, 1.0),
    row("model", "forward", "batch", 2, 0.4, 0.25),
    row("model", "forward", "batch", 8, 1.1, 1.0),
]


def test_a_panel_for_each_thing_that_was_varied(tmp_path):
    path = tmp_path / "scaling.png"
    figure = figures.plot_scaling(ROWS, path, "the base")
    experts, batch = figure.axes
    assert (experts.get_xlabel(), batch.get_xlabel()) == ("experts (E)", "images of a batch")
    lines = {line.get_label(): line for line in experts.get_lines()}
    measured, thin, predicted = list(lines.values())[:3]
    assert list(lines) == [
        "layer, forward",
        "layer, forward, CPU-seconds",
        "layer: FLOPs",
        "layer, forward+backward",
        "layer, forward+backward, CPU-seconds",
    ]
    assert measured.get_xdata().tolist() == [8, 32]
    assert measured.get_ydata().tolist() == [1.2, 1.5]
    assert thin.get_ydata().tolist() == pytest.approx([2.4, float("nan")], nan_ok=True)
    assert thin.get_color() == measured.get_color()
    assert predicted.get_ydata().tolist() == [1.01, 1.02]
    assert predicted.get_linestyle() == "--"
    of_model = {line.get_label(): line for line in batch.get_lines()}
    assert of_model["model: FLOPs"].get_ydata().tolist() == [0.25, 1.0]
    assert of_model["model, forward"].get_color() != measured.get_color()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 8
    assert "the base" in figure.get_suptitle()
    with path.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert (table[0]["value"], table[0]["relative_wall"], table[0]["batch"]) == ("32", "1.5", "")


def test_nothing_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        figures.plot_scaling([], tmp_path / "scaling.png")
