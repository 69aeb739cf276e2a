"""Softmax before the choice of experts, or after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.matrix import draw_matrix
from keras_vmoe.analysis.run_summary import RunSummary, in_order, label_of, mean_and_error, varying
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dividing the k chosen gates by their sum is the softmax over the k chosen logits.
_ORDERS = {False: "TOPk(softmax(Wx))", True: "softmax(TOPk(Wx))"}


def plot_gate_order(runs: Sequence[RunSummary], path: str | Path) -> Figure:
    """Draws a table of accuracies by the order of softmax and top-k in the gates.

    V-MoE takes the softmax over all experts and leaves the k chosen gates as they are; GShard's
    softmax over the chosen ones is `renormalise_gates=True`.

    Args:
        runs: finished runs; those of one line and order, such as several seeds, are averaged.
        path: the picture's file; the data goes beside it as CSV.

    Returns:
        The figure; a line for each setting of the model's other arguments that vary, if any has
        runs of both orders only those that have.

    Raises:
        ValueError: runs that do not hold both orders.

    Example:
        >>> import tempfile
        >>> runs = []
        >>> for name, after in (("before", False), ("after", True)):
        ...     arguments = {"num_selected": 2, "renormalise_gates": after}
        ...     runs.append(RunSummary(name, True, 0.9, 1e12, 60.0, arguments=arguments))
        >>> path = Path(tempfile.mkdtemp()) / "gate_order.png"
        >>> figure = plot_gate_order(runs, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'k=2,0,TOPk(softmax(Wx)),1,0.9,'

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 2.1 and appendix on the order.
    """
    runs = [run for run in runs if "renormalise_gates" in run.arguments]
    found = {bool(run.arguments["renormalise_gates"]) for run in runs}
    require(
        found == set(_ORDERS),
        "runs must hold sparse ones with renormalise_gates=False and others with True. Received: "
        f"{', '.join(str(value) for value in sorted(found)) or 'none'}",
    )
    others = [name for name in varying(runs) if name != "renormalise_gates"]
    if "num_selected" not in others:
        others.insert(0, "num_selected")
    groups: dict[str, dict[bool, list[RunSummary]]] = {}
    for run in in_order(runs, others):
        lines = groups.setdefault(label_of(run, others), {order: [] for order in _ORDERS})
        lines[bool(run.arguments["renormalise_gates"])].append(run)
    paired = {label: line for label, line in groups.items() if all(line.values())}
    groups = paired or groups
    rows = []
    for label, by_order in groups.items():
        for order, group in by_order.items():
            mean, error = (
                mean_and_error([run.accuracy for run in group]) if group else [math.nan] * 2
            )
            rows.append(
                {
                    "setting": label,
                    "renormalise_gates": order,
                    "order": _ORDERS[order],
                    "runs": len(group),
                    "accuracy": mean,
                    "standard_error": error,
                }
            )
    figure = _draw(rows, list(groups))
    canvas.save(figure, path, rows)
    return figure


def _draw(rows: list[dict], labels: list[str]) -> Figure:
    values = np.array([row["accuracy"] for row in rows]).reshape(len(labels), 2)
    texts = np.array([_text(row) for row in rows]).reshape(len(labels), 2)
    longest = max(map(len, labels))
    figure = canvas.new_figure(4.6 + 0.07 * longest, 1.3 + 0.45 * len(labels))
    axis = figure.subplots()
    draw_matrix(axis, values, labels, list(_ORDERS.values()), texts.tolist())
    axis.set_title("Accuracy (%) by the order of softmax and top-k", fontsize=11)
    return figure


def _text(row: dict) -> str:
    if not row["runs"]:
        return "no run"
    error = row["standard_error"]
    spread = "" if math.isnan(error) else f" ± {100 * error:.2f}"
    return f"{100 * row['accuracy']:.2f}{spread}  (n={row['runs']})"
