"""`keras-vmoe benchmark autoscale`: what a search spends on a topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from keras_vmoe.tables import aligned
from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import child, tables
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark.timing import SYSTEM_CLOCKS, Clocks, Samples
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

PUBLISHED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
_MEASURES = ("draws", "length", "ntk", "total")
_TEXT = """
Prints the seconds of one repeat of the measures of a topology: the draws of its weights and circle,
L^E, and the condition number of the NTK; on one thread, as the search measures. Nothing is kept
from one topology to the next, so that a new one costs the same. Half a minute.

  keras-vmoe benchmark autoscale
  keras-vmoe benchmark autoscale --random=5 --image_size=64 --json=autoscale.json
"""


@dataclasses.dataclass(frozen=True)
class AutoscaleSettings:
    """What is measured.

    Args:
        topology: the first one.
        random: how many random topologies of the paper's space come after it.
        image_size: pixels.
        width: of the first stage.
        ntk_batch: images of the NTK.
        rounds: repeats of each, in turns.
    """

    topology: str = PUBLISHED
    random: int = 2
    image_size: int = 224
    width: int = 32
    ntk_batch: int = 16
    rounds: int = 3


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    default = AutoscaleSettings()
    text = f"The first topology. Default: {default.topology}."
    flags.DEFINE_string("topology", default.topology, text, flag_values=values)
    for name, least, text in (
        ("random", 0, "Random topologies beside it."),
        ("image_size", 32, "Side of the images, pixels."),
        ("width", 1, "Of the first stage (C)."),
        ("ntk_batch", 2, "Images of the NTK."),
        ("rounds", 1, "Repeats of each."),
    ):
        value = getattr(default, name)
        flags.DEFINE_integer(
            name, value, f"{text} Default: {value}.", lower_bound=least, flag_values=values
        )
    report_of.define_flags(values)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark autoscale`.

    Args:
        argv: the words after `autoscale`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a topology or an image size that is refused.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark autoscale")
    if values.help:
        print(command_line.help_text(values, "benchmark autoscale [options]", _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"benchmark autoscale: unexpected {words[0]!r}; see keras-vmoe benchmark autoscale "
            "--help"
        )
    names = [field.name for field in dataclasses.fields(AutoscaleSettings)]
    settings = AutoscaleSettings(**{name: values[name].value for name in names})
    earlier = report_of.check("autoscale", values)
    child.use_threads(1)
    report = report_of.begin("autoscale", settings)
    report["rows"] = measure_autoscale(settings)
    print("\n".join(["", *table(report["rows"])]))
    return report_of.end(report, values.json, earlier)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as lines of text, medians over rounds."""
    columns = tables.AUTOSCALE
    head = [f"{column.title} {column.unit}".strip() for column in columns]
    return aligned([head, *([tables.cell(c, row) for c in columns] for row in rows)], num_left=1)


def measure_autoscale(
    settings: AutoscaleSettings, clocks: Clocks = SYSTEM_CLOCKS
) -> list[dict[str, Any]]:
    """Times the measures of each topology, in turns.

    Args:
        settings: what to measure.
        clocks: tests hand in their own.

    Returns:
        A row a topology, with the medians in milliseconds and the measures of the last round.
    """
    import numpy as np

    from keras_vmoe.autoscale import SearchSpace
    from keras_vmoe.models import Genotype

    rng = np.random.default_rng(0)
    space = SearchSpace()
    topologies = [Genotype.parse(settings.topology)._replace(width=settings.width)]
    for _ in range(settings.random):
        action = [int(rng.integers(len(axis))) for axis in space.axes.values()]
        topologies.append(space.genotype(action, settings.width))
    shape = (settings.ntk_batch, settings.image_size, settings.image_size, 3)
    images = rng.standard_normal(shape, "float32")
    progress = WorkProgress(total_work=float((settings.rounds + 1) * len(topologies)))
    taken: list[list[dict[str, tuple[float, float]]]] = [[] for _ in topologies]
    found: list[dict[str, float]] = [{} for _ in topologies]
    # The first round warms up.
    for number in range(settings.rounds + 1):
        for i, topology in enumerate(topologies):
            progress.begin(str(topology), work=1.0)
            times, found[i] = _time_one(topology, images, rng, clocks)
            taken[i] += [times] * (number > 0)
    progress.clear()
    rows = []
    for topology, rounds, measures in zip(topologies, taken, found, strict=True):
        samples = {
            name: Samples(*zip(*(times[name] for times in rounds), strict=True)).milliseconds()
            for name in _MEASURES
        }
        rows.append({"topology": str(topology), **samples, "measures": measures})
    return rows


def _time_one(
    topology: Any, images: Any, rng: Any, clocks: Clocks
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Wall and CPU seconds of each measure, and what it gave."""
    from keras_vmoe import autoscale

    times: dict[str, tuple[float, float]] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        wall, cpu = clocks.wall(), clocks.cpu()
        result = function()
        times[name] = (clocks.wall() - wall, clocks.cpu() - cpu)
        return result

    weights, circle = timed(
        "draws",
        lambda: (
            autoscale.draw_weights(topology, rng),
            autoscale.draw_circle(rng, images.shape[1]),
        ),
    )
    length = timed("length", lambda: autoscale.manifold_length(topology, weights, circle))
    number = timed("ntk", lambda: autoscale.ntk_condition_number(images, topology, weights))
    times["total"] = tuple(sum(parts) for parts in zip(*times.values(), strict=True))
    return times, {"length": length, "condition_number": number}
