"""The patches that each expert of a MoE layer is surest to get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require, require_positive_int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.records import RoutingRecord

# Sheets in a line and their inches, of up to eight experts and of more.
_FEW, _MANY = (4, 2.2), (8, 1.55)
# Of the height of a patch with its surroundings.
_GAP = 0.08


class _Patch(NamedTuple):
    """A patch that an expert took, and its gate."""

    image: int
    row: int
    column: int
    gate: float


class _Grid(NamedTuple):
    """Where the patches of an image lie: tokens in front of them, and how many there are."""

    front: int
    rows: int
    columns: int


def plot_patches_of_experts(
    images: np.ndarray,
    record: RoutingRecord,
    path: str | Path,
    side: int = 4,
    context: int = 1,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """Draws, for each expert of a MoE layer, the patches that it took with the largest gates.

    Of each image the best patch comes first, then the second best of each, and so on: one image
    does not fill a sheet while there are others.

    Args:
        images: `[b, height, width, channels]`.
        record: how the layer routed them, from `routing_records`; of a model of images and texts
            `record.of_modality("image")`.
        path: the picture's file; the data goes beside it as CSV.
        side: a sheet has `side * side` patches.
        context: patches on each side that are drawn as well; then the patch itself is framed. At
            the edge of an image those on the other side are more.
        value_range: the values of black and white.

    Returns:
        The figure: a sheet for each expert, and above it its share of all patches that got one.

    Raises:
        ValueError: a record of other images, of texts, or without any patch that an expert took.

    Example:
        >>> import tempfile
        >>> from keras_vmoe import analysis
        >>> expert = np.arange(32).reshape(2, 16, 1) % 8
        >>> record = analysis.RoutingRecord(
        ...     layer="encoder_block_1_moe",
        ...     router="top_k",
        ...     expert=expert,
        ...     weight=np.linspace(0.5, 1, 32).reshape(2, 16, 1),
        ...     kept=expert != 3,
        ...     slot=np.zeros((2, 16, 1), int),
        ...     gates=np.full((2, 16, 8), 1 / 8),
        ... )
        >>> path = Path(tempfile.mkdtemp()) / "patches_of_experts.png"
        >>> figure = plot_patches_of_experts(np.zeros((2, 8, 8, 1)), record, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'encoder_block_1_moe,0,0,1,2,0,0.8870968'

    Reference: Mustafa et al. 2022, arXiv 2206.02770 (examples of patches by expert).
    """
    _check(images, record)
    require_positive_int("side", side)
    require(context >= 0, f"context must not be negative. Received: context={context}")
    grid = _Grid(*canvas.patch_grid(record.expert.shape[1], *images.shape[1:3]))
    taken = [_patches(record, grid, e) for e in range(record.num_experts)]
    all_taken = sum(len(patches) for patches in taken)
    require(all_taken > 0, "record must hold a patch that an expert took. Received: none")
    found = [patches[: side * side] for patches in taken]
    tall = (images.shape[1] / grid.rows) / (images.shape[2] / grid.columns)
    columns, inches = _FEW if len(found) <= 8 else _MANY
    columns = min(columns, len(found))
    lines = math.ceil(len(found) / columns)
    figure = canvas.new_figure(
        max(0.3 + inches * columns, 4.5), 0.6 + (inches * tall + 0.25) * lines
    )
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for expert, (axis, patches) in enumerate(zip(axes.flat, found, strict=False)):
        _draw(axis, images, grid, patches, (side, context), value_range)
        share = f"{len(taken[expert]) / all_taken:.1%}" if patches else "none"
        axis.set_title(f"expert {expert}: {share}", fontsize=8)
    layer = canvas.layer_title(record.layer)
    figure.suptitle(
        f"Patches with the largest gates of each expert, {layer}\n"
        "behind an expert's number: its share of the patches",
        fontsize=10,
    )
    canvas.save(figure, path, list(_rows(record.layer, found)))
    return figure


def _check(images: np.ndarray, record: RoutingRecord) -> None:
    canvas.require_patches(record)
    require(
        record.modalities in ((), ("image",)),
        f"record must be of images. Received: tokens of {', '.join(record.modalities)}; draw them "
        "with plot_tokens_of_experts",
    )
    require(
        len(record.expert) == len(images),
        f"record must be of the {len(images)} images. Received: one of {len(record.expert)}",
    )


def _patches(record: RoutingRecord, grid: _Grid, expert: int) -> list[_Patch]:
    """The patches that an expert took: the best of each image first, by falling gates."""
    gate = np.where(record.kept & (record.expert == expert), record.weight, -1.0).max(-1)
    gate = gate[:, grid.front :]
    order = np.argsort(-gate, axis=1, kind="stable")
    ranked = np.take_along_axis(gate, order, axis=1)
    # By place within the image, then by gate.
    place, image = np.nonzero(ranked.T >= 0)
    falling = np.lexsort((-ranked[image, place], place))
    return [
        _Patch(int(i), *map(int, divmod(order[i, p], grid.columns)), float(ranked[i, p]))
        for i, p in zip(image[falling], place[falling], strict=True)
    ]


def _draw(
    axis: Axes,
    images: np.ndarray,
    grid: _Grid,
    patches: list[_Patch],
    layout: tuple[int, int],
    value_range: tuple[float, float],
) -> None:
    """Lays the patches side by side, white where there are none."""
    from matplotlib.patches import Rectangle

    side, context = layout
    height, width = images.shape[1] // grid.rows, images.shape[2] // grid.columns
    tall = min(height * (2 * context + 1), images.shape[1])
    wide = min(width * (2 * context + 1), images.shape[2])
    gap = max(1, round(_GAP * tall))
    low, high = value_range
    size = side * (tall + gap) - gap, side * (wide + gap) - gap
    sheet = np.full((*size, images.shape[-1]), high, "float32")
    for place, patch in enumerate(patches):
        line, column = divmod(place, side)
        y, x = line * (tall + gap), column * (wide + gap)
        top = min(max((patch.row - context) * height, 0), images.shape[1] - tall)
        left = min(max((patch.column - context) * width, 0), images.shape[2] - wide)
        cut = images[patch.image, top : top + tall, left : left + wide]
        sheet[y : y + tall, x : x + wide] = cut
        if context:
            corner = (x + patch.column * width - left - 0.5, y + patch.row * height - top - 0.5)
            style = {"fill": False, "edgecolor": canvas.SPARSE, "linewidth": 1.0}
            axis.add_patch(Rectangle(corner, width, height, **style))
    canvas.draw_image(axis, sheet, (low, high))


def _rows(layer: str, found: list[list[_Patch]]) -> Iterator[dict[str, Any]]:
    for expert, patches in enumerate(found):
        for place, patch in enumerate(patches):
            yield {"layer": layer, "expert": expert, "place": place, **patch._asdict()}
