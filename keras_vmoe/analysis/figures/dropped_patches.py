"""The patches that are dropped when capacity is cut, drawn on the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.records import RoutingRecord

Records = Mapping[tuple[float, bool], "RoutingRecord"]
ORDERS = {False: "vanilla", True: "BPR"}
_INCHES, _GAP = 1.05, 0.12


def plot_dropped_patches(
    images: np.ndarray,
    records: Records,
    path: str | Path,
    shown: Sequence[int] = (0, 1, 2),
    captions: Sequence[str] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """Draws which patches of some images one MoE layer drops, at several capacities.

    A dropped patch, which no expert took, is grey and hatched. Vanilla routing serves the tokens
    of a group in their order, so its last images lose most; Batch Prioritized Routing serves the
    tokens with the largest gates first.

    Args:
        images: `[b, height, width, channels]`.
        records: `(capacity factor, batch priority)` to the record of the same MoE layer for all
            the images, as `routing_records(with_routing(model, ...), images)` gives them.
        path: the picture's file; the data goes beside it as CSV.
        shown: which of the images are drawn; the CSV has the same.
        captions: what stands below each of them.
        value_range: the values of black and white.

    Returns:
        The figure.

    Raises:
        ValueError: no record, records of several layers or of other images, captions that are not
            one an image.

    Example:
        >>> import tempfile
        >>> from keras_vmoe import analysis
        >>> records = {}
        >>> for capacity, order in ((1.0, True), (0.5, True)):
        ...     kept = np.arange(32).reshape(2, 16, 1) % 2 < 2 * capacity - 1
        ...     expert = np.zeros((2, 16, 1), int)
        ...     gates = np.full((2, 16, 8), 1 / 8)
        ...     records[capacity, order] = analysis.RoutingRecord(
        ...         "block_1", "top_k", expert, gates[..., :1], kept, expert, gates
        ...     )
        >>> path = Path(tempfile.mkdtemp()) / "dropped.png"
        >>> figure = plot_dropped_patches(np.zeros((2, 8, 8, 1)), records, path, shown=(0,))
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'block_1,1,1,0,0,0,0'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4 and its figures of discarded
    patches.
    """
    captions = [f"image {index}" for index in shown] if captions is None else list(captions)
    _check(images, records, shown, captions)
    capacities = sorted({capacity for capacity, _ in records}, reverse=True)
    orders = sorted({order for _, order in records})
    tall = images.shape[1] / images.shape[2]
    widths = [1.0, *(width for _ in orders for width in (_GAP, *[1.0] * len(capacities)))]
    figure = canvas.new_figure(
        0.3 + _INCHES * sum(widths), 0.75 + (_INCHES * tall + 0.17) * len(shown)
    )
    grid = figure.add_gridspec(len(shown), len(widths), width_ratios=widths)
    for line, (index, caption) in enumerate(zip(shown, captions, strict=True)):
        axis = figure.add_subplot(grid[line, 0])
        canvas.draw_image(axis, images[index], value_range)
        axis.set_xlabel(caption, fontsize=7, labelpad=2)
        for block, order in enumerate(orders):
            for place, capacity in enumerate(capacities):
                column = 2 + block * (len(capacities) + 1) + place
                axis = figure.add_subplot(grid[line, column])
                _draw(axis, images[index], records.get((capacity, order)), index, value_range)
                if line == 0:
                    axis.set_title(f"{ORDERS[order]}\nC = {capacity:g}", fontsize=8)
    layer = canvas.layer_title(next(iter(records.values())).layer)
    figure.suptitle(f"Patches that no expert takes at capacity factor C, {layer}", fontsize=11)
    canvas.save(figure, path, list(_rows(images, shown, records)))
    return figure


def _check(
    images: np.ndarray, records: Records, shown: Sequence[int], captions: Sequence[str]
) -> None:
    require(bool(records), "records must hold at least one record. Received: none")
    layers = {record.layer for record in records.values()}
    require(
        len(layers) == 1,
        f"records must be of one MoE layer. Received: {', '.join(sorted(layers))}",
    )
    for (capacity, order), record in records.items():
        canvas.require_patches(record)
        require(
            len(record.kept) == len(images),
            f"records must be of the {len(images)} images. Received: {len(record.kept)} for "
            f"C={capacity:g}, {ORDERS[order]}",
        )
    require(
        len(captions) == len(shown) > 0,
        f"captions must be one an image, and at least one be shown. Received: {len(captions)} for "
        f"{len(shown)}",
    )


def _kept(record: RoutingRecord, image: np.ndarray, index: int) -> np.ndarray:
    """`[rows, columns]` bool, whether any expert took the patch."""
    kept = record.kept[index].any(-1)
    front, rows, columns = canvas.patch_grid(len(kept), *image.shape[:2])
    return kept[front:].reshape(rows, columns)


def _draw(
    axis: Axes,
    image: np.ndarray,
    record: RoutingRecord | None,
    index: int,
    value_range: tuple[float, float],
) -> None:
    from matplotlib.patches import Rectangle

    canvas.draw_image(axis, image, value_range)
    if record is None:
        return
    kept = _kept(record, image, index)
    height, width = image.shape[0] / kept.shape[0], image.shape[1] / kept.shape[1]
    for y, x in np.argwhere(~kept):
        corner = (x * width - 0.5, y * height - 0.5)
        style = {"facecolor": canvas.DROPPED, "linewidth": 0.4, **canvas.HATCH}
        axis.add_patch(Rectangle(corner, width, height, **style))
    axis.set_xlabel(f"{1 - kept.mean():.0%} dropped", fontsize=7, labelpad=2)


def _rows(images: np.ndarray, shown: Sequence[int], records: Records) -> Iterator[dict[str, Any]]:
    for (capacity, order), record in records.items():
        for index in shown:
            kept = _kept(record, images[index], index)
            for y, x in np.ndindex(kept.shape):
                yield {
                    "layer": record.layer,
                    "capacity_factor": capacity,
                    "batch_priority": order,
                    "image": index,
                    "row": y,
                    "column": x,
                    "dropped": not kept[y, x],
                }
