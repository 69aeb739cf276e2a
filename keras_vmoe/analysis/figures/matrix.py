"""A small table of accuracies as a coloured matrix with its numbers written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_matrix(
    axis: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> None:
    """Draws values as colours with texts over them; NaN stays white.

    Args:
        axis: where to.
        values: `[rows, columns]`.
        rows, columns: what stands beside and below them.
        texts: what is written into each cell.
    """
    from matplotlib import colormaps

    low, high = np.nanmin(values), np.nanmax(values)
    # Half a point of accuracy should not look like the whole range of colours.
    low, high = min(low, high - 0.02), high
    axis.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for row, column in np.ndindex(values.shape):
        share = (values[row, column] - low) / (high - low)
        colour = canvas.ink(colormaps["cividis"](share)) if np.isfinite(share) else "black"
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
        axis.text(column, row, texts[row][column], **style)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
