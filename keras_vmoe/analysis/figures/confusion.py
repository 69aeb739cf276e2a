"""The confusion matrix of a dense model, its classes ordered by super-class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.superclass_inputs import check_superclasses, short
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to so many classes have their names beside the matrix; of more, the super-classes have.
_MAX_NAMES = 60
# Smaller shares of a row are left out of the CSV, which would hold n * n lines.
LEAST_SHARE = 0.001


def plot_confusion(
    confusion: Any,
    superclasses: Any,
    path: str | Path,
    class_names: Sequence[str],
    superclass_names: Sequence[str],
) -> Figure:
    """Draws which classes a model takes for which others, those of a super-class side by side.

    Each row is scaled to a sum of 1. The diagonal, what is right, is left white, and a frame is
    drawn around each super-class. Colours grow with the root of the share, as most shares are
    small. The CSV holds the shares of at least 0.001.

    Args:
        confusion: `[n, n]`, row i what images of class i gave to each class.
        superclasses: `[n]` ints, the super-class of each class.
        path: the picture's file; the data goes beside it as CSV.
        class_names: a name a class.
        superclass_names: a name a super-class.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit, or a class without images.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "confusion.png"
        >>> confusion = [[8, 1, 1], [1, 9, 0], [1, 0, 9]]
        >>> figure = plot_confusion(confusion, [0, 1, 0], path, ["a", "b", "c"], ["a, c", "b"])
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        '0,a,"a, c",0,a,"a, c",0.8'

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section on super-classes.
    """
    from matplotlib.colors import PowerNorm

    matrix, ids = check_superclasses(
        "confusion", confusion, superclasses, class_names, superclass_names
    )
    sums = matrix.sum(1, keepdims=True)
    require(
        bool((sums > 0).all()),
        "confusion must hold images of every class. "
        f"Received: none of class {np.flatnonzero(sums[:, 0] <= 0)[:1].tolist()}",
    )
    shares = matrix / sums
    order = np.argsort(ids, kind="stable")
    drawn = shares[np.ix_(order, order)]
    np.fill_diagonal(drawn, np.nan)
    figure = canvas.new_figure(8.2 if len(ids) <= _MAX_NAMES else 9.6, 7.2)
    axis = figure.subplots()
    top = np.nanmax(drawn) if len(drawn) > 1 and np.nanmax(drawn) > 0 else 1.0
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    image = axis.imshow(drawn, cmap="YlGnBu", norm=norm, interpolation="nearest")
    _frame(axis, np.bincount(ids))
    _name(axis, [class_names[i] for i in order], ids[order], superclass_names)
    axis.set_xlabel("predicted class, in the same order", fontsize=9)
    axis.set_ylabel("class of the image", fontsize=9)
    canvas.colour_bar(figure, image, [axis], "share of the row (diagonal left out)")
    axis.set_title(
        f"Confusion of {len(ids)} classes in {len(superclass_names)} super-classes", fontsize=11
    )
    rows = list(_rows(shares, ids, order, class_names, superclass_names))
    canvas.save(figure, path, rows)
    return figure


def _frame(axis: Axes, sizes: np.ndarray) -> None:
    """Lines between super-classes, and a frame around each on the diagonal."""
    from matplotlib.patches import Rectangle

    ends = np.cumsum(sizes)
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color="#B0B0B0", linewidth=0.6)
        axis.axvline(end - 0.5, color="#B0B0B0", linewidth=0.6)
    for start, size in zip(ends - sizes, sizes, strict=True):
        corner = (start - 0.5, start - 0.5)
        style = {"fill": False, "edgecolor": canvas.SPARSE, "linewidth": 1.4, "zorder": 3}
        axis.add_patch(Rectangle(corner, size, size, **style))


def _name(
    axis: Axes, ordered: Sequence[str], ordered_ids: np.ndarray, superclass_names: Sequence[str]
) -> None:
    size = min(8.0, 400 / len(ordered))
    if len(ordered) <= _MAX_NAMES:
        places, names = np.arange(len(ordered)), [short(name) for name in ordered]
    else:
        sizes = np.bincount(ordered_ids)
        places = np.cumsum(sizes) - sizes / 2 - 0.5
        names, size = [short(name, 34) for name in superclass_names], 7.0
    axis.set_yticks(places, names, fontsize=size)
    if len(ordered) <= _MAX_NAMES:
        axis.set_xticks(places, names, fontsize=size, rotation=90)
    else:
        axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _rows(
    shares: np.ndarray,
    ids: np.ndarray,
    order: np.ndarray,
    class_names: Sequence[str],
    superclass_names: Sequence[str],
) -> Iterator[dict[str, Any]]:
    for row in order:
        for column in order:
            if shares[row, column] >= LEAST_SHARE:
                yield {
                    "class": int(row),
                    "class_name": class_names[row],
                    "superclass": superclass_names[ids[row]],
                    "predicted": int(column),
                    "predicted_name": class_names[column],
                    "predicted_superclass": superclass_names[ids[column]],
                    "share": shares[row, column],
                }
