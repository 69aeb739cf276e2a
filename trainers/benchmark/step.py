"""Where the CPU time of a model's step goes: TensorFlow's profiler on one thread, part by part."""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from keras_vmoe.trainers.benchmark import model
from keras_vmoe.trainers.benchmark.settings import ModelSettings
from keras_vmoe.trainers.benchmark.timing import SYSTEM_CLOCKS, Candidate, Clocks
from keras_vmoe.trainers.work_progress import WorkProgress

OTHER = "other"
# By the scopes of an operation's name, outermost or not; the first that fits decides.
_SCOPES = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r"experts(_gradient)?", "experts"),
        (r"router", "router"),
        (r".*_moe", "dispatch and combine"),
        (r".*norm", "layer norms"),
        (r"attention", "attention"),
        (r"mlp", "dense MLPs"),
        (r"adam_w", "optimizer"),
        (r"embedding|position_embedding|class_token", "embedding"),
        (r"pre_logits|head", "head"),
    )
)
_OPERATIONS = {"L2Loss": "gradient norm"}
# What only runs other operations, whose time it would count again.
_CALLS = {
    "PartitionedCall",
    "StatefulPartitionedCall",
    "If",
    "StatelessIf",
    "While",
    "StatelessWhile",
}
_EVENT = re.compile(r"(?P<name>[\w./-]+):(?P<operation>\w+)")


class Place(NamedTuple):
    """Where an operation belongs.

    Attributes:
        part: of the model, or of the step.
        direction: `"forward"` or `"backward"`; empty outside of the model.
    """

    part: str
    direction: str


def place_of(name: str, operation: str) -> Place:
    """Returns where an operation of a graph belongs, by the layers in its name.

    Args:
        name: of the operation, scopes and all.
        operation: its type.

    Example:
        >>> tuple(place_of("gradient_tape/vmoe_1/block_1_moe_1/experts_1/MatMul_3", "MatMul"))
        ('experts', 'backward')
        >>> tuple(place_of("L2Loss_7", "L2Loss"))
        ('gradient norm', '')
    """
    if operation in _OPERATIONS:
        return Place(_OPERATIONS[operation], "")
    scopes = [re.sub(r"_\d+$", "", scope) for scope in name.split("/")[:-1]]
    for pattern, part in _SCOPES:
        if any(pattern.fullmatch(scope) for scope in scopes):
            if part == "optimizer":
                return Place(part, "")
            backward = {"gradient_tape", "experts_gradient"} & set(scopes)
            return Place(part, "backward" if backward else "forward")
    return Place(OTHER, "")


def operations(trace: Path) -> Iterator[tuple[str, str, float]]:
    """Reads a trace: name, type and milliseconds of each operation that ran.

    Args:
        trace: an `.xplane.pb` of TensorFlow's profiler.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                found = _EVENT.fullmatch(plane.event_metadata[event.metadata_id].name)
                if found and found["operation"] not in _CALLS:
                    yield found["name"], found["operation"], event.duration_ps / 1e9


def summed(ran: Iterable[tuple[str, str, float]], steps: int) -> list[dict[str, Any]]:
    """Sums operations up by part, the largest first.

    Args:
        ran: as `operations` gives it.
        steps: how many were traced.

    Returns:
        For each part and direction its CPU-milliseconds a step, its share of all, and the type of
        operation that takes most of it.
    """
    times: defaultdict[Place, Counter[str]] = defaultdict(Counter)
    for name, operation, milliseconds in ran:
        kind = operation.removeprefix("_Mkl").removeprefix("Native")
        times[place_of(name, operation)][kind] += milliseconds / steps
    total = sum(counter.total() for counter in times.values())
    if not times:
        raise RuntimeError(
            "TensorFlow's profiler recorded no operation: another profiler may be running in this "
            "process, or this TensorFlow names what it records otherwise"
        )
    rows = [
        {
            **place._asdict(),
            "cpu_ms": counter.total(),
            "share": counter.total() / total,
            "mostly": counter.most_common(1)[0][0],
        }
        for place, counter in times.items()
    ]
    return sorted(rows, key=lambda row: -row["cpu_ms"])


def traced(step: Candidate, steps: int) -> list[tuple[str, str, float]]:
    """Runs a step under the profiler, and returns its operations.

    Args:
        step: what to run; it has run before.
        steps: how often.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        try:
            for _ in range(steps):
                step().numpy()
        finally:
            tf.profiler.experimental.stop()
        (trace,) = Path(folder).rglob("*.xplane.pb")
        return list(operations(trace))


def measure_step(
    settings: ModelSettings, mode: str, progress: WorkProgress, clocks: Clocks = SYSTEM_CLOCKS
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures where the time of a step goes; TensorFlow must be on one thread.

    Args:
        settings: its one row, and how many steps are traced (`rounds`).
        mode: `"forward"` or `"train"`.
        progress: is told of the work.
        clocks: tests hand in their own.

    Returns:
        The rows of the table; the CPU-milliseconds of a step without the profiler, and the sum of
        its operations.
    """
    (row,) = settings.rows
    progress.begin(f"{row.name} {mode}", 1.0)
    step = model.make_step(model.build_model(row, settings), mode, settings)
    for _ in range(settings.warmup):
        step().numpy()
    start = clocks.cpu()
    for done in range(settings.rounds):
        step().numpy()
        progress.advance((done + 1) / (2 * settings.rounds))
    cpu_ms = (clocks.cpu() - start) / settings.rounds * 1e3
    rows = [
        {"row": row.name, "pass": mode, **found}
        for found in summed(traced(step, settings.rounds), settings.rounds)
    ]
    progress.advance(1.0)
    return rows, {"cpu_ms": cpu_ms, "operations_ms": sum(found["cpu_ms"] for found in rows)}
