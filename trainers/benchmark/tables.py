"""Aligned text tables with units in their headers, and the words below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras_vmoe.trainers.benchmark.scaling_grid import ScalingSettings
from keras_vmoe.trainers.benchmark.settings import (
    DISPATCHES,
    DeviceSettings,
    InferenceSettings,
    InputSettings,
    LayerSettings,
    ModelSettings,
)


class Column(NamedTuple):
    """A column: where its values are, what stands above them, and how they are written.

    Attributes:
        path: keys into a row, joined by dots.
        title: first line of the header.
        unit: second line of the header.
        form: format of a value.
        width: at least; headers may widen it.
        scale: multiplies a number before it is written.
    """

    path: str
    title: str
    unit: str = ""
    form: str = ""
    width: int = 0
    scale: float = 1


LAYER = (
    Column("pass", "pass", form="<", width=16),
    Column("experts", "E", width=4),
    Column("selected", "k"),
    Column("tokens", "n", "tokens", ",", 7),
    Column("kept_rows", "kept", "rows", ",", 7),
    Column("kept_share", "kept", "%", ".1f", 5, 100),
    Column("moe.wall_ms", "MoE", "ms", ".1f", 7),
    Column("moe.cpu_ms", "MoE", "CPU-ms", ".1f", 7),
    Column("dense.wall_ms", "dense", "ms", ".1f", 7),
    Column("dense.cpu_ms", "dense", "CPU-ms", ".1f", 7),
    Column("faster_dense", "dense", "form", ">", 8),
    Column("efficiency.wall", "efficiency", "wall", ".2f"),
    Column("efficiency.cpu", "efficiency", "CPU", ".2f"),
    Column("padded_floor.wall", "padded", "wall", ".2f"),
    Column("padded_floor.cpu", "padded", "CPU", ".2f"),
)

CAPACITY = (
    Column("experts", "E", width=4),
    Column("selected", "k"),
    Column("tokens", "n", "tokens", ",", 7),
    Column("capacity_factor", "C", form="g", width=5),
    Column("slots", "slots", "E, group"),
    Column("kept_share", "kept", "%", ".1f", 5, 100),
    Column("moe.wall_ms", "MoE", "ms", ".1f", 7),
    Column("moe.cpu_ms", "MoE", "CPU-ms", ".1f", 7),
    Column("relative.wall", "relative", "wall", ".2f"),
    Column("relative.cpu", "relative", "CPU", ".2f"),
)

DISPATCH = (
    Column("pass", "pass", form="<", width=16),
    Column("experts", "E", width=4),
    Column("selected", "k"),
    Column("tokens", "n", "tokens", ",", 7),
    Column("group_size", "s", "tokens", ",", 6),
    Column("rows_per_expert", "rows", "an expert", ",.0f"),
    *(
        Column(f"{name}.{clock}_ms", name, unit, ".1f", 8)
        for name in DISPATCHES
        if name != "auto"
        for clock, unit in (("wall", "ms"), ("cpu", "CPU-ms"))
    ),
    Column("chosen", "chosen", form="<", width=8),
    Column("fastest", "fastest", form="<", width=8),
    Column("chosen_over_fastest.wall", "ratio", "wall", ".2f"),
    Column("chosen_over_fastest.cpu", "ratio", "CPU", ".2f"),
)

MODEL = (
    Column("row", "model", form="<", width=11),
    Column("pass", "pass", form="<", width=8),
    Column("params", "params", "M", ",.1f", 7, 1e-6),
    Column("kept_share", "kept", "%", ".1f", 5, 100),
    Column("model.wall_ms", "time", "ms", ".1f", 8),
    Column("model.cpu_ms", "time", "CPU-ms", ".1f", 8),
    Column("plain.wall_ms", "plain", "ms", ".1f", 8),
    Column("plain.cpu_ms", "plain", "CPU-ms", ".1f", 8),
    Column("ratio.wall", "ratio", "wall", ".2f"),
    Column("ratio.cpu", "ratio", "CPU", ".2f"),
    Column("peak_memory_bytes", "peak", "GB", ".2f", 5, 1e-9),
)

STEP = (
    Column("row", "model", form="<", width=11),
    Column("pass", "pass", form="<", width=8),
    Column("part", "part", form="<", width=20),
    Column("direction", "direction", form="<", width=9),
    Column("cpu_ms", "time", "CPU-ms", ".1f", 8),
    Column("share", "share", "%", ".1f", 5, 100),
    Column("mostly", "mostly", form="<", width=18),
)

DEVICE = (
    Column("model", "model", form="<", width=18),
    Column("precision", "weights", form="<", width=8),
    Column("form", "experts", form="<", width=8),
    Column("threads", "threads"),
    Column("wall.p50", "p50", "ms", ".2f", 6),
    Column("wall.p90", "p90", "ms", ".2f", 6),
    Column("wall.p99", "p99", "ms", ".2f", 6),
    Column("cpu_ms", "time", "CPU-ms", ".2f", 6),
    Column("ratio.wall", "ratio", "wall", ".3f"),
    Column("ratio.cpu", "ratio", "CPU", ".3f"),
    Column("file_bytes", "file", "MB", ".1f", 6, 1e-6),
    Column("memory_bytes", "memory", "MB", ".1f", 6, 1e-6),
    Column("flops_paper", "MFLOPs", "paper's", ".0f", 6, 1e-6),
)

INFERENCE = (
    Column("threads", "threads"),
    Column("batch", "batch", "images"),
    Column("capacity_factor", "C", form="g", width=5),
    Column("slots", "slots", "E, group"),
    Column("kept_share", "kept", "%", ".1f", 5, 100),
    Column("images_per_second", "speed", "images/s", ",.1f", 8),
    Column("cpu_ms_per_image", "time", "CPU-ms/image", ".2f"),
    Column("moe.wall_ms", "MoE", "ms", ".2f", 8),
    Column("moe.cpu_ms", "MoE", "CPU-ms", ".2f", 8),
    Column("relative.wall", "relative", "wall", ".2f"),
    Column("relative.cpu", "relative", "CPU", ".2f"),
    Column("dense_images_per_second", "dense", "images/s", ",.1f", 8),
    Column("ratio.wall", "ratio", "wall", ".2f"),
    Column("ratio.cpu", "ratio", "CPU", ".2f"),
)

SCALING = (
    Column("subject", "of", form="<", width=5),
    Column("pass", "pass", form="<", width=16),
    Column("axis", "varied", form="<", width=16),
    Column("value", "value", form="g"),
    Column("tokens", "n", "tokens", ",", 6),
    Column("kept_share", "kept", "%", ".1f", 5, 100),
    Column("time.wall_ms", "time", "ms", ".1f", 8),
    Column("time.cpu_ms", "time", "CPU-ms", ".1f", 8),
    Column("dense.wall_ms", "dense", "ms", ".1f", 7),
    Column("dense.cpu_ms", "dense", "CPU-ms", ".1f", 7),
    Column("relative.wall", "relative", "wall", ".2f"),
    Column("relative.cpu", "relative", "CPU", ".2f"),
    Column("predicted", "predicted", "FLOPs", ".2f"),
    Column("over_predicted.wall", "over that", "wall", ".2f"),
    Column("over_predicted.cpu", "over that", "CPU", ".2f"),
)

INPUT = (
    Column("stage", "up to", form="<", width=16),
    Column("images_per_second", "speed", "images/s", ",.0f", 9),
    Column("wall_ms", "time", "ms/image", ".3f", 8),
    Column("cpu_ms", "time", "CPU-ms/image", ".3f"),
    Column("added_cpu_ms", "this stage", "CPU-ms/image", ".3f"),
)

AUTOSCALE = (
    Column("topology", "topology", form="<"),
    *(
        Column(f"{name}.{clock}_ms", name, unit, ".2f", scale=1e-3)
        for name in ("draws", "length", "ntk", "total")
        for clock, unit in (("cpu", "CPU-s"), ("wall", "s"))
    ),
)


def header(columns: Sequence[Column]) -> str:
    """Returns the header of a table: titles, units, a rule."""
    titles = _join(columns, [column.title for column in columns])
    units = _join(columns, [column.unit for column in columns])
    return f"{titles}\n{units}\n{'-' * len(titles)}"


def line(columns: Sequence[Column], row: Mapping[str, Any]) -> str:
    """Returns a row of a table; what was not measured is a dash.

    Args:
        columns: the table's columns.
        row: the row, of mappings in mappings.

    Example:
        >>> line([Column("a.ms", "a", "ms", ".1f", 6), Column("b", "b")], {"a": {"ms": 2.25}})
        '   2.2  -'
    """
    return _join(columns, [cell(column, row) for column in columns])


def value(column: Column, row: Mapping[str, Any]) -> Any:
    """Returns what a row holds for a column, as it was measured; `None` where it was not."""
    found: Any = row
    for key in column.path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def cell(column: Column, row: Mapping[str, Any]) -> str:
    """Returns what is written for a column of a row, not filled up to the column's width."""
    found = value(column, row)
    if found is None:
        return "-"
    return format(found * column.scale if column.scale != 1 else found, column.form)


def _join(columns: Sequence[Column], cells: Sequence[str]) -> str:
    parts = []
    for column, text in zip(columns, cells, strict=True):
        width = max(column.width, len(column.title), len(column.unit))
        parts.append(f"{text:<{width}}" if column.form == "<" else f"{text:>{width}}")
    return "  ".join(parts)


def layer_note(settings: LayerSettings) -> str:
    """Returns the two lines below the table of layer efficiencies."""
    metrics = "with" if settings.routing_metrics else "without"
    return (
        "efficiency = dense / MoE; dense: an MLP (the faster of one-shot and row-chunked) on the "
        "kept (token, choice) rows; padded = dense / the experts alone on [E, slots] buffers.\n"
        f"Medians of {settings.rounds} interleaved rounds. forward: inference; forward+backward: "
        "with router noise, auxiliary losses, and gradients of inputs and weights; both "
        f"{metrics} routing metrics. d={settings.width}, h={settings.hidden_dim}, "
        f"C={settings.capacity_factor:g}, batch priority, float32."
    )


def dispatch_note(settings: LayerSettings) -> str:
    """Returns the two lines below the table of dispatches."""
    metrics = "with" if settings.routing_metrics else "without"
    return (
        "ratio = chosen / fastest, of the same rounds; chosen: what dispatch='auto' takes here. "
        "rows: (token, choice) pairs with a slot.\n"
        f"Medians of {settings.rounds} interleaved rounds, {metrics} routing metrics; "
        f"d={settings.width}, h={settings.hidden_dim}, C={settings.capacity_factor:g}, "
        f"groups of {settings.images_per_group} images, batch priority, float32."
    )


def capacity_note(settings: LayerSettings) -> str:
    """Returns the two lines below the table of capacities."""
    return (
        f"relative = time / time at C={settings.capacities[0]:g}: what a trained layer saves at "
        "inference when its capacity is cut.\n"
        "kept: share of the (token, choice) pairs that found a slot; slots are those of an expert "
        "in a group, rounded up to a multiple of 4. Batch priority."
    )


def model_note(settings: ModelSettings) -> str:
    """Returns the two lines below the table of models."""
    metrics = "with" if settings.routing_metrics else "without"
    return (
        "ratio = time / time of a plain Keras ViT of the same shape in the same rounds; train: "
        "forward, backward and Adam with clipping by the global norm, in one graph.\n"
        f"Medians of {settings.rounds} interleaved rounds, {settings.batch_size} images of "
        f"{settings.image_size} px, float32, {metrics} routing metrics; kept: at inference; peak: "
        "of a process of its own (--memory)."
    )


def plain_line(plain: Mapping[str, Any]) -> str:
    """Returns what is known of the plain ViT itself.

    Args:
        plain: its `params` and its `peak_memory_bytes` by pass, `None` where not measured.
    """
    peaks = [
        f"{value / 1e9:.2f} GB {mode}"
        for mode, value in plain["peak_memory_bytes"].items()
        if value is not None
    ]
    memory = f"; peak {', '.join(peaks)}" if peaks else ""
    return f"plain ViT: {plain['params'] / 1e6:,.1f} M parameters{memory}."


def step_note(settings: ModelSettings, steps: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the lines below the table of a step's parts.

    Args:
        settings: the table's.
        steps: by pass, `cpu_ms` of a step and `operations_ms`, the sum of the rows.
    """
    sums = [
        f"{mode} {found['operations_ms']:,.1f} beside {found['cpu_ms']:,.1f} CPU-ms"
        for mode, found in steps.items()
    ]
    return (
        "Time of TensorFlow's operations by the layers in their names, on one thread; mostly: the "
        "type that takes most of a part.\n"
        f"Means of {settings.rounds} steps, {settings.batch_size} images of {settings.image_size} "
        "px, float32.\n"
        f"Sum of the rows beside a step without the profiler: {', '.join(sums)}; far apart, where "
        "other work interrupts."
    )


def input_note(settings: InputSettings) -> str:
    """Returns the two lines below the table of the input pipeline."""
    return (
        "Each row: the training pipeline up to that stage, as fast as batches can be taken; the "
        "last is the whole of it.\n"
        "this stage: what a row adds to the CPU time of the row above. Medians of "
        f"{settings.rounds} interleaved rounds of {settings.seconds:g} s."
    )


def inference_note(settings: InferenceSettings) -> str:
    """Returns the lines below the table of inference."""
    return (
        "MoE: the MoE layers alone; relative = their time / their time at C=1. ratio = time of the "
        "model / time of its dense twin, the same ViT without experts.\n"
        f"Medians of {settings.rounds} interleaved rounds, {settings.model} with "
        f"{settings.experts} experts, images of {settings.image_size} px, float32, batch priority, "
        "no routing metrics; each number of threads in a process of its own.\n"
        "slots: of an expert in a group, rounded as the router rounds; kept: share of the (token, "
        "choice) pairs that found one."
    )


def scaling_note(settings: ScalingSettings) -> str:
    """Returns the lines below the table of scaling."""
    return (
        "relative = time / time of a dense MLP, or of the model's dense twin, at the base; "
        "predicted = FLOPs / its FLOPs: experts on kept choices, router, weighted sum.\n"
        "over that = relative / predicted: what the way to the experts and back costs beside "
        f"FLOPs. Medians of {settings.rounds} interleaved rounds.\n"
        f"{scaling_base(settings)}, d={settings.width}, h={settings.hidden_dim}, batch priority, "
        f"float32; model: {settings.num_layers} blocks, every other one sparse."
    )


def scaling_base(settings: ScalingSettings) -> str:
    """Returns the base of the grid of scaling in words."""
    base = settings.base
    return (
        f"base: E={base.experts}, k={base.selected}, C={base.capacity_factor:g}, {base.batch} "
        f"images of {base.image_size} px, {base.images_per_group} a group, patches of "
        f"{settings.patch_size} px"
    )


def device_note(settings: DeviceSettings) -> str:
    """Returns the lines below the table of files for small devices."""
    return (
        "LiteRT interpreter with XNNPACK, one image at a time. ratio = time / time of the dense "
        "twin (the row of experts = dense) in the same rounds.\n"
        f"Medians and percentiles of {settings.rounds} interleaved rounds over {settings.images} "
        "random images; memory: what loading and running the file adds to a process of its own.\n"
        "experts: branches = behind conditions, kernels = the chosen ones' gathered, einsum = all "
        "experts for every image; MFLOPs as the paper counts them."
    )
