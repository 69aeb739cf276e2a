"""Sweeps of a trained model's routing, with what they cost, and their files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_vmoe import analysis, evaluation
from keras_vmoe.analysis import LayerProfile
from keras_vmoe.tables import aligned
from keras_vmoe.trainers import model_flags

TIMING_ROUNDS = 7


def macs_beside_experts(model: keras.Model) -> int:
    """The multiply-accumulates of one image through everything but the experts.

    Args:
        model: a model with MoE layers, whatever their capacity.

    Example:
        >>> from keras_vmoe import models
        >>> sizes = dict(image_size=16, patch_size=8, num_layers=1, width=8, mlp_dim=8)
        >>> model = models.VMoE(**sizes, num_heads=2, num_experts=4, placement=(0,), num_classes=3)
        >>> experts = round(5 * 2 * 1.05 * 2 * 8 * 8)  # t k C 2dh
        >>> analysis.profile(model).macs - macs_beside_experts(model) == experts
        True
    """
    profile = analysis.profile(model)
    return profile.macs - sum(row.macs for row in _expert_rows(profile.layers))


def _expert_rows(rows: Sequence[LayerProfile]) -> Iterator[LayerProfile]:
    for row in rows:
        of_mixture = [part.name for part in row.parts] == ["router", "experts"]
        yield from [row.parts[1]] if of_mixture else _expert_rows(row.parts)


def sweep(
    model: keras.Model,
    batches: Any,
    num_batches: int,
    settings: Sequence[evaluation.RoutingSetting],
    dense: keras.Model | None = None,
    loss: evaluation.Loss = evaluation.softmax_loss,
    exact_capacity: bool = True,
    timing_rounds: int = TIMING_ROUNDS,
    advance: Callable[[float], None] = lambda share: None,
) -> list[evaluation.SweepRow]:
    """`evaluation.routing_sweep` with the MACs of whole models, telling how far it is.

    Args:
        model, batches, settings, dense, loss, exact_capacity, timing_rounds: as there.
        num_batches: how many batches there are.
        advance: called with the share that is done.
    """
    models_in_turn = len(settings) + (dense is not None)
    calls = evaluation.sweep_calls(num_batches, models_in_turn, timing_rounds)
    done = itertools.count(1)
    return evaluation.routing_sweep(
        model,
        batches,
        settings,
        dense=dense,
        other_macs=macs_beside_experts(model),
        dense_macs=analysis.profile(dense).macs if dense is not None else 0,
        loss=loss,
        exact_capacity=exact_capacity,
        timing_rounds=timing_rounds,
        on_call=lambda: advance(next(done) / calls),
    )


def table(rows: Sequence[evaluation.SweepRow]) -> str:
    """The rows as text.

    Args:
        rows: of a sweep.
    """
    head = ("k", "C", "priority", "slots/choice", "accuracy", "loss", "kept", "MMACs", "ms/image")
    lines = [head]
    for row in rows:
        lines.append(
            (
                _word(row.num_selected, "d"),
                _word(row.capacity_factor, "g"),
                row.priority or "-",
                _word(row.capacity, ".3f"),
                _word(row.accuracy, ".2%"),
                _word(row.loss, ".3f"),
                _word(row.kept, ".1%"),
                _word(row.macs / 1e6, ".4g"),
                _word(row.milliseconds, ".4g"),
            )
        )
    return "\n".join(aligned(lines))


def _word(value: float | None, style: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, style)


def write(
    rows: Sequence[evaluation.SweepRow], folder: Path, facts: dict[str, Any], subtitle: str
) -> list[Path]:
    """Writes `sweep.png` with `sweep.csv`, and `sweep.json`.

    Args:
        rows: of a sweep.
        folder: where to.
        facts: of the model and the data, for the JSON file.
        subtitle: of the picture.

    Returns:
        The files.
    """
    from keras_vmoe.analysis import figures

    as_dicts = [row._asdict() for row in rows]
    picture = folder / "sweep.png"
    figures.plot_capacity(as_dicts, picture, subtitle)
    model_flags.write_json(folder / "sweep.json", {**facts, "rows": as_dicts})
    return [picture, picture.with_suffix(".csv"), folder / "sweep.json"]


def groups_in_words(rows: Sequence[evaluation.SweepRow]) -> str:
    """The size of the routing groups, which every curve depends on."""
    return f"groups of {max(row.group_tokens or 0 for row in rows):,} tokens"
