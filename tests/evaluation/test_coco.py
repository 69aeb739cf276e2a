"""COCO's metrics: hand-computed averages, crowds, sizes, what is refused."""

import math
import sys

import numpy as np
import pytest

from keras_vmoe import evaluation

BOX = np.array([[10.0, 10.0, 50.0, 50.0]])
NONE = np.zeros((0, 4))


def measured(*images, num_classes=2):
    metrics = evaluation.CocoMetrics(num_classes)
    for image in images:
        metrics.add_image(*image)
    return metrics.result()


def shifted(overlap):
    """A box of the size of `BOX` that overlaps it so much."""
    # Two squares of side s that are d apart: (s - d) / (s + d).
    away = 40 * (1 - overlap) / (1 + overlap)
    return BOX + np.array([away, 0, away, 0])


def test_overlaps_count_from_a_half_in_steps():
    result = measured((BOX, [1], shifted(0.77), [0.9], [1]))
    assert result.metrics["AP50"] == result.metrics["AP75"] == pytest.approx(1.0)
    # 0.50, 0.55, ..., 0.75 of ten thresholds.
    assert result.metrics["AP"] == pytest.approx(0.6)
    np.testing.assert_allclose(result.class_ap, [np.nan, 0.6])
    assert measured((BOX, [1], shifted(0.45), [0.9], [1])).metrics["AP50"] == 0.0


def test_a_sure_false_alarm_before_a_hit_halves_precision():
    boxes = np.concatenate([BOX + 200, BOX])
    result = measured((BOX, [0], boxes, [0.9, 0.8], [0, 0]))
    assert result.metrics["AP50"] == pytest.approx(0.5)
    later = measured((BOX, [0], boxes, [0.7, 0.8], [0, 0]))
    assert later.metrics["AP50"] == pytest.approx(1.0)


def test_another_class_and_another_image_are_no_hits():
    assert measured((BOX, [0], BOX, [0.9], [1])).metrics["AP50"] == 0.0
    missed = measured((BOX, [0], NONE, [], []), (NONE, [], BOX, [0.9], [0]))
    assert missed.metrics["AP"] == 0.0


def test_half_of_the_objects_found():
    found = measured((BOX, [0], BOX, [0.9], [0]), (BOX, [0], NONE, [], []))
    # Precision 1 at the recalls 0, 0.01, ..., 0.50 of 101.
    assert found.metrics["AP50"] == pytest.approx(51 / 101)
    assert found.metrics["AR_100"] == pytest.approx(0.5)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    crowd = np.array([[100.0, 100.0, 200.0, 200.0]])
    truth = np.concatenate([BOX, crowd])
    found = np.concatenate([crowd[:, [0, 1, 2, 3]] - [0, 0, 50, 50], BOX])
    with_crowd = measured((truth, [0, 0], found, [0.9, 0.8], [0, 0], [False, True]))
    assert with_crowd.metrics["AP50"] == pytest.approx(1.0)
    without = measured((BOX, [0], found, [0.9, 0.8], [0, 0]))
    assert without.metrics["AP50"] == pytest.approx(0.5)


def test_sizes_are_told_apart():
    small, large = BOX / 4, BOX * 4
    result = measured((np.concatenate([small, large]), [0, 1], small, [0.9], [0]))
    assert result.metrics["AP_small"] == pytest.approx(1.0)
    assert math.isnan(result.metrics["AP_medium"])
    assert result.metrics["AP_large"] == 0.0
    assert result.words() == "AP 50.00%  AP50 50.00%  AP75 50.00%"


def test_images_without_an_object_and_without_a_detection():
    result = measured((NONE, [], NONE, [], []))
    assert math.isnan(result.metrics["AP"])
    assert np.isnan(result.class_ap).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((BOX, [0, 1], BOX, [0.9], [0]), "classes must be one a box, 1. Received: 2"),
        ((BOX, [2], BOX, [0.9], [0]), "classes must be from 0 to num_classes - 1 = 1"),
        ((BOX, [0], BOX, [0.9], [-1]), "found_classes must be .* leave padding out"),
    ],
)
def test_what_does_not_fit_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        measured(image)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="images must be added"):
        measured()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_vmoe\[detection\]'"):
        evaluation.CocoMetrics(1)
