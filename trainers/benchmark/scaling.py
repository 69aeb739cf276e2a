"""What the MoE layer, and a model of such layers, cost when one thing at a time changes.

A cost is a ratio: time over that of a dense MLP, or of a dense model, at the base of the grid, in
the same rounds. The prediction beside it is the ratio of the FLOPs. So the only thing that a
prediction takes from a measurement is the FLOPs a second of that dense twin; nothing is fitted.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_vmoe import analysis, models
from keras_vmoe.trainers.benchmark import layer as layer_of
from keras_vmoe.trainers.benchmark import model as model_of
from keras_vmoe.trainers.benchmark import scaling_grid as grid_of
from keras_vmoe.trainers.benchmark.scaling_grid import LAYER, Curve, Place, ScalingSettings
from keras_vmoe.trainers.benchmark.settings import FORWARD, LayerSettings, ModelSettings, Tokens
from keras_vmoe.trainers.benchmark.timing import Candidate, interleave
from keras_vmoe.trainers.work_progress import WorkProgress

_PLACEMENT = "every_2"


class Measured(NamedTuple):
    """What is timed at a place.

    Attributes:
        candidate: the layer or the model.
        reference: the dense one at the base.
        predicted: FLOPs of the one over FLOPs of the other.
        kept_share: of the (token, choice) pairs.
    """

    candidate: Candidate
    reference: Candidate
    predicted: float
    kept_share: float | None


def prepare_layer(settings: ScalingSettings, place: Place, mode: str) -> Measured:
    """Builds a MoE layer, and the dense MLP that it is held against: one row a token of the base.

    Args:
        settings: the grid.
        place: where.
        mode: `"forward"` or `"forward+backward"`.
    """
    own = LayerSettings(
        width=settings.width,
        hidden_dim=settings.hidden_dim,
        capacity_factor=place.capacity_factor,
        images_per_group=place.images_per_group,
        seed=settings.seed,
    )
    tokens = Tokens(place.batch, grid_of.tokens_per_image(settings, place))
    stage = layer_of.make_stage(own, place.experts, place.selected, tokens)
    routed = layer_of.count_kept(stage.moe, stage.inputs, None if mode == FORWARD else stage.seed)
    base = settings.base.batch * grid_of.tokens_per_image(settings, settings.base)
    flops = grid_of.layer_flops(settings, place, routed.kept)
    return Measured(
        layer_of.moe_candidate(own, stage, mode),
        layer_of.dense_candidate(own, base, mode),
        flops / grid_of.dense_flops(settings, base),
        routed.kept / routed.choices,
    )


def build_model(settings: ScalingSettings, place: Place) -> models.VMoE:
    """Builds the model of a place.

    Args:
        settings: the grid.
        place: where.
    """
    keras.utils.set_random_seed(settings.seed)
    return models.VMoE(
        image_size=place.image_size,
        patch_size=settings.patch_size,
        num_layers=settings.num_layers,
        width=settings.width,
        mlp_dim=settings.hidden_dim,
        num_heads=settings.num_heads,
        placement=_PLACEMENT,
        num_experts=place.experts,
        num_selected=place.selected,
        capacity_factor=place.capacity_factor,
        images_per_group=place.images_per_group,
        batch_priority=True,
        dtype="float32",
    )


def prepare_model(settings: ScalingSettings, place: Place, mode: str) -> Measured:
    """Builds a V-MoE, and the dense twin of the base that it is held against.

    Its FLOPs are those of `analysis.profile` with k MLPs a token in the sparse blocks.

    Args:
        settings: the grid.
        place: where.
        mode: `"forward"`.
    """
    sparse = build_model(settings, place)
    dense = model_of.dense_twin(build_model(settings, settings.base))
    of_place, of_base = (
        ModelSettings(image_size=p.image_size, batch_size=p.batch, seed=settings.seed)
        for p in (place, settings.base)
    )
    flops = analysis.profile(sparse, capacity_factor=1.0).flops * place.batch
    return Measured(
        model_of.make_step(sparse, mode, of_place),
        model_of.make_step(dense, mode, of_base),
        flops / (analysis.profile(dense).flops * settings.base.batch),
        model_of.kept_share(model_of.record(sparse, of_place)),
    )


def measure_place(
    settings: ScalingSettings,
    curve: Curve,
    place: Place,
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Measures one place.

    Args:
        settings: the grid.
        curve: the layer or the model, and the pass.
        place: where.
        on_round: called with the share of rounds that is done.

    Returns:
        A row of the table, without what is varied.
    """
    prepare = prepare_layer if curve.subject == LAYER else prepare_model
    measured = prepare(settings, place, curve.mode)
    found = {"time": measured.candidate, "dense": measured.reference}
    samples = interleave(found, settings.rounds, settings.warmup, on_round=on_round)
    relative = samples["time"].over(samples["dense"])
    return {
        **place._asdict(),
        "tokens": place.batch * grid_of.tokens_per_image(settings, place),
        "kept_share": measured.kept_share,
        "time": samples["time"].milliseconds(),
        "dense": samples["dense"].milliseconds(),
        "relative": relative._asdict(),
        "predicted": measured.predicted,
        "over_predicted": {
            name: None if ratio is None else ratio / measured.predicted
            for name, ratio in relative._asdict().items()
        },
    }


def total_work(settings: ScalingSettings) -> float:
    """Returns the work of the whole table, for the progress line."""
    found = grid_of.curves(settings)
    return float(sum(len({p for _, p in grid_of.places(settings, c)}) for c in found))


def measure_scaling(
    settings: ScalingSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures the table; a place that several lines share is measured once.

    Args:
        settings: the grid.
        progress: is told of each place.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows.
    """
    rows = []
    for curve in grid_of.curves(settings):

        @functools.cache
        def measured(place: Place, curve: Curve = curve) -> dict[str, Any]:
            gc.collect()  # the graphs of the place before hold on to their weights
            progress.begin(f"{curve.subject} {curve.mode} {_in_words(place)}", 1.0)
            return measure_place(settings, curve, place, progress.advance)

        for axis, place in grid_of.places(settings, curve):
            head = {"subject": curve.subject, "pass": curve.mode, "axis": axis}
            rows.append({**head, "value": getattr(place, axis), **measured(place)})
            on_row(rows[-1])
    return rows


def _in_words(place: Place) -> str:
    return (
        f"E={place.experts} k={place.selected} C={place.capacity_factor:g}, {place.batch} images "
        f"of {place.image_size} px, {place.images_per_group} a group"
    )
