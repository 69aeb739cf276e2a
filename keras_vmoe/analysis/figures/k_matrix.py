"""Models trained with some choices per token, evaluated with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.matrix import draw_matrix
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class SelectedSweep:
    """One trained model at several numbers of choices per token.

    Attributes:
        name: what the figure calls the model.
        trained: the choices per token that it was trained with (k).
        accuracy: choices per token at evaluation (k') to accuracy, 0 to 1.
    """

    name: str
    trained: int
    accuracy: Mapping[int, float]


def plot_k_matrix(sweeps: Sequence[SelectedSweep], path: str | Path) -> Figure:
    """Draws the accuracy of models trained with k (rows) and evaluated with k' (columns).

    The cell of k' = k has a frame.

    Args:
        sweeps: one a model; they are drawn by k, then by name.
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure.

    Raises:
        ValueError: no measurement.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "k_matrix.png"
        >>> figure = plot_k_matrix([SelectedSweep("mine", 1, {1: 0.9, 2: 0.89})], path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'mine,1,1,0.9'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on changing k at inference.
    """
    from matplotlib.patches import Rectangle

    sweeps = sorted(sweeps, key=lambda sweep: (sweep.trained, sweep.name))
    columns = sorted({k for sweep in sweeps for k in sweep.accuracy})
    require(bool(columns), "sweeps must hold at least one accuracy. Received: none")
    values = np.array([[sweep.accuracy.get(k, np.nan) for k in columns] for sweep in sweeps])
    texts = [["" if np.isnan(v) else f"{100 * v:.1f}" for v in row] for row in values]
    figure = canvas.new_figure(2.4 + 0.75 * len(columns), 1.5 + 0.42 * len(sweeps))
    axis = figure.subplots()
    names = [f"k = {sweep.trained}  ({sweep.name})" for sweep in sweeps]
    draw_matrix(axis, values, names, [str(k) for k in columns], texts)
    for row, sweep in enumerate(sweeps):
        if sweep.trained in columns:
            corner = (columns.index(sweep.trained) - 0.48, row - 0.46)
            frame = {"fill": False, "edgecolor": canvas.SPARSE, "linewidth": 2}
            axis.add_patch(Rectangle(corner, 0.96, 0.92, **frame))
    axis.set_xlabel("choices per token at evaluation (k')", fontsize=9)
    axis.set_ylabel("trained with", fontsize=9)
    axis.set_title("Accuracy (%) with other k than in training", fontsize=11)
    rows = [
        {"run": sweep.name, "trained_k": sweep.trained, "evaluated_k": k, "accuracy": accuracy}
        for sweep in sweeps
        for k, accuracy in sorted(sweep.accuracy.items())
    ]
    canvas.save(figure, path, rows)
    return figure
