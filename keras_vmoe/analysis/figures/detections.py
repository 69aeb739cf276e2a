"""Images with the objects that they hold, and those that a detector finds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRUE, _FOUND = canvas.EIGHT_COLOURS[1], canvas.EIGHT_COLOURS[0]
_COLUMNS, _INCHES = 4, 2.6


@dataclasses.dataclass(frozen=True, eq=False)
class DetectedObjects:
    """An image, what it holds and what was found. Boxes are x_min, y_min, x_max, y_max in pixels.

    Attributes:
        image: `[height, width, channels]`.
        boxes: `[objects, 4]`.
        classes: ints `[objects]`.
        found_boxes: `[detections, 4]`.
        scores: `[detections]`, probabilities.
        found_classes: ints `[detections]`.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    found_boxes: np.ndarray
    scores: np.ndarray
    found_classes: np.ndarray


def plot_detections(
    pictures: Sequence[DetectedObjects],
    path: str | Path,
    class_names: Sequence[str],
    least_score: float = 0.3,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """Draws the objects of images, dashed, and those that a detector finds, with class and score.

    Args:
        pictures: images with their objects.
        path: the picture's file; the data, all detections among it, goes beside it as CSV.
        class_names: a name per class.
        least_score: detections below are not drawn.
        value_range: the values of black and white.

    Returns:
        The figure.

    Raises:
        ValueError: no picture, or a class without a name.

    Example:

    >>> import tempfile
    >>> box = np.array([[1.0, 2.0, 6.0, 7.0]])
    >>> picture = DetectedObjects(np.zeros((8, 8, 1)), box, [1], box, [0.9], [1])
    >>> path = Path(tempfile.mkdtemp()) / "detections.png"
    >>> figure = plot_detections([picture], path, ["cat", "dog"])
    >>> path.with_suffix(".csv").read_text().splitlines()[1:]
    ['0,object,dog,,1,2,6,7', '0,detection,dog,0.9,1,2,6,7']
    """
    require(len(pictures) > 0, "pictures must hold at least one image. Received: none")
    for picture in pictures:
        unknown = [k for k in (*picture.classes, *picture.found_classes) if k >= len(class_names)]
        require(
            not unknown,
            f"class_names must name all classes; give one a class. Received: {len(class_names)} "
            f"names, and class {unknown[:1]}",
        )
    columns = min(len(pictures), _COLUMNS)
    rows = math.ceil(len(pictures) / columns)
    tall = max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures)
    figure = canvas.new_figure(_INCHES * max(columns, 2), _INCHES * tall * rows + 0.7)
    grid = figure.add_gridspec(rows, columns)
    for place, picture in enumerate(pictures):
        axis = figure.add_subplot(grid[place // columns, place % columns])
        _draw(axis, picture, class_names, least_score, value_range)
    _legend(figure, least_score)
    figure.suptitle("Objects found in held-out images", fontsize=11)
    canvas.save(figure, path, list(_rows(pictures, class_names)))
    return figure


def _draw(
    axis: Axes,
    picture: DetectedObjects,
    class_names: Sequence[str],
    least_score: float,
    value_range: tuple[float, float],
) -> None:
    canvas.draw_image(axis, picture.image, value_range)
    for box in picture.boxes:
        _outline(axis, box, _TRUE, "--", 2.2)
    # The likeliest last: its words lie over those of others with the same box.
    for place in np.argsort(picture.scores, kind="stable"):
        box, score = picture.found_boxes[place], picture.scores[place]
        kind = picture.found_classes[place]
        if score < least_score:
            continue
        _outline(axis, box, _FOUND, "-", 1.1)
        # Above its box; below the upper border where there is no room.
        x, y = box[0] - 0.5, box[1] - 0.5
        room = y > 0.07 * picture.image.shape[0]
        axis.text(
            x,
            y,
            f"{class_names[kind]} {score:.2f}",
            fontsize=6.5,
            color=canvas.ink(_FOUND),
            va="bottom" if room else "top",
            clip_on=True,
            bbox={"facecolor": _FOUND, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )


def _outline(axis: Axes, box: np.ndarray, colour: str, style: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    # Pixel (0, 0) is drawn from -0.5 to 0.5.
    corner, sides = (box[0] - 0.5, box[1] - 0.5), (box[2] - box[0], box[3] - box[1])
    axis.add_patch(
        Rectangle(corner, *sides, fill=False, edgecolor=colour, linestyle=style, linewidth=width)
    )


def _legend(figure: Figure, least_score: float) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=_TRUE, linestyle="--", linewidth=2.2, label="object"),
        Line2D(
            [], [], color=_FOUND, label=f"found: class and probability ({least_score:g} or more)"
        ),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _rows(
    pictures: Sequence[DetectedObjects], class_names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for number, picture in enumerate(pictures):
        objects = zip(picture.boxes, picture.classes, strict=True)
        found = zip(picture.found_boxes, picture.found_classes, picture.scores, strict=True)
        for kind, box, label, *score in (
            *(("object", *row) for row in objects),
            *(("detection", *row) for row in found),
        ):
            x_min, y_min, x_max, y_max = (float(value) for value in box)
            yield {
                "image": number,
                "kind": kind,
                "class": class_names[label],
                "score": float(score[0]) if score else None,
                "x_min": x_min,
                "y_min": y_min,
                "x_max": x_max,
                "y_max": y_max,
            }
