"""As-ViT in miniature: do measures of untrained networks tell which will be accurate?

Random topologies are trained, and each is measured as it is before training. A short search by the
two measures of the paper gives one more topology, which is trained beside them.

Reference: Chen et al. 2022, arXiv 2202.11921, figure 2 and table 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe import autoscale, data
from keras_vmoe.models import Genotype
from keras_vmoe.tables import aligned
from keras_vmoe.trainers.autoscale import options, state
from keras_vmoe.trainers.autoscale.workers import Workers
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.repro.paired import estimate
from keras_vmoe.trainers.repro.ranks import Agreement, agreement
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all
from keras_vmoe.trainers.work_progress import WorkProgress

GIN_FILE = "repro/asvit.gin"
NUM_TOPOLOGIES, NUM_STEPS, NUM_IMAGES = 16, 100, 16
WIDTH, REPEATS = 16, 5
# What the paper expects of each measure: 1 where more is better.
MEASURES = {
    "manifold length": 1,
    "curvature": 1,
    "Gauss map length": 1,
    "NTK condition number": -1,
}


class Measured(NamedTuple):
    """Everything that was measured.

    Attributes:
        seeds: the seeds of training.
        topologies: the random ones, and the searched one last.
        accuracy: of each, held-out accuracies at the end, one a seed.
        measures: name of a measure to its mean over draws, one a topology; NaN where a kernel is
            singular.
        steps: of the search.
    """

    seeds: tuple[int, ...]
    topologies: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    measures: dict[str, list[float]]
    steps: int

    @property
    def means(self) -> np.ndarray:
        """Mean accuracy of each topology."""
        return np.array([estimate(values).mean for values in self.accuracy])


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return seeds * (NUM_TOPOLOGIES + 1)


def random_topologies(count: int, seed: int = 0) -> list[Genotype]:
    """Different topologies of the paper's space, with one block in each stage.

    Args:
        count: how many.
        seed: which.
    """
    space, rng = autoscale.SearchSpace(), np.random.default_rng(seed)
    found: dict[Genotype, None] = {}
    while len(found) < count:
        action = [int(rng.integers(len(axis))) for axis in space.axes.values()]
        found[space.genotype(action, WIDTH)] = None
    return list(found)


def trainings(
    topologies: Sequence[str], out: Path, seeds: Sequence[int], bindings: Sequence[str]
) -> list[Training]:
    """The runs, seed by seed.

    Args:
        topologies: the genotypes.
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings of all of them.
    """
    runs = []
    for seed in seeds:
        for number, topology in enumerate(topologies):
            # The last is the searched one, which another search may find to be another.
            name = f"random_{number}" if number < len(topologies) - 1 else "searched"
            words = (*bindings, f"AsViT.genotype={topology!r}", f"train.seed={seed}")
            workdir = out / f"{name}-{seed}"
            runs.append(Training(f"{name} {topology}, seed {seed}", GIN_FILE, words, workdir))
    return runs


def measure(
    out: Path, seeds: Sequence[int], processes: int, bindings: Sequence[str] = ()
) -> Measured:
    """Searches a topology, trains it beside random ones, and measures them all.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds of training.
        processes: how many train or measure side by side.
        bindings: further gin bindings of all runs.

    Raises:
        RuntimeError: if a run fails.
        ValueError: an image size that is no multiple of 32, data with too few images, or a search
            of other images or settings in the folder.
    """
    random = [str(topology) for topology in random_topologies(NUM_TOPOLOGIES)]
    config = configure(trainings(random, out, seeds, bindings)[0])
    source = config.dataset()
    images = _images(source, config)
    searched = _search(out, config.image_size, images, processes)
    topologies = [*random, searched]
    runs = trainings(topologies, out, seeds, bindings)
    train_all([run._replace(steps=length(config, source)) for run in runs], processes)
    count = len(topologies)
    return Measured(
        seeds=tuple(seeds),
        topologies=tuple(topologies),
        accuracy=tuple(
            tuple(run.accuracy() for run in runs[number::count]) for number in range(count)
        ),
        measures=_measures(topologies, config.image_size, images),
        steps=NUM_STEPS,
    )


def _images(source: data.ImageSource, config: TrainConfig) -> np.ndarray:
    batches = data.make_dataset(source.train, NUM_IMAGES, config.image_size, channels=3)
    return next(iter(batches))["image"].numpy()


def _search(out: Path, image_size: int, images: np.ndarray, processes: int) -> str:
    """The topology that a short search finds, which goes on where it was stopped."""
    search = autoscale.Search(autoscale.SearchSpace(), width=WIDTH)
    protocol = autoscale.Protocol(image_size=image_size, repeats=REPEATS)
    path = out / "search.json"
    settings = {
        **dataclasses.asdict(protocol),
        "width": WIDTH,
        "images_digest": options.digest(images),
    }
    found = state.read(path, settings)
    if found:
        state.resume(search.resume, found, path)
    left = NUM_STEPS - len(search.trace)
    if left > 0:
        progress = WorkProgress(total_work=float(left))
        with Workers(protocol, images, min(processes, REPEATS)) as workers:
            for _ in range(left):
                progress.begin(f"search, step {len(search.trace)}", work=1.0)
                search.advance(lambda genotype, step: workers.measure([genotype], step)[0])
                state.write(path, {"settings": settings, **search.state()})
        progress.clear()
    return str(search.derived)


def _measures(
    topologies: Sequence[str], image_size: int, images: np.ndarray
) -> dict[str, list[float]]:
    """The mean of each measure over draws of weights and circles, the same for all topologies."""
    progress = WorkProgress(total_work=float(len(topologies)))
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for topology in topologies:
        progress.begin(f"measures of {topology}", work=1.0)
        draws = []
        for repeat in range(REPEATS):
            rng = np.random.default_rng([1, repeat])
            circle = autoscale.draw_circle(rng, image_size)
            weights = autoscale.draw_weights(Genotype.parse(topology), rng)
            curve = autoscale.curve_measures(topology, weights, circle)
            draws.append([*curve, autoscale.ntk_condition_number(images, topology, weights)])
        for name, values in zip(MEASURES, zip(*draws, strict=True), strict=True):
            found[name].append(float(np.mean(values)))
    progress.clear()
    return found


def agreements(found: Measured) -> dict[str, Agreement]:
    """How well each measure orders the random topologies by accuracy, better ones first.

    Args:
        found: what was measured. Topologies without a finite measure are left out of it.
    """
    result = {}
    for name, sign in MEASURES.items():
        values = sign * np.array(found.measures[name][:-1])
        finite = np.isfinite(values)
        result[name] = agreement(values[finite], found.means[:-1][finite])
    return result


def table(found: Measured) -> str:
    """The agreements, and where the searched topology stands, as text."""
    rows = [("measure, better first", "Kendall's tau", "95% interval", "verdict")]
    random = found.means[:-1]
    for name, one in agreements(found).items():
        words = f"{'largest' if MEASURES[name] > 0 else 'smallest'} {name}"
        if one.count < len(random):
            words += f", of {one.count} topologies"
        shown = ("-", "-")
        if one.is_measured:
            shown = (f"{one.tau:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}")
        rows.append((words, *shown, one.verdict))
    better = int((random < found.means[-1]).sum())
    searched = estimate(found.accuracy[-1])
    lines = [
        f"{len(random)} random topologies, seeds {', '.join(map(str, found.seeds))}; held-out "
        f"accuracy {100 * random.min():.2f} to {100 * random.max():.2f}%, mean "
        f"{100 * random.mean():.2f}%",
        f"the topology of a search of {found.steps} steps, {found.topologies[-1]}: "
        f"{searched.words()}%, above {better} of {len(random)}",
        "",
        *aligned(rows, num_left=1),
    ]
    return "\n".join(lines)


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    shown: Mapping[str, Agreement] = agreements(found)
    return {
        "seeds": list(found.seeds),
        "topologies": [
            {
                "genotype": topology,
                "searched": number == len(found.topologies) - 1,
                "accuracy": list(found.accuracy[number]),
                "measures": {
                    name: values[number] if np.isfinite(values[number]) else None
                    for name, values in found.measures.items()
                },
            }
            for number, topology in enumerate(found.topologies)
        ],
        "kendall_tau": {
            name: {
                **{key: x if np.isfinite(x) else None for key, x in one._asdict().items()},
                "verdict": one.verdict,
            }
            for name, one in shown.items()
        },
        "search_steps": found.steps,
    }
