"""The ways to the experts beside one another, and whether the layer chooses the fastest."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from keras_vmoe import ops
from keras_vmoe.layers.moe_mlp import has_accelerator
from keras_vmoe.trainers.benchmark import layer
from keras_vmoe.trainers.benchmark.settings import DISPATCHES, FORWARD, LayerSettings
from keras_vmoe.trainers.benchmark.timing import Candidate, interleave
from keras_vmoe.trainers.work_progress import WorkProgress

_WAYS = tuple(name for name in DISPATCHES if name != "auto")


def measure_dispatch(
    settings: LayerSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures the table of dispatches.

    Args:
        settings: the grid; its `dispatch` is not looked at.
        progress: is told of each cell.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows.
    """
    rows = []
    for cell in layer.cells(settings):
        progress.begin(cell.label(), cell.work)
        gc.collect()  # the graphs of the cells before hold on to their weights
        rows.append(_measure_cell(settings, cell, progress.advance))
        on_row(rows[-1])
    return rows


def _candidate(settings: LayerSettings, stage: layer.Stage, mode: str, dispatch: str) -> Candidate:
    """A pass through the layer by one way; all ways share the weights, and so the routing."""
    stage.moe.dispatch = dispatch  # the graph is traced at once
    return layer.moe_candidate(settings, stage, mode)


def _measure_cell(
    settings: LayerSettings, cell: layer.Cell, on_round: Callable[[float], None]
) -> dict[str, Any]:
    stage = layer.make_stage(settings, *cell[:3])
    found = {name: _candidate(settings, stage, cell.mode, name) for name in _WAYS}
    samples = interleave(found, settings.rounds, settings.warmup, on_round=on_round)
    times = {name: samples[name].milliseconds() for name in _WAYS}
    fastest = min(times, key=lambda name: times[name]["wall_ms"])
    routed = layer.count_kept(stage.moe, stage.inputs, None if cell.mode == FORWARD else stage.seed)
    group_size = min(settings.images_per_group, cell.tokens.images) * cell.tokens.per_image
    chosen = ops.choose_dispatch(
        ops.TokenChoicePlan, group_size, settings.hidden_dim, "tensorflow", has_accelerator()
    )
    return {
        "pass": cell.mode,
        "experts": cell.num_experts,
        "selected": cell.num_selected,
        "tokens": cell.tokens.total,
        "group_size": group_size,
        "rows_per_expert": routed.kept / cell.num_experts,
        **times,
        "chosen": chosen,
        "fastest": fastest,
        "chosen_over_fastest": samples[chosen].over(samples[fastest])._asdict(),
    }
