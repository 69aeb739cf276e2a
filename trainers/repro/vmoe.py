"""The claims of the V-MoE paper in miniature, on Fashion-MNIST: trained, measured, judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_vmoe import analysis, data, evaluation, models
from keras_vmoe.trainers import sweeping
from keras_vmoe.trainers.repro.claims import Claim, table_lines, to_dicts
from keras_vmoe.trainers.repro.paired import difference, estimate
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all
from keras_vmoe.trainers.work_progress import WorkProgress

DENSE, SPARSE, VANILLA, PRIORITY = "dense", "sparse", "vanilla", "priority"
GIN_FILES = {kind: f"repro/vmoe_{kind}.gin" for kind in (DENSE, SPARSE, VANILLA, PRIORITY)}
CAPACITY_FACTORS = (0.15, 0.3, 0.5, 1.0)
SHOTS = (1, 5, 10, 25)
# What "costs no accuracy" and "keeps its accuracy" allow for.
MARGIN = 0.003
LEAST_DENSE_ACCURACY = 0.88


class Measured(NamedTuple):
    """Everything that was measured, one entry a seed.

    Attributes:
        seeds: the seeds.
        accuracy: kind of run to accuracies at the end of training.
        macs: kind of run to multiply-accumulates of one image in training, experts on as many
            choices as get a slot.
        sweep: (priority, capacity factor) to the rows of the sweep.
        few_shot: (kind, shots) to the mean accuracies over the draws.
        few_shot_data: the dataset of the shots.
    """

    seeds: tuple[int, ...]
    accuracy: dict[str, list[float]]
    macs: dict[str, int]
    sweep: dict[tuple[str, float], list[evaluation.SweepRow]]
    few_shot: dict[tuple[str, int], list[float]]
    few_shot_data: str

    def swept(self, priority: str, capacity_factor: float) -> list[float]:
        """The accuracies at one point of the sweep."""
        return [row.accuracy for row in self.sweep[priority, capacity_factor]]


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return seeds * len(GIN_FILES)


def trainings(out: Path, seeds: Sequence[int], bindings: Sequence[str]) -> list[Training]:
    """The runs, seed by seed.

    Args:
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings of all of them; those of arguments that a dense model lacks are
            left out there.
    """
    runs = []
    for seed in seeds:
        for kind, gin_file in GIN_FILES.items():
            foreign = "VMoE." if kind == DENSE else "ViT."
            own = [binding for binding in bindings if not binding.startswith(foreign)]
            words = (*own, f"train.seed={seed}")
            runs.append(Training(f"{kind}, seed {seed}", gin_file, words, out / f"{kind}-{seed}"))
    return runs


def measure(
    out: Path, seeds: Sequence[int], processes: int, bindings: Sequence[str] = ()
) -> Measured:
    """Trains the twins and measures them.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds; every kind of run is trained with each.
        processes: how many runs train side by side.
        bindings: further gin bindings of all runs.

    Raises:
        RuntimeError: if a run fails.
    """
    runs = trainings(out, seeds, bindings)
    config = configure(runs[0])  # data and length are the same for all
    source = config.dataset()
    runs = [run._replace(steps=length(config, source)) for run in runs]
    train_all(runs, processes)
    by_kind = {kind: runs[i :: len(GIN_FILES)] for i, kind in enumerate(GIN_FILES)}
    trained = {kind: [_model(run) for run in of_kind] for kind, of_kind in by_kind.items()}
    return Measured(
        seeds=tuple(seeds),
        accuracy={kind: [run.accuracy() for run in of_kind] for kind, of_kind in by_kind.items()},
        macs={kind: _activated_macs(of_kind[0]) for kind, of_kind in trained.items()},
        sweep=_sweep(trained, source, config),
        few_shot=_few_shot(trained, config),
        few_shot_data="digits",
    )


def _model(run: Training) -> keras.Model:
    return keras.models.load_model(run.workdir / "model.keras", compile=False).model


def _activated_macs(model: keras.Model) -> int:
    if not models.is_sparse(model):
        return analysis.profile(model).macs
    capacity = models.moe_layers(model)[0].router.capacity_factor
    # Slots beyond one a choice stay empty.
    return analysis.profile(models.with_routing(model, capacity_factor=min(capacity, 1.0))).macs


def _batches(split: data.Split, config: Any) -> Any:
    return data.make_dataset(
        split, batch_size=config.eval_batch_size, image_size=config.image_size, channels=1
    )


def _sweep(
    trained: dict[str, list[keras.Model]], source: data.ImageSource, config: Any
) -> dict[tuple[str, float], list[evaluation.SweepRow]]:
    """The models that were trained without priority, at every capacity, with and without it."""
    batches = _batches(source.eval, config)
    count = -(-source.eval.num_examples // config.eval_batch_size)
    settings = evaluation.routing_settings(
        trained[SPARSE][0], capacity_factors=CAPACITY_FACTORS, priorities=("vanilla", "bpr")
    )
    progress = WorkProgress(total_work=float(len(trained[SPARSE])))
    found: dict[tuple[str, float], list[evaluation.SweepRow]] = {}
    for model in trained[SPARSE]:
        progress.begin("accuracy against capacity", work=1.0)
        rows = sweeping.sweep(
            model, batches, count, settings, timing_rounds=3, advance=progress.advance
        )
        for setting, row in zip(settings, rows, strict=True):
            found.setdefault((setting.priority, setting.capacity_factor), []).append(row)
    progress.clear()
    return found


def _few_shot(
    trained: dict[str, list[keras.Model]], config: Any
) -> dict[tuple[str, int], list[float]]:
    """Digits, which no model has seen, from a few examples of each."""
    source = data.load("digits")
    found: dict[tuple[str, int], list[float]] = {}
    progress = WorkProgress(total_work=float(sum(map(len, trained.values()))))
    for kind, of_kind in trained.items():
        for model in of_kind:
            progress.begin("few-shot transfer", work=1.0)
            extractor = models.feature_extractor(model)
            features = [
                part
                for split in (source.train, source.eval)
                for part in evaluation.collect_features(extractor, _batches(split, config))
            ]
            result = evaluation.few_shot_accuracy(*features, shots=SHOTS)
            for shots, mean in result.mean.items():
                found.setdefault((kind, shots), []).append(mean)
    progress.clear()
    return found


def claims(found: Measured) -> list[Claim]:
    """Judges the paper's claims.

    Args:
        found: what was measured.
    """

    def mmacs(kind: str) -> str:
        return f"{found.macs[kind] / 1e6:.3g}M"

    dense, sparse, at_105, priority = (found.accuracy[kind] for kind in GIN_FILES)
    result = [
        Claim(
            f"sparse, C={capacity}, beats dense at equal activated FLOPs ({mmacs(kind)} against "
            f"{mmacs(DENSE)} MACs)",
            f"{estimate(accuracy).words()} against {estimate(dense).words()}",
            difference(accuracy, dense),
        )
        for capacity, kind, accuracy in (("1.05", VANILLA, at_105), ("2", SPARSE, sparse))
    ]
    for capacity in sorted(CAPACITY_FACTORS, reverse=True):
        vanilla, ranked = (found.swept(name, capacity) for name in ("vanilla", "bpr"))
        result += [
            Claim(
                f"at inference with C={capacity:g}, batch priority keeps the accuracy",
                f"{estimate(ranked).words()} against {estimate(sparse).words()}",
                difference(ranked, sparse),
                MARGIN,
            ),
            Claim(
                f"at inference with C={capacity:g}, batch priority beats vanilla",
                f"{estimate(ranked).words()} against {estimate(vanilla).words()}",
                difference(ranked, vanilla),
            ),
        ]
    for capacity, other, accuracy in (("1.05", VANILLA, at_105), ("2", SPARSE, sparse)):
        saved = 1 - found.macs[PRIORITY] / found.macs[other]
        result.append(
            Claim(
                f"training with batch priority, C=0.8, is as good as vanilla, C={capacity} "
                f"(-{saved:.0%} MACs)",
                f"{estimate(priority).words()} against {estimate(accuracy).words()}",
                difference(priority, accuracy),
                MARGIN,
            )
        )
    for shots in SHOTS:
        left, right = (found.few_shot[kind, shots] for kind in (SPARSE, DENSE))
        result.append(
            Claim(
                f"{shots}-shot features of {found.few_shot_data} are better when sparse",
                f"{estimate(left).words()} against {estimate(right).words()}",
                difference(left, right),
            )
        )
    return result


def table(found: Measured) -> str:
    """The claims as a table of text."""
    dense = estimate(found.accuracy[DENSE])
    enough = "reaches" if dense.mean >= LEAST_DENSE_ACCURACY else "DOES NOT REACH"
    lines = [
        f"seeds {', '.join(map(str, found.seeds))}; accuracy in %, mean ± standard error; the gain "
        "is paired by seed, with its 95% interval",
        f"the dense twin {enough} {LEAST_DENSE_ACCURACY:.0%}: {dense.words()}",
        "",
        *table_lines(claims(found)),
    ]
    return "\n".join(lines)


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "seeds": list(found.seeds),
        "accuracy": found.accuracy,
        "training_macs": found.macs,
        "sweep": [
            {**row._asdict(), "seed": seed}
            for rows in found.sweep.values()
            for seed, row in zip(found.seeds, rows, strict=True)
        ],
        "few_shot": [
            {"model": kind, "shots": shots, "data": found.few_shot_data, "accuracy": values}
            for (kind, shots), values in found.few_shot.items()
        ],
        "claims": to_dicts(claims(found)),
    }
