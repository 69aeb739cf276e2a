"""The routing picture: which expert each patch of some images went to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_vmoe.analysis.records import RoutingRecord

_MAX_NUMBERED_SIDE = 16
_INCHES = 2.1


def plot_routing(
    images: np.ndarray,
    records: Mapping[str, RoutingRecord],
    path: str | Path,
    max_images: int = 4,
    max_layers: int = 6,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> None:
    """Draws which expert each patch of some images went to, in each MoE layer.

    A patch has the colour and the number of the expert of its heaviest choice that was kept; a
    patch of which no choice was kept is grey and hatched. The bars below show the share of the
    kept choices that each expert took, over all images of the records.

    Args:
        images: `[b, height, width, channels]`.
        records: MoE layer name to its record, as `routing_records(model, images)` returns them.
        path: the picture's file; the ending chooses the format.
        max_images: how many of the images are drawn.
        max_layers: how many layers are drawn, the first and last among them.
        value_range: the values of black and white.

    Raises:
        ValueError: if there is no record, or one that does not belong to the images.

    Example:
        >>> import numpy as np, tempfile
        >>> from keras_vmoe.analysis import RoutingRecord
        >>> expert = np.arange(32).reshape(2, 16, 1) % 8
        >>> record = RoutingRecord(
        ...     layer="block_1",
        ...     router="top_k",
        ...     expert=expert,
        ...     weight=np.ones((2, 16, 1)),
        ...     kept=expert != 3,
        ...     slot=np.zeros((2, 16, 1), int),
        ...     gates=np.full((2, 16, 8), 1 / 8),
        ... )
        >>> path = Path(tempfile.mkdtemp()) / "routing.png"
        >>> plot_routing(np.zeros((2, 8, 8, 1)), {"block_1": record}, path)
        >>> path.exists()
        True
    """
    _check(images, records)
    layers = canvas.spread(list(records), max_layers)
    shown = min(max_images, len(images))
    figure = canvas.new_figure(_INCHES * (len(layers) + 1), _INCHES * (shown + 1) + 0.7)
    axes = figure.subplots(shown + 1, len(layers) + 1, squeeze=False)
    for row in range(shown):
        canvas.draw_image(axes[row, 0], images[row], value_range)
        for column, name in enumerate(layers, start=1):
            _draw_patches(axes[row, column], images[row], records[name], row, value_range)
    axes[0, 0].set_title("image", fontsize=9)
    for column, name in enumerate(layers, start=1):
        axes[0, column].set_title(
            name.replace("_member_", "\nmember ").replace("_", " "), fontsize=9
        )
        _draw_shares(axes[shown, column], records[name])
    _draw_key(axes[shown, 0], len(images), records)
    routed = "image" if all(map(_of_whole_images, records.values())) else "patch"
    figure.suptitle(f"The expert that each {routed} went to", fontsize=11)
    figure.savefig(path)


def _check(images: np.ndarray, records: Mapping[str, RoutingRecord]) -> None:
    if not records:
        raise ValueError("records={} holds no MoE layer; a dense model has no routing to draw")
    for name, record in records.items():
        canvas.require_patches(record)
        if len(record.expert) != len(images):
            raise ValueError(
                f"records[{name!r}] is of {len(record.expert)} images, but images has "
                f"{len(images)}; make it with routing_records(model, images)"
            )


def _of_whole_images(record: RoutingRecord) -> bool:
    """Whether an image is routed as one; it is never dropped."""
    return record.expert.shape[1] == 1


def _colours(experts: int) -> list:
    if experts <= len(canvas.EIGHT_COLOURS):
        return list(canvas.EIGHT_COLOURS[:experts])
    from matplotlib import colormaps

    # More colours than the eye can tell apart; the numbers in the patches say which is which.
    return [colormaps["viridis"](i / (experts - 1)) for i in range(experts)]


def _winners(record: RoutingRecord, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns expert `[side, side]` and whether any choice was kept `[side, side]`."""
    kept = record.kept[index]
    weight = np.where(kept, record.weight[index], -1.0)
    best = weight.argmax(-1)
    expert = np.take_along_axis(record.expert[index], best[:, None], axis=-1)[:, 0]
    side = math.isqrt(len(expert))
    # Tokens in front of the patches, such as the class token, have no place in the picture.
    patches = slice(len(expert) - side * side, None)
    return expert[patches].reshape(side, side), kept.any(-1)[patches].reshape(side, side)


def _draw_patches(
    axis: Axes,
    image: np.ndarray,
    record: RoutingRecord,
    index: int,
    value_range: tuple[float, float],
) -> None:
    from matplotlib.patches import Rectangle

    # Lighter than the image itself, so that the colours over it stay those of the bars.
    canvas.draw_image(axis, image, value_range, darkest=0.5)
    expert, kept = _winners(record, index)
    colours = _colours(record.num_experts)
    side = len(expert)
    height, width = image.shape[0] / side, image.shape[1] / side
    for y, x in np.ndindex(side, side):
        corner = (x * width - 0.5, y * height - 0.5)
        dropped = not kept[y, x]
        face = canvas.DROPPED if dropped else colours[expert[y, x]]
        style = {"facecolor": face, "alpha": 0.8, "edgecolor": "white", "linewidth": 0.6}
        if dropped:
            style |= canvas.HATCH
        axis.add_patch(Rectangle(corner, width, height, **style))
        if side <= _MAX_NUMBERED_SIDE and not dropped:
            middle = (corner[0] + width / 2, corner[1] + height / 2)
            points = min(9.0, 72 * _INCHES / side / 2.2)
            axis.text(
                *middle,
                expert[y, x],
                ha="center",
                va="center",
                fontsize=points,
                color=canvas.ink(face),
            )


def _draw_shares(axis: Axes, record: RoutingRecord) -> None:
    shares = record.expert_shares
    positions = np.arange(len(shares))
    axis.barh(positions, 100 * shares, color=_colours(len(shares)))
    axis.invert_yaxis()
    axis.set_yticks(positions[:: max(1, len(shares) // 8)])
    axis.tick_params(labelsize=7)
    axis.set_xlabel("% of kept choices", fontsize=8)
    axis.set_xlim(0, 125 * shares.max())
    if len(shares) <= _MAX_NUMBERED_SIDE:
        for position, share in enumerate(shares):
            axis.text(100 * share, position, f" {share:.1%}", va="center", fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    if not _of_whole_images(record):
        lost = 1 - record.kept.any(-1).mean()
        axis.set_title(f"dropped: {lost:.1%} of tokens", fontsize=8)


def _draw_key(axis: Axes, count: int, records: Mapping[str, RoutingRecord]) -> None:
    """The key; with several choices a token, a patch shows one of them and the bars count all."""
    from matplotlib.patches import Patch

    axis.set_axis_off()
    several = any(record.expert.shape[-1] > 1 for record in records.values())
    label = "expert (number)" + (" of the\nkept choice that\nweighs most" if several else "")
    experts = max(record.num_experts for record in records.values())
    handles = [Patch(facecolor=_colours(experts)[experts // 2], label=label)]
    if not all(map(_of_whole_images, records.values())):
        handles.append(Patch(facecolor=canvas.DROPPED, **canvas.HATCH, label="dropped"))
    axis.legend(
        handles=handles,
        loc="upper left",
        fontsize=8,
        frameon=False,
        title=f"bars: share of each\nexpert over {count} image{'' if count == 1 else 's'}",
        title_fontsize=8,
    )
