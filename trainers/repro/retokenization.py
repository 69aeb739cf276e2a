"""Progressive re-tokenization in miniature: accuracy and time of trainings with coarse phases.

Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 4.2, figure 4 and table 6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe import analysis
from keras_vmoe.models.genotype import STRIDES
from keras_vmoe.tables import aligned
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.repro.claims import Claim, table_lines, to_dicts
from keras_vmoe.trainers.repro.paired import difference, estimate
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all

GIN_FILE = "repro/retokenization.gin"
COARSE = ((16, 5), (8, 2))  # stride and dilation of the phases before the model's own tokens
FULL = "none"
# Where the coarse phases end, as shares of a run.
SCHEDULES = {
    FULL: (),
    "sixths": (1 / 6, 2 / 6),
    "thirds": (1 / 3, 2 / 3),
    "late": (1 / 2, 5 / 6),
}
# How much less accuracy still counts as none lost.
MARGIN = 0.005


class Measured(NamedTuple):
    """Everything that was measured.

    Attributes:
        seeds: the seeds.
        steps: of a run.
        batch_size: images of a step.
        saved: schedule to the share of the training's FLOPs that it saves.
        macs: stride to multiply-accumulates of one image, forward.
        curves: schedule to (step, held-out accuracy) of each evaluation, for each seed.
        speeds: stride to images per second of training, the median of all runs: what else the
            machine did while one of them ran is no difference between schedules.
    """

    seeds: tuple[int, ...]
    steps: int
    batch_size: int
    saved: dict[str, float]
    macs: dict[int, int]
    curves: dict[str, list[list[tuple[int, float]]]]
    speeds: dict[int, float]

    def accuracy(self, schedule: str) -> list[float]:
        """The accuracies at the end of training, one a seed."""
        return [curve[-1][1] for curve in self.curves[schedule]]

    def seconds(self, schedule: str) -> float:
        """What the steps of a run take at the speed of each of its phases."""
        images = self.steps * self.batch_size
        return sum(
            share * images / self.speeds[stride] for stride, share in _lengths(schedule).items()
        )

    def time_saved(self, schedule: str) -> float:
        """The share of the time of full training that a schedule saves."""
        return 1 - self.seconds(schedule) / self.seconds(FULL)

    def flops(self, schedule: str, step: int) -> float:
        """FLOPs of training up to a step: two an accumulate, backward as two forward passes."""
        done, total = 0.0, 0.0
        for stride, share in _lengths(schedule).items():
            steps = min(max(step - done, 0), share * self.steps)
            total += 6.0 * self.macs[stride] * self.batch_size * steps
            done += share * self.steps
        return total


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return seeds * len(SCHEDULES)


def _lengths(schedule: str) -> dict[int, float]:
    """Stride of each phase to its share of the run."""
    ends = SCHEDULES[schedule]
    strides = [*(stride for stride, _ in COARSE[: len(ends)]), STRIDES[0]]
    shares = [end - begin for begin, end in zip((0.0, *ends), (*ends, 1.0), strict=True)]
    return dict(zip(strides, shares, strict=True))


def phases(schedule: str, epochs: float) -> tuple[tuple[float, int, int], ...]:
    """A schedule as `train.retokenization` has it.

    Args:
        schedule: one of `SCHEDULES`.
        epochs: length of the run.

    Example:
        >>> phases("thirds", 30)
        ((10.0, 16, 5), (20.0, 8, 2))
    """
    ends = SCHEDULES[schedule]
    return tuple(
        (epochs * end, *sizes) for end, sizes in zip(ends, COARSE[: len(ends)], strict=True)
    )


def trainings(
    out: Path, seeds: Sequence[int], epochs: float, steps: int, bindings: Sequence[str]
) -> list[Training]:
    """The runs, seed by seed.

    Args:
        out: the folder of their workdirs.
        seeds: the seeds.
        epochs: length of a run.
        steps: the same in steps.
        bindings: further bindings of all of them.
    """
    return [
        Training(
            f"coarse phases: {schedule}, seed {seed}",
            GIN_FILE,
            (
                *bindings,
                f"train.seed={seed}",
                f"train.retokenization={phases(schedule, epochs)}",
            ),
            out / f"{schedule}-{seed}",
            steps,
        )
        for seed in seeds
        for schedule in SCHEDULES
    ]


def speeds(workdirs: Iterable[Path]) -> dict[int, float]:
    """Images per second of training by stride: of each run the median, and of these the median.

    Compiling is no part of them.

    Args:
        workdirs: of the runs.
    """
    found = defaultdict(list)
    for workdir in workdirs:
        own = defaultdict(list)
        for row in MetricsLog(workdir / "metrics.jsonl").rows():
            if row["split"] == "train":
                own[int(row.get("token_stride", STRIDES[0]))].append(row["images_per_second"])
        for stride, values in own.items():
            found[stride].append(np.median(values))
    return {stride: float(np.median(values)) for stride, values in found.items()}


def measure(
    out: Path, seeds: Sequence[int], processes: int, bindings: Sequence[str] = ()
) -> Measured:
    """Trains with each schedule and seed.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds.
        processes: how many train side by side.
        bindings: further gin bindings of all runs.

    Raises:
        RuntimeError: if a run fails.
        ValueError: a model that is no `AsViT`, or a run too short for its phases.
    """
    config, steps, epochs = _plan(bindings)
    model = config.make_model(config.dataset())
    costs = {
        schedule: analysis.retokenization_cost(model, phases(schedule, epochs), epochs)
        for schedule in SCHEDULES
    }
    runs = trainings(out, seeds, epochs, steps, bindings)
    train_all(runs, processes)
    by_schedule = {name: runs[n :: len(SCHEDULES)] for n, name in enumerate(SCHEDULES)}
    return Measured(
        seeds=tuple(seeds),
        steps=steps,
        batch_size=config.batch_size,
        saved={schedule: cost.saved for schedule, cost in costs.items()},
        macs={phase.stride: phase.macs for cost in costs.values() for phase in cost.phases},
        curves={name: [run.evaluations() for run in of] for name, of in by_schedule.items()},
        speeds=speeds(run.workdir for run in runs),
    )


def _plan(bindings: Sequence[str]) -> tuple[TrainConfig, int, float]:
    """What all runs share: their config, steps and epochs."""
    config = configure(Training("", GIN_FILE, tuple(bindings), Path()))
    source = config.dataset()
    steps = length(config, source)
    return config, steps, steps / source.train.steps_per_epoch(config.batch_size)


def claims(found: Measured) -> list[Claim]:
    """Judges whether coarse phases cost accuracy.

    Args:
        found: what was measured.
    """
    full = found.accuracy(FULL)
    return [
        Claim(
            f"coarse phases of {schedule} lose no accuracy",
            f"{estimate(found.accuracy(schedule)).words()} against {estimate(full).words()}",
            difference(found.accuracy(schedule), full),
            MARGIN,
        )
        for schedule in SCHEDULES
        if schedule != FULL
    ]


def table(found: Measured) -> str:
    """The schedules and the claims as tables of text."""
    rows = [("coarse phases", "until", "FLOPs saved", "time saved", "accuracy")]
    rows += [
        (
            schedule,
            ", ".join(f"{end:.0%}" for end in ends) or "-",
            f"{found.saved[schedule]:.1%}",
            f"{found.time_saved(schedule):.1%}",
            estimate(found.accuracy(schedule)).words(),
        )
        for schedule, ends in SCHEDULES.items()
    ]
    return "\n".join(
        [
            f"seeds {', '.join(map(str, found.seeds))}, {found.steps} steps; accuracy in %, mean ± "
            "standard error; the gain is paired by seed, with its 95% interval",
            f"stride {COARSE[0][0]} at first, then {COARSE[1][0]}, then {STRIDES[0]}; time: of the "
            "steps, at the median speed of each stride over all runs",
            "",
            *aligned(rows, num_left=2),
            "",
            *table_lines(claims(found), width=44),
        ]
    )


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        **found._asdict(),
        "accuracy": {schedule: found.accuracy(schedule) for schedule in SCHEDULES},
        "seconds": {schedule: found.seconds(schedule) for schedule in SCHEDULES},
        "time_saved": {schedule: found.time_saved(schedule) for schedule in SCHEDULES},
        "claims": to_dicts(claims(found)),
    }
