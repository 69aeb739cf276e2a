"""The claims of Mobile V-MoE in miniature, on 100 classes of small pictures.

Dense models of four sizes are trained; what the largest confuses, on a split that is neither
trained nor reported on, gives the super-classes. Then their sparse twins are trained, and for the
ablations others with more or fewer experts, MoE layers and choices, or routed otherwise.

Reference: Daxberger et al. 2023, arXiv 2309.04354, figures 1 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_vmoe import analysis, data, superclass
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.repro.claims import table_lines, to_dicts
from keras_vmoe.trainers.repro.mobile_claims import claims
from keras_vmoe.trainers.repro.mobile_runs import (
    EXPERTS,
    KINDS,
    NUM_EXPERTS,
    TEACHER,
    num_runs,
    seeds_of,
    trainings,
)
from keras_vmoe.trainers.repro.paired import estimate
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all

__all__ = ["Measured", "measure", "num_runs", "table", "to_dict"]

# Of the data: neither trained nor reported on.
SPLIT = "validation"


class Measured(NamedTuple):
    """Everything that was measured.

    Attributes:
        seeds: the seeds; kinds that are not paired were trained with the first alone.
        steps: of each run.
        mflops: kind of run to the MFLOPs of one image, as the paper counts them.
        accuracy: kind of run to held-out accuracies at the end, one a seed.
        router: kind of run with super-classes to the share of held-out images that the router
            sends to the expert of their super-class.
        superclasses: number of experts to the super-classes of the data.
    """

    seeds: tuple[int, ...]
    steps: int
    mflops: dict[str, float]
    accuracy: dict[str, list[float]]
    router: dict[str, list[float]]
    superclasses: dict[int, superclass.Superclasses]


def measure(
    out: Path, seeds: Sequence[int], processes: int, bindings: Sequence[str] = ()
) -> Measured:
    """Trains the dense models, finds the super-classes, trains the others.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds; the first alone where one is enough.
        processes: how many runs train side by side.
        bindings: further gin bindings of all runs.

    Raises:
        RuntimeError: if a run fails.
        ValueError: data without a split for the super-classes.
    """
    dense = trainings([name for name in KINDS if KINDS[name].is_dense], out, seeds, bindings)
    config = configure(dense[0])  # data and length are the same for all
    source = config.dataset()
    if SPLIT not in source.splits:
        raise ValueError(
            f"dataset.name={source.name!r} has no split {SPLIT!r}, which the super-classes are "
            "found on: use 'garment_digits' or 'digit_pairs'."
        )
    steps = length(config, source)
    train_all([run._replace(steps=steps) for run in dense], processes, "dense runs, of two stages")
    teacher = next(run for run in dense if run.workdir.name == f"{TEACHER}-{seeds[0]}")
    found = find_superclasses(out, teacher, source)
    sparse = trainings(
        [name for name in KINDS if not KINDS[name].is_dense],
        out,
        seeds,
        bindings,
        taught(found),
    )
    train_all([run._replace(steps=steps) for run in sparse], processes, "sparse runs")
    by_kind = {name: _of_kind([*dense, *sparse], name, seeds) for name in KINDS}
    return Measured(
        seeds=tuple(seeds),
        steps=steps,
        mflops={name: _mflops(runs[0], source) for name, runs in by_kind.items()},
        accuracy={name: [run.accuracy() for run in runs] for name, runs in by_kind.items()},
        router={
            name: [_router_accuracy(run) for run in runs]
            for name, runs in by_kind.items()
            if KINDS[name].num_experts
        },
        superclasses=found,
    )


def _of_kind(runs: Sequence[Training], name: str, seeds: Sequence[int]) -> list[Training]:
    by_folder = {run.workdir.name: run for run in runs}
    return [by_folder[f"{name}-{seed}"] for seed in seeds_of(KINDS[name], seeds)]


def find_superclasses(
    out: Path, teacher: Training, source: data.ImageSource
) -> dict[int, superclass.Superclasses]:
    """Finds super-classes for each number of experts, or reads those that were found before.

    Args:
        out: the folder of `superclasses_10.json` and the like.
        teacher: the run of the dense model whose confusion counts.
        source: of which the split for super-classes is taken.
    """
    paths = {number: out / f"superclasses_{number}.json" for number in EXPERTS}
    if not all(path.exists() for path in paths.values()):
        matrix = _confusion(teacher, source)
        origin = f"{teacher.name}, split {SPLIT!r} of {source.name}"
        for number, path in paths.items():
            superclass.find_superclasses(matrix, number, source.class_names, origin=origin).save(
                path
            )
    return {number: superclass.Superclasses.load(path) for number, path in paths.items()}


def _confusion(teacher: Training, source: data.ImageSource) -> np.ndarray:
    model = keras.models.load_model(teacher.workdir / "model.keras", compile=False).model
    config, split = configure(teacher), source.splits[SPLIT]
    batches = data.make_dataset(
        split, config.eval_batch_size, config.image_size, channels=source.image_shape[-1]
    )
    logits = model.predict(batches.map(lambda batch: batch["image"]), verbose=0)
    probabilities = np.asarray(keras.ops.softmax(logits))
    return superclass.confusion_matrix(split.labels, probabilities, source.num_classes)


def taught(found: Mapping[int, superclass.Superclasses]) -> dict[str, Sequence[int]]:
    """The super-class of each class, for each kind of run that is taught them.

    Args:
        found: number of experts to super-classes.
    """
    ids = {}
    for kind in KINDS.values():
        if kind.num_experts:
            of_kind = found[kind.num_experts]
            if kind.random:
                of_kind = superclass.random_superclasses(
                    len(of_kind.ids), kind.num_experts, like=of_kind
                )
            ids[kind.name] = of_kind.ids
    return ids


def _mflops(run: Training, source: data.ImageSource) -> float:
    return analysis.profile(configure(run).make_model(source)).flops_paper / 1e6


def _router_accuracy(run: Training) -> float:
    return MetricsLog(run.workdir / "metrics.jsonl").last("eval")["router_accuracy"]


def table(found: Measured) -> str:
    """The runs and the claims as tables of text."""
    inside = found.superclasses[NUM_EXPERTS]
    lines = [
        f"seeds {', '.join(map(str, found.seeds))}; {found.steps} steps; held-out accuracy in %, "
        "mean ± standard error; the gain is paired by seed, with its 95% interval",
        f"ablations are of {KINDS['random'].scale.name}; super-classes: the {NUM_EXPERTS} hold "
        f"{inside.inside_confusion:.0%} of the confusion, modularity {inside.modularity:.2f}, "
        f"{min(inside.sizes)} to {max(inside.sizes)} classes each",
        "",
        f"{'run':<30}{'MFLOPs/image':<15}{'seeds':<8}{'accuracy':<18}router accuracy",
    ]
    for name, kind in KINDS.items():
        accuracy = found.accuracy[name]
        router = estimate(found.router[name]).words() if name in found.router else "-"
        lines.append(
            f"{kind.words:<30}{found.mflops[name]:<15.3f}{len(accuracy):<8}"
            f"{estimate(accuracy).words():<18}{router}"
        )
    return "\n".join([*lines, "", *table_lines(claims(found))])


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "seeds": list(found.seeds),
        "steps": found.steps,
        "mflops": found.mflops,
        "accuracy": found.accuracy,
        "router_accuracy": found.router,
        "superclasses": {
            number: {
                "modularity": of_number.modularity,
                "inside_confusion": of_number.inside_confusion,
                "sizes": list(of_number.sizes),
                "names": list(of_number.names),
            }
            for number, of_number in found.superclasses.items()
        },
        "claims": to_dicts(claims(found)),
    }
