"""The MoE layer beside a dense MLP that does the same work, and capacity against time."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_vmoe import layers
from keras_vmoe.trainers.benchmark import graphs
from keras_vmoe.trainers.benchmark.settings import FORWARD, LayerSettings, Tokens
from keras_vmoe.trainers.benchmark.timing import Candidate, Samples, interleave
from keras_vmoe.trainers.work_progress import WorkProgress

# A backward pass is two matmuls for each one of the forward pass.
_WORK_WITH_BACKWARD = 3.0


class Routed(NamedTuple):
    """What became of the choices of a batch.

    Attributes:
        choices: (token, choice) pairs.
        kept: those of them that found a slot.
        slots: of an expert in a group.
        groups: routing groups.
    """

    choices: int
    kept: int
    slots: int
    groups: int


class Cell(NamedTuple):
    """One place in the grid."""

    num_experts: int
    num_selected: int
    tokens: Tokens
    mode: str

    @property
    def work(self) -> float:
        """Grows as the time does; for the progress line."""
        per_row = 1.0 if self.mode == FORWARD else _WORK_WITH_BACKWARD
        return self.num_selected * self.tokens.total * per_row

    def label(self) -> str:
        """The cell in words."""
        return f"{self.mode} E={self.num_experts} k={self.num_selected} n={self.tokens.total:,}"


class Stage(NamedTuple):
    """A layer with what it is called on.

    Attributes:
        moe: the layer, built.
        inputs: `[images, tokens, d]`, standard normal.
        upstream: the gradient that arrives at the output, like `inputs`.
        seed: `[2]`, of the router's noise; it is an argument of the graph, so that noise is drawn
            within it and is the same in every run.
    """

    moe: layers.MoEMLP
    inputs: tf.Tensor
    upstream: tf.Tensor
    seed: tf.Tensor


def cells(settings: LayerSettings) -> list[Cell]:
    """Returns the grid, cell by cell in the order of the table."""
    grid = itertools.product(settings.experts, settings.selected, settings.tokens, settings.passes)
    return [Cell(*place) for place in grid]


def make_stage(
    settings: LayerSettings, num_experts: int, num_selected: int, tokens: Tokens
) -> Stage:
    """Builds a layer and its inputs.

    The router keeps its own initialisation and the tokens are standard normal, so experts are
    loaded about evenly, as in a trained model, and not quite.

    Args:
        settings: the grid's.
        num_experts: e.
        num_selected: k.
        tokens: the batch.
    """
    router = layers.TopKRouter(
        num_experts,
        num_selected,
        capacity_factor=settings.capacity_factor,
        batch_priority=True,
        kernel_initializer=keras.initializers.LecunNormal(seed=settings.seed),
    )
    moe = layers.MoEMLP(
        router,
        settings.hidden_dim,
        images_per_group=settings.images_per_group,
        dispatch=settings.dispatch,
        dtype="float32",
    )
    shape = (tokens.images, tokens.per_image, settings.width)
    moe.build(shape)
    return Stage(
        moe,
        tf.random.stateless_normal(shape, [settings.seed, 1]),
        tf.random.stateless_normal(shape, [settings.seed, 2]),
        tf.constant([settings.seed, 3]),
    )


def router_noise(moe: layers.MoEMLP, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws what the router would draw in training, from a seed that is handed in.

    Args:
        moe: the layer.
        inputs: `[images, tokens, d]`.
        seed: `[2]`.

    Returns:
        Unit normal noise `[g, s, e]`.
    """
    images, length = inputs.shape[:2]
    size = min(images, moe.images_per_group)
    shape = (-(-images // size), size * length, moe.router.num_experts)
    return tf.random.stateless_normal(shape, seed)


def count_kept(
    moe: layers.MoEMLP,
    inputs: tf.Tensor,
    seed: tf.Tensor | None = None,
    capacity_factor: float | None = None,
) -> Routed:
    """Counts the (token, choice) pairs of this very input that find a slot.

    Args:
        moe: the layer.
        inputs: `[images, tokens, d]`.
        seed: of the noise in training; `None`: inference.
        capacity_factor: overrides the layer's own.
    """
    noise = None if seed is None else router_noise(moe, inputs, seed)
    with layers.record_routing() as calls, layers.routing_metrics(False):
        moe(inputs, noise=noise, training=seed is not None, capacity_factor=capacity_factor)
    plan = calls[0].plan
    kept = keras.ops.convert_to_numpy(plan.kept)
    # Where the last group is filled up with absent images, their choices are no choices.
    choices = inputs.shape[0] * inputs.shape[1] * kept.shape[2]
    return Routed(choices, int(kept.sum()), int(calls[0].capacity), kept.shape[0])


def chunk_sizes(rows: int, chunk_rows: int) -> list[int]:
    """Cuts rows into chunks, two at least where there are two rows.

    Example:
        >>> chunk_sizes(2500, 1024), chunk_sizes(100, 1024)
        ([1024, 1024, 452], [50, 50])
    """
    size = max(1, min(chunk_rows, -(-rows // 2)))
    return [min(size, rows - start) for start in range(0, rows, size)]


def dense_calls(mlp: layers.MLP, rows: int, chunk_rows: int) -> dict[str, graphs.Call]:
    """Returns the two forms of the dense MLP: all rows at once, and chunk after chunk.

    Args:
        mlp: the dense MLP.
        rows: how many rows it is given.
        chunk_rows: rows in a chunk, which keeps the hidden layer in the CPU's cache.
    """
    sizes = chunk_sizes(rows, chunk_rows)
    return {
        "one_shot": lambda x: (mlp(x), []),
        "chunked": lambda x: (tf.concat([mlp(part) for part in tf.split(x, sizes)], 0), []),
    }


def make_candidates(
    settings: LayerSettings, stage: Stage, mode: str, routed: Routed
) -> dict[str, Candidate]:
    """Returns what is timed in a cell: `moe`, the forms of the dense MLP, and `padded`.

    Args:
        settings: the grid's.
        stage: the layer with its inputs.
        mode: `"forward"` or `"forward+backward"`.
        routed: what became of the choices in this mode.
    """
    moe, mlp = stage.moe, _dense_mlp(settings)
    rows = _rows(settings, (routed.kept, settings.width))
    slots = (moe.router.num_experts, routed.groups * routed.slots, settings.width)
    found = {"moe": moe_candidate(settings, stage, mode)}
    for name, call in dense_calls(mlp, routed.kept, settings.chunk_rows).items():
        found[name] = _candidate(mode, call, mlp, rows)
    padded = _rows(settings, slots)
    found["padded"] = _candidate(mode, lambda x: (moe.experts(x), []), moe.experts, padded)
    return found


def moe_candidate(settings: LayerSettings, stage: Stage, mode: str) -> Candidate:
    """Returns a candidate that runs a MoE layer on its inputs.

    Args:
        settings: the grid's.
        stage: the layer with its inputs.
        mode: `"forward"`, which is inference, or `"forward+backward"`.
    """
    moe = stage.moe

    def layer(x: tf.Tensor, seed: tf.Tensor | None = None) -> tuple[tf.Tensor, list[tf.Tensor]]:
        noise = None if seed is None else router_noise(moe, x, seed)
        with layers.routing_metrics(settings.routing_metrics):
            outputs = moe(x, noise=noise, training=seed is not None)
        return outputs, moe.losses

    if mode == FORWARD:
        return graphs.forward(layer, stage.inputs)
    weights = moe.trainable_variables
    return graphs.forward_backward(layer, weights, stage.inputs, stage.upstream, stage.seed)


def dense_candidate(settings: LayerSettings, rows: int, mode: str) -> Candidate:
    """Returns a candidate that runs a dense MLP of an expert's size on rows, all at once.

    Args:
        settings: the grid's.
        rows: how many.
        mode: `"forward"` or `"forward+backward"`.
    """
    mlp, inputs = _dense_mlp(settings), _rows(settings, (rows, settings.width))
    return _candidate(mode, lambda x: (mlp(x), []), mlp, inputs)


def _dense_mlp(settings: LayerSettings) -> layers.MLP:
    mlp = layers.MLP(settings.hidden_dim, dtype="float32")
    mlp.build((None, settings.width))
    return mlp


def _rows(settings: LayerSettings, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.random.stateless_normal(shape, [settings.seed, 4])


def _candidate(
    mode: str, call: graphs.Call, owner: keras.layers.Layer, inputs: tf.Tensor
) -> Candidate:
    if mode == FORWARD:
        return graphs.forward(call, inputs)
    # Where a gradient's numbers do not matter the inputs serve as one.
    return graphs.forward_backward(call, owner.trainable_variables, inputs, inputs)


def measure_cell(
    settings: LayerSettings,
    stage: Stage,
    cell: Cell,
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Measures one cell of the grid.

    Args:
        settings: the grid's.
        stage: the layer with its inputs.
        cell: the cell.
        on_round: called with the share of rounds that is done.

    Returns:
        A row for the table and the JSON file.
    """
    seed = None if cell.mode == FORWARD else stage.seed
    routed = count_kept(stage.moe, stage.inputs, seed)
    found = make_candidates(settings, stage, cell.mode, routed)
    samples = interleave(found, settings.rounds, settings.warmup, on_round=on_round)
    return {
        "pass": cell.mode,
        "experts": cell.num_experts,
        "selected": cell.num_selected,
        "tokens": cell.tokens.total,
        "images": cell.tokens.images,
        "choices": routed.choices,
        "kept_rows": routed.kept,
        "kept_share": routed.kept / routed.choices,
        "slots": routed.slots,
        "padded_rows": cell.num_experts * routed.groups * routed.slots,
        **_compare(samples),
    }


def _compare(samples: dict[str, Samples]) -> dict[str, Any]:
    """Times and efficiencies of a cell: everything is held against the faster dense form."""
    forms = {name: samples[name] for name in ("one_shot", "chunked")}
    faster = min(forms, key=lambda name: forms[name].milliseconds()["wall_ms"])
    dense = forms[faster]
    return {
        "moe": samples["moe"].milliseconds(),
        "dense": dense.milliseconds(),
        "dense_forms": {name: form.milliseconds() for name, form in forms.items()},
        "padded": samples["padded"].milliseconds(),
        "faster_dense": faster,
        "efficiency": dense.over(samples["moe"])._asdict(),
        "padded_floor": dense.over(samples["padded"])._asdict(),
    }


def measure_layer(
    settings: LayerSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures the table of layer efficiencies.

    Args:
        settings: the grid.
        progress: is told of each cell.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows.
    """
    rows = []
    for place, group in itertools.groupby(cells(settings), key=lambda cell: cell[:3]):
        gc.collect()  # the graphs of the cells before hold on to their weights
        stage = make_stage(settings, *place)
        for cell in group:
            progress.begin(cell.label(), cell.work)
            rows.append(measure_cell(settings, stage, cell, progress.advance))
            on_row(rows[-1])
    return rows


def capacity_cells(settings: LayerSettings) -> list[Cell]:
    """Returns the places of the capacity table: one choice per token, at inference."""
    if not settings.capacities:
        return []
    grid = itertools.product(settings.experts, [1], settings.tokens, [FORWARD])
    return [Cell(*place) for place in grid]


def measure_capacity(
    settings: LayerSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures how the time of a layer follows its capacity.

    Args:
        settings: the grid.
        progress: is told of each cell.
        on_row: called with each row as soon as it is measured.

    Returns:
        One row for each capacity factor of each cell.
    """
    rows = []
    for cell in capacity_cells(settings):
        progress.begin(f"capacity {cell.label()}", cell.work)
        gc.collect()
        stage = make_stage(settings, cell.num_experts, cell.num_selected, cell.tokens)
        for row in _capacity_rows(settings, stage, cell, progress.advance):
            rows.append(row)
            on_row(row)
    return rows


def _capacity_rows(
    settings: LayerSettings, stage: Stage, cell: Cell, on_round: Callable[[float], None]
) -> list[dict[str, Any]]:
    def with_capacity(factor: float) -> graphs.Call:
        def call(x: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            with layers.routing_metrics(settings.routing_metrics):
                return stage.moe(x, capacity_factor=factor), []

        return call

    found = {
        factor: graphs.forward(with_capacity(factor), stage.inputs)
        for factor in settings.capacities
    }
    samples = interleave(found, settings.rounds, settings.warmup, on_round=on_round)
    rows = []
    for factor in settings.capacities:
        routed = count_kept(stage.moe, stage.inputs, capacity_factor=factor)
        rows.append(
            {
                "experts": cell.num_experts,
                "selected": cell.num_selected,
                "tokens": cell.tokens.total,
                "capacity_factor": factor,
                "slots": routed.slots,
                "kept_rows": routed.kept,
                "kept_share": routed.kept / routed.choices,
                "moe": samples[factor].milliseconds(),
                "relative": samples[factor].over(samples[settings.capacities[0]])._asdict(),
            }
        )
    return rows
