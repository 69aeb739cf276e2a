"""The pieces of text that each expert of a MoE layer takes most."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.ops.validation import require, require_positive_int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vmoe.analysis.records import RoutingRecord

_COLUMNS = 4


def plot_tokens_of_experts(
    tokens: np.ndarray,
    record: RoutingRecord,
    piece: Callable[[int], str],
    path: str | Path,
    most: int = 8,
    max_experts: int = 12,
) -> Figure:
    """Draws the pieces of text that the experts of a MoE layer take most: bars, a panel an expert.

    A bar is the piece's share of the expert's tokens. Behind it stand their number and, in
    brackets, their share of all tokens of that piece: one with `(100%)` goes nowhere else.

    Args:
        tokens: `[b, t]` ints, the texts.
        record: how the layer routed them, from `routing_records`: of a model of images and texts
            `record.of_modality("text")`.
        piece: gives the string of a token id.
        path: the picture's file; the data, with all pieces of all experts, goes beside it as CSV.
        most: pieces of an expert that are drawn.
        max_experts: experts that are drawn, those with most tokens; one without is left out.

    Returns:
        The figure.

    Raises:
        ValueError: tokens that are not those of the record, or of which no expert took any.

    Example:
        >>> import tempfile
        >>> from keras_vmoe import analysis
        >>> expert = np.array([[[0], [0], [1]], [[0], [1], [1]]])
        >>> record = analysis.RoutingRecord(
        ...     layer="encoder_block_1_moe",
        ...     router="top_k",
        ...     expert=expert,
        ...     weight=np.ones((2, 3, 1)),
        ...     kept=np.ones((2, 3, 1), bool),
        ...     slot=np.zeros((2, 3, 1), int),
        ...     gates=np.full((2, 3, 2), 0.5),
        ... )
        >>> tokens, pieces = np.array([[3, 4, 1], [3, 3, 1]]), {1: "</s>", 3: "a", 4: "cat"}
        >>> path = Path(tempfile.mkdtemp()) / "tokens_of_experts.png"
        >>> figure = plot_tokens_of_experts(tokens, record, pieces.get, path)
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        'encoder_block_1_moe,0,3,a,2,0.6666667,0.6666667'

    Reference: Mustafa et al. 2022, arXiv 2206.02770 (examples of tokens by expert).
    """
    tokens = np.asarray(tokens)
    _check(tokens, record)
    require_positive_int("most", most)
    require_positive_int("max_experts", max_experts)
    rows = _counted(tokens, record, piece)
    by_expert = {e: [row for row in rows if row["expert"] == e] for e in range(record.num_experts)}
    totals = {e: sum(row["tokens"] for row in own) for e, own in by_expert.items() if own}
    shown = sorted(sorted(totals, key=totals.get, reverse=True)[:max_experts])
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = canvas.new_figure(max(2.5 * columns, 4.0), 0.8 + (0.55 + 0.2 * most) * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for place, expert in enumerate(shown):
        axis = axes.flat[place]
        _draw(axis, by_expert[expert][:most], most)
        share = totals[expert] / sum(totals.values())
        axis.set_title(f"expert {expert}: {share:.1%} of the kept tokens", fontsize=8)
        if place + columns >= len(shown):
            axis.set_xlabel("% of the expert's tokens", fontsize=8)
    left_out = f" ({len(totals) - len(shown)} smaller ones left out)"
    figure.suptitle(
        f"Pieces of text that experts take most, {canvas.layer_title(record.layer)}"
        + (left_out if len(shown) < len(totals) else "")
        + "\nbehind a bar: its tokens (share of all tokens of that piece)",
        fontsize=10,
    )
    canvas.save(figure, path, rows)
    return figure


def _check(tokens: np.ndarray, record: RoutingRecord) -> None:
    require(
        record.modalities in ((), ("text",)),
        f"record must be of texts alone. Received: layer {record.layer!r} with tokens of "
        f"{', '.join(record.modalities)}; take record.of_modality('text')",
    )
    require(
        tokens.shape == record.kept.shape[:2] and np.issubdtype(tokens.dtype, np.integer),
        f"tokens must be ints of shape {record.kept.shape[:2]}, those of the record. Received: "
        f"{tokens.dtype} of shape {tokens.shape}",
    )
    require(bool(record.kept.any()), "record must hold a token that an expert took. Received: none")


def _counted(
    tokens: np.ndarray, record: RoutingRecord, piece: Callable[[int], str]
) -> list[dict[str, Any]]:
    """A row per expert and piece, by expert and falling number; the lower id first of equals."""
    counted = np.ones(tokens.shape, bool) if record.mask is None else record.mask
    ids, of_piece = np.unique(tokens[counted], return_counts=True)
    names = [piece(int(i)) for i in ids]
    pairs = np.broadcast_to(tokens[..., None], record.kept.shape)[record.kept]
    experts = record.expert[record.kept]
    rows = []
    for expert in range(record.num_experts):
        taken, counts = np.unique(pairs[experts == expert], return_counts=True)
        for i in np.argsort(-counts, kind="stable"):
            place = int(np.searchsorted(ids, taken[i]))
            rows.append(
                {
                    "layer": record.layer,
                    "expert": expert,
                    "token": int(taken[i]),
                    "piece": names[place],
                    "tokens": int(counts[i]),
                    "share_of_expert": counts[i] / counts.sum(),
                    "share_of_piece": counts[i] / of_piece[place],
                }
            )
    return rows


def _draw(axis: Axes, rows: list[dict[str, Any]], most: int) -> None:
    shares = np.array([100 * row["share_of_expert"] for row in rows])
    axis.barh(range(len(rows)), shares, 0.75, color=canvas.EIGHT_COLOURS[1])
    # Pieces may hold dollar signs, which are no mathematics here.
    labels = [row["piece"] for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
    for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
        words = f" {row['tokens']} ({row['share_of_piece']:.0%})"
        axis.text(share, place, words, va="center", fontsize=7)
    canvas.plain_axes(axis)
    axis.grid(visible=False, axis="y")
    axis.set_ylim(most - 0.5, -0.5)
    axis.set_xlim(0, 1.5 * shares.max())
