"""Scenes of labelled scans, each with its box, at three scales."""

import numpy as np

from keras_vmoe.data import digits, idx
from keras_vmoe.data.boxes import BoxSource, box_arrays
from keras_vmoe.data.pasting import draw_scans, resizing_matrix
from keras_vmoe.data.source import ArraySplit, ImageSource

SIDE = 96
# Sides of a scan in pixels, least and most: small, medium, large.
SCALES = ((12, 16), (20, 28), (36, 48))
NUM_TRAIN, NUM_VALIDATION = 4_000, 500
MAX_OBJECTS = 6
# Ink of a scan, whose box is drawn around what is darker: as faint as this it is not seen.
_INK = 32
# Places that are tried for a scan before it is left out, and pixels between two boxes.
_TRIALS, _GAP = 200, 1


def load_digit_scenes() -> BoxSource:
    """Composes 4,000 + 500 scenes, grey, 96x96, of scikit-learn's scans of digits.

    Returns:
        A source with the splits "train" and "validation", which share no scan; the same each time.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    return compose(digits.load_digits(), "digit_scenes", NUM_TRAIN, NUM_VALIDATION)


def load_garment_scenes(data_dir: str | None = None) -> BoxSource:
    """Composes the same number of scenes of Fashion-MNIST's garments.

    Args:
        data_dir: folder of the four idx files; Debian's place for them if None.

    Returns:
        A source with the splits "train" and "validation", which share no garment; the same each
        time.

    Raises:
        FileNotFoundError: if the files are not at hand.
        ValueError: if one is damaged.
    """
    name = "garment_scenes"
    scans = idx.load_idx_folder(idx.find_folder(data_dir, name))
    return compose(scans, name, NUM_TRAIN, NUM_VALIDATION)


def compose(
    scans: ImageSource,
    name: str,
    num_train: int,
    num_validation: int,
    seed: int = 0,
) -> BoxSource:
    """Composes scenes of labelled grey scans: of its training scans, and of its held-out ones.

    Each scene holds three to six scans, at least one of each of the three `SCALES`, whose boxes do
    not overlap. A box is drawn around the ink of its scan.

    Args:
        scans: labelled images in memory, of one channel.
        name: of the result.
        num_train: how many scenes of training scans.
        num_validation: how many of held-out ones.
        seed: which of the possible scenes.

    Returns:
        A source with the splits "train" and "validation".
    """
    # RandomState, because its stream of numbers never changes.
    random = np.random.RandomState(seed)
    splits = {
        split: _compose_split(random, scans, part, count)
        for split, part, count in (
            ("train", scans.train, num_train),
            ("validation", scans.eval, num_validation),
        )
    }
    shape = (SIDE, SIDE, 1)
    return BoxSource(name, scans.class_names, shape, splits, max_boxes=MAX_OBJECTS)


def _compose_split(
    random: np.random.RandomState, scans: ImageSource, part: ArraySplit, count: int
) -> ArraySplit:
    images = np.zeros((count, SIDE, SIDE, 1), np.uint8)
    boxes, classes = [], []
    for image in images:
        number = random.randint(len(SCALES), MAX_OBJECTS + 1)
        # One of each scale, the large one first, while there is room; then any.
        scales = [2, 1, 0, *random.randint(len(SCALES), size=number - len(SCALES))]
        wanted = random.randint(scans.num_classes, size=number)
        chosen = draw_scans(random, part.labels, wanted)
        taken: list[tuple[int, int, int, int]] = []
        kept: list[int] = []
        for scale, label, scan in zip(scales, wanted, chosen, strict=True):
            box = _put(random, image[..., 0], part.images[scan, ..., 0], SCALES[scale], taken)
            if box is not None:
                taken.append(box)
                kept.append(label)
        boxes.append(np.array(taken, np.float32) / SIDE)
        classes.append(kept)
    return box_arrays(images, boxes, classes, scans.num_classes)


def _put(
    random: np.random.RandomState,
    canvas: np.ndarray,
    scan: np.ndarray,
    sides: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Puts a scan where no box is yet, and returns its own; None where there is no room."""
    side = random.randint(sides[0], sides[1] + 1)
    rows, columns = (resizing_matrix(length, side) for length in scan.shape)
    drawn = np.clip(np.round(rows @ scan.astype(np.float32) @ columns.T), 0, 255).astype(np.uint8)
    ink = drawn >= _INK
    (top, *_, bottom), (left, *_, right) = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    drawn = drawn[top : bottom + 1, left : right + 1]
    height, width = drawn.shape
    for _ in range(_TRIALS):
        y, x = random.randint(SIDE - height + 1), random.randint(SIDE - width + 1)
        box = (y, x, y + height, x + width)
        if not any(_overlap(box, other) for other in taken):
            canvas[y : y + height, x : x + width] = drawn
            return box
    return None


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    apart = (
        one[2] + _GAP <= other[0]
        or other[2] + _GAP <= one[0]
        or one[3] + _GAP <= other[1]
        or other[3] + _GAP <= one[1]
    )
    return not apart
