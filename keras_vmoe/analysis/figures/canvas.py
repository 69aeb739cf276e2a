"""What all figures share: colours, sizes, images, and files written whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.records import RoutingRecord

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
EIGHT_COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
DENSE, SPARSE = EIGHT_COLOURS[4], EIGHT_COLOURS[5]
DROPPED, HATCH = "#B8B8B8", {"hatch": "////", "edgecolor": "#606060"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_LAYERS = 4


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure that pyplot knows nothing of.

    Args:
        width, height: in inches, of 120 pixels each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a figure, and its data as CSV under the same stem.

    Each file is whole or not there: it is written under another name and renamed.

    Args:
        figure: the picture.
        path: its file; the ending chooses the format.
        rows: the data, one mapping of the same names a row; missing values are empty.

    Raises:
        ValueError: a path that is no picture's, or no rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty.png"
        >>> save(new_figure(1, 1), path, [{"step": 1, "accuracy": 0.5}])
        >>> path.with_suffix(".csv").read_text()
        'step,accuracy\\n1,0.5\\n'
    """
    path = Path(path)
    require(
        path.suffix not in ("", ".csv"),
        f"path must end like a picture's file, such as '.png'. Received: path={str(path)!r}",
    )
    require(bool(rows), "rows must hold at least one row. Received: none")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    _replace(path.with_suffix(".csv"), lambda file: file.write_text(text.getvalue(), "utf-8"))
    _replace(path, figure.savefig)


def _plain(value: Any) -> Any:
    """What a cell of a CSV file holds."""
    if value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    return f"{value:.7g}" if isinstance(value, (float, np.floating)) else value


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    temporary = target.with_name(f".new-{os.getpid()}-{target.name}")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def spread(names: Sequence[str], most: int) -> list[str]:
    """Returns at most `most` of the names, evenly spaced, the first and the last among them.

    Example:
        >>> spread(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
    """
    if len(names) <= most:
        return list(names)
    if most == 1:
        return [names[-1]]
    return [names[i] for i in np.linspace(0, len(names) - 1, most).round().astype(int)]


def layer_title(name: str) -> str:
    """Returns a layer's name in words.

    Example:
        >>> layer_title("encoder_block_3_moe"), layer_title("my_moe")
        ('block 3', 'my moe')
        >>> layer_title("encoder_block_3_moe_member_1")  # of an ensemble
        'block 3, member 1'
    """
    name, _, member = name.partition("_member_")
    if member:
        return f"{layer_title(name)}, member {member}"
    words = name.removeprefix("encoder_").removesuffix("_moe") if "block" in name else name
    return words.replace("_", " ")


def ink(colour: Any) -> str:
    """Returns black or white, whichever is read better on a colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def plain_axes(axis: Axes) -> None:
    """Takes off the upper and right border, and lays a light grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E4E4E4", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def colour_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str) -> None:
    """Puts one bar of colours beside several axes.

    Args:
        figure: the figure.
        image: what `imshow` gave.
        axes: the axes that share the colours.
        label: what the colours mean, with its unit.
    """
    bar = figure.colorbar(image, ax=list(axes), shrink=0.9, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def draw_image(
    axis: Axes, image: np.ndarray, value_range: tuple[float, float], darkest: float = 0.0
) -> None:
    """Draws an image without ticks.

    Args:
        axis: where to.
        image: `[height, width, channels]`, 1 or 3 channels.
        value_range: the values of black and white.
        darkest: the lightness that black gets, 0 to 1.
    """
    low, high = value_range
    pixels = np.clip((np.asarray(image, "float32") - low) / (high - low), 0, 1)
    pixels = darkest + (1 - darkest) * pixels
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    axis.imshow(pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def require_patches(record: RoutingRecord) -> None:
    """Refuses a record of images and texts together, whose tokens are no grid of patches.

    Raises:
        ValueError: such a record.
    """
    require(
        len(record.modalities) < 2,
        f"records must be of patches alone. Received: layer {record.layer!r} with tokens of "
        f"{', '.join(record.modalities)}; take record.of_modality('image')",
    )


def patch_grid(tokens: int, height: int = 1, width: int = 1) -> tuple[int, int, int]:
    """Returns how the tokens of an image lie: tokens in front of the patches, rows, columns.

    Args:
        tokens: of one image (t); those in front, such as a class token, have no place in it.
        height, width: of the image, in any unit.

    Raises:
        ValueError: if no grid of the image's proportions has nearly so many patches.

    Example:
        >>> patch_grid(17), patch_grid(18, height=32, width=64)
        ((1, 4, 4), (0, 3, 6))
    """
    for front in range(min(tokens, 9)):
        patches = tokens - front
        rows = round(math.sqrt(patches * height / width))
        if rows and rows * rows * width == patches * height:
            return front, rows, patches // rows
    raise ValueError(
        f"tokens must be those of a {height}x{width} image cut into square patches. "
        f"Received: tokens={tokens}"
    )
