"""Labelled scans that are drawn, resized and put somewhere into larger pictures."""

from collections.abc import Sequence

import numpy as np


def draw_scans(random: np.random.RandomState, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Draws a scan of each wanted class; returns their places.

    Args:
        random: the generator.
        labels: int `[n]`, of the scans; each class that is wanted has some.
        wanted: int `[m]`, classes.

    Returns:
        int `[m]`.

    Example:
        >>> draw_scans(np.random.RandomState(0), np.array([1, 0, 1]), np.array([0, 0])).tolist()
        [1, 1]
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    begins = np.cumsum(counts) - counts
    return order[begins[wanted] + (random.uniform(size=len(wanted)) * counts[wanted]).astype(int)]


def paste(
    random: np.random.RandomState, scans: np.ndarray, side: int, sizes: Sequence[int]
) -> np.ndarray:
    """Resizes each scan to a size drawn from `sizes` and puts it somewhere into a black square.

    Args:
        random: the generator.
        scans: uint8 `[n, height, width]`.
        side: of the squares.
        sizes: of which each is at most `side`.

    Returns:
        uint8 `[n, side, side]`.

    Example:
        >>> scans = np.full((1, 8, 8), 255, np.uint8)
        >>> int((paste(np.random.RandomState(0), scans, 16, [12]) > 0).sum())
        144
    """
    drawn = random.randint(len(sizes), size=len(scans))
    shifts = random.uniform(size=(len(scans), 2))
    squares = np.zeros((len(scans), side, side), np.uint8)
    for number, size in enumerate(sizes):
        places = np.flatnonzero(drawn == number)
        rows, columns = (resizing_matrix(length, size) for length in scans.shape[1:])
        resized = rows @ scans[places].astype(np.float32) @ columns.T
        resized = np.clip(np.round(resized), 0, 255).astype(np.uint8)
        starts = (shifts[places] * (side - size + 1)).astype(int)[..., None] + np.arange(size)
        squares[places[:, None, None], starts[:, 0, :, None], starts[:, 1, None, :]] = resized
    return squares


def resizing_matrix(given: int, wanted: int) -> np.ndarray:
    """Returns the matrix `[wanted, given]` that resizes a row bilinearly, with antialiasing.

    Args:
        given: length of the row.
        wanted: length that it gets.

    Example:
        >>> (resizing_matrix(2, 4) @ [0, 1]).tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    scale = given / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(given) - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distances, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
