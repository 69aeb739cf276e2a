"""Scans are pasted whole, and resized as they should be."""

import numpy as np

from keras_vmoe.data import pasting


def test_resizing_keeps_sums_and_shades():
    for given, wanted in ((8, 14), (28, 16), (8, 8)):
        matrix = pasting.resizing_matrix(given, wanted)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(pasting.resizing_matrix(5, 5), np.eye(5))
    # By hand: to twice the size a row mixes neighbours by 3/4 and 1/4.
    np.testing.assert_allclose(pasting.resizing_matrix(2, 4) @ [0, 1], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(
        pasting.resizing_matrix(4, 2) @ [0, 0, 1, 1], [1 / 7, 6 / 7], rtol=1e-6
    )


def test_scans_are_pasted_whole():
    random = np.random.RandomState(0)
    scans = np.full((50, 8, 8), 200, np.uint8)
    squares = pasting.paste(random, scans, 16, (12, 16))
    areas = (squares == 200).sum(axis=(1, 2))
    assert set(areas) == {144, 256}
    tops = {int(np.flatnonzero(square.any(axis=1))[0]) for square in squares}
    assert tops == {0, 1, 2, 3, 4}


def test_scans_are_drawn_of_the_wanted_classes():
    labels = np.array([2, 0, 2, 1, 0, 2])
    wanted = np.repeat([2, 0, 1], 40)
    found = pasting.draw_scans(np.random.RandomState(0), labels, wanted)
    np.testing.assert_array_equal(labels[found], wanted)
    assert set(found) == set(range(6))
