"""The claims of the sparse upcycling paper in miniature: trained, measured, judged.

A dense model is trained. Then three ways to spend the same FLOPs are compared: it goes on as it is,
it goes on as a sparse model whose experts are copies of its MLPs, or a sparse model begins anew.

Reference: Komatsuzaki et al. 2022, arXiv 2212.05055.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_vmoe import analysis
from keras_vmoe.trainers.repro.claims import Claim, table_lines, to_dicts
from keras_vmoe.trainers.repro.paired import difference, estimate
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all

BASE, DENSE, UPCYCLED, SCRATCH = "base", "dense", "upcycled", "scratch"
GIN_FILES = {
    BASE: "runs/upcycling/fashion_mnist_scratch_dense.gin",
    DENSE: "runs/upcycling/fashion_mnist_dense.gin",
    UPCYCLED: "runs/upcycling/fashion_mnist.gin",
    SCRATCH: "runs/upcycling/fashion_mnist_scratch.gin",
}
CONTINUED = (DENSE, UPCYCLED, SCRATCH)
NAMES = {
    BASE: "dense model to start from",
    DENSE: "dense, going on",
    UPCYCLED: "upcycled",
    SCRATCH: "sparse from scratch",
}
# The paper's abstract: about half of what the dense model cost.
EXTRA = 0.5
_EVALUATIONS = 6
# The continued runs end with a third of their steps on a line to a learning rate of 0.
_COOLDOWN = 3
# The seeds of the continued runs lie above those of the dense models: the images that come again
# are not shifted and ordered as they were.
_SEEDS_APART = 1000


class Lengths(NamedTuple):
    """What the runs cost.

    Attributes:
        macs: kind of run to multiply-accumulates of one image, forward.
        steps: kind of run to steps.
        batch_size: images of a step.
    """

    macs: dict[str, int]
    steps: dict[str, int]
    batch_size: int

    def flops(self, kind: str, steps: int | None = None) -> int:
        """FLOPs of training, all steps or a number of them.

        A multiply-accumulate is two FLOPs, and the backward pass costs two forward passes.
        """
        steps = self.steps[kind] if steps is None else steps
        return 6 * self.macs[kind] * self.batch_size * steps


class Measured(NamedTuple):
    """Everything that was measured, one entry a seed.

    Attributes:
        seeds: the seeds.
        lengths: what the runs cost.
        curves: kind of run to (step, held-out accuracy) of each evaluation, for each seed.
    """

    seeds: tuple[int, ...]
    lengths: Lengths
    curves: dict[str, list[list[tuple[int, float]]]]

    def accuracy(self, kind: str) -> list[float]:
        """The accuracies at the end of training."""
        return [curve[-1][1] for curve in self.curves[kind]]


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return seeds * len(GIN_FILES)


def equal_flops_steps(dense_steps: int, dense_macs: int, macs: int) -> int:
    """The steps of a costlier model that stay within the FLOPs of a dense run.

    Args:
        dense_steps: steps of the dense run.
        dense_macs: multiply-accumulates of one image in the dense model.
        macs: the same of the other model.

    Returns:
        `floor(dense_steps * dense_macs / macs)`, at least 1.

    Example:
        >>> equal_flops_steps(1000, dense_macs=80, macs=100)
        800
    """
    return max(dense_steps * dense_macs // macs, 1)


def trainings(
    kind: str,
    out: Path,
    seeds: Sequence[int],
    bindings: Sequence[str],
    lengths: Lengths | None = None,
) -> list[Training]:
    """The runs of a kind, one a seed.

    Args:
        kind: `BASE`, `DENSE`, `UPCYCLED` or `SCRATCH`.
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings; those of arguments of the other class of models are left out.
        lengths: of the runs, once they are known.
    """
    foreign = "VMoE." if kind in (BASE, DENSE) else "ViT."
    own = [binding for binding in bindings if not binding.startswith(foreign)]
    own += ["train.routing_images=0", "train.keep_best=False"]
    own += ["train.eval_every=None"] if kind == BASE else []
    steps = lengths.steps[kind] if lengths else 0
    if lengths and kind != BASE:
        own += [f"train.steps={steps}", f"train.eval_every={-(-steps // _EVALUATIONS)}"]
        own += [f"rsqrt.cooldown_steps={steps // _COOLDOWN}"]
    if lengths and kind in (DENSE, UPCYCLED):
        own += [f"rsqrt.first_step={lengths.steps[BASE]}"]
    runs = []
    for seed in seeds:
        words = [*own, f"train.seed={seed + (0 if kind == BASE else _SEEDS_APART)}"]
        if kind in (DENSE, UPCYCLED):
            # Whole: the same command goes on from any folder.
            base = str((out / f"{BASE}-{seed}").resolve())
            words += [f"train.init_from={base!r}"]
        name = f"{NAMES[kind]}, seed {seed}"
        runs.append(Training(name, GIN_FILES[kind], tuple(words), out / f"{kind}-{seed}", steps))
    return runs


def plan(out: Path, seeds: Sequence[int], bindings: Sequence[str], extra: float) -> Lengths:
    """Counts the FLOPs of the models and gives each run its length.

    Args:
        out: the folder of the runs.
        seeds: the seeds.
        bindings: of the command.
        extra: FLOPs of each continued run, as a share of those of the dense model before.
    """
    macs = {}
    for kind in GIN_FILES:
        config = configure(trainings(kind, out, seeds, bindings)[0])
        source = config.dataset()
        macs[kind] = analysis.profile(config.make_model(source), training=True).macs
        if kind == BASE:
            steps, batch_size = {BASE: length(config, source)}, config.batch_size
    steps[DENSE] = max(round(extra * steps[BASE]), 1)
    for kind in (UPCYCLED, SCRATCH):
        steps[kind] = equal_flops_steps(steps[DENSE], macs[DENSE], macs[kind])
    return Lengths(macs, steps, batch_size)


def measure(
    out: Path,
    seeds: Sequence[int],
    processes: int,
    bindings: Sequence[str] = (),
    extra: float = EXTRA,
) -> Measured:
    """Trains the dense models, then what goes on from them.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds; every kind of run is trained with each.
        processes: how many runs train side by side.
        bindings: further gin bindings of all runs; the length that they bind is that of the dense
            models.
        extra: as of `plan`.

    Raises:
        RuntimeError: if a run fails.
    """
    lengths = plan(out, seeds, bindings, extra)
    runs = {kind: trainings(kind, out, seeds, bindings, lengths) for kind in GIN_FILES}
    train_all(runs[BASE], processes)
    # Seed by seed: a command that is stopped has whole comparisons.
    by_seed = zip(*(runs[kind] for kind in CONTINUED), strict=True)
    train_all([run for of_seed in by_seed for run in of_seed], processes)
    curves = {kind: [run.evaluations() for run in of_kind] for kind, of_kind in runs.items()}
    return Measured(tuple(seeds), lengths, curves)


def claims(found: Measured) -> list[Claim]:
    """Judges the paper's claims.

    Args:
        found: what was measured.
    """
    upcycled = found.accuracy(UPCYCLED)
    rivals = {DENSE: "the dense model that goes on", SCRATCH: "the sparse model from scratch"}
    return [
        Claim(
            f"at equal extra FLOPs the upcycled model beats {words}",
            f"{estimate(upcycled).words()} against {estimate(found.accuracy(kind)).words()}",
            difference(upcycled, found.accuracy(kind)),
        )
        for kind, words in rivals.items()
    ]


def table(found: Measured) -> str:
    """The runs and the claims as tables of text."""
    lengths = found.lengths
    lines = [
        f"seeds {', '.join(map(str, found.seeds))}; accuracy in %, mean ± standard error; the gain "
        "is paired by seed, with its 95% interval",
        "equal FLOPs: a sparse run takes floor(steps * MACs) of the dense run that goes on over "
        "its own MACs",
        "",
        f"{'run':<28}{'MACs/image':<13}{'steps':<8}{'training TFLOPs':<18}accuracy",
    ]
    for kind in GIN_FILES:
        lines.append(
            f"{NAMES[kind]:<28}{f'{lengths.macs[kind] / 1e6:.3f}M':<13}{lengths.steps[kind]:<8}"
            f"{lengths.flops(kind) / 1e12:<18.3f}{estimate(found.accuracy(kind)).words()}"
        )
    return "\n".join([*lines, "", *table_lines(claims(found))])


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "seeds": list(found.seeds),
        "macs": found.lengths.macs,
        "steps": found.lengths.steps,
        "batch_size": found.lengths.batch_size,
        "training_flops": {kind: found.lengths.flops(kind) for kind in GIN_FILES},
        "accuracy": {kind: found.accuracy(kind) for kind in GIN_FILES},
        "curves": found.curves,
        "claims": to_dicts(claims(found)),
    }
