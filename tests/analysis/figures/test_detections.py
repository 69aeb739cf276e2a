"""The picture of detected objects: its boxes, its words, its data."""

import csv

import numpy as np
import pytest

from keras_vmoe.analysis import figures

BOX = np.array([[2.0, 4.0, 10.0, 12.0]])


def picture(scores=(0.9, 0.1)):
    found = np.concatenate([BOX + 1, BOX - 2])
    return figures.DetectedObjects(np.zeros((16, 20, 1)), BOX, [1], found, scores, [1, 0])


def test_true_and_found_boxes_are_drawn_with_class_and_score(tmp_path):
    path = tmp_path / "detections.png"
    figure = figures.plot_detections([picture(), picture((0.8, 0.7))], path, ["cat", "dog"])
    first, second = figure.axes
    assert [len(axis.patches) for axis in (first, second)] == [2, 3]
    assert [text.get_text() for text in first.texts] == ["dog 0.90"]
    # The likeliest lies on top.
    assert [text.get_text() for text in second.texts] == ["cat 0.70", "dog 0.80"]
    true, found = first.patches
    assert true.get_bbox().bounds == (1.5, 3.5, 8.0, 8.0)
    assert found.get_bbox().bounds == (2.5, 4.5, 8.0, 8.0)
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert [row["kind"] for row in rows] == ["object", "detection", "detection"] * 2
    # All detections, also those too faint to be drawn.
    assert [row["score"] for row in rows[:3]] == ["", "0.9", "0.1"]
    assert [float(rows[1][name]) for name in ("x_min", "y_min", "x_max", "y_max")] == [3, 5, 11, 13]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        figures.plot_detections([], tmp_path / "x.png", ["cat"])
    with pytest.raises(ValueError, match="class_names must name all classes"):
        figures.plot_detections([picture()], tmp_path / "x.png", ["cat"])
