"""The claims of LIMoE in miniature, on small scenes with captions: trained, measured, judged.

One sparse tower for images and texts is trained with and without its two means against the
collapse of text, the entropy losses and batch priority, and beside dense models of one tower and of
two; and with several soft minima of experts for text.

Reference: Mustafa et al. 2022, arXiv 2206.02770.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_vmoe import analysis, data
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.repro.claims import Claim, table_lines, to_dicts
from keras_vmoe.trainers.repro.limoe_routing import Routed, route
from keras_vmoe.trainers.repro.paired import Estimate, difference, estimate
from keras_vmoe.trainers.repro.training import Training, configure, length, train_all
from keras_vmoe.trainers.tasks import make_task

LIMOE, ENTROPY, PRIORITY, CLASSIC = "limoe", "entropy", "priority", "classic"
DENSE, TWO_TOWER = "dense", "two_tower"
GIN_FILES = {
    LIMOE: "repro/limoe.gin",
    **{kind: f"repro/limoe_{kind}.gin" for kind in (ENTROPY, PRIORITY, CLASSIC, DENSE, TWO_TOWER)},
}
SPARSE = (LIMOE, ENTROPY, PRIORITY, CLASSIC)
NAMES = {
    LIMOE: "LIMoE",
    ENTROPY: "entropy losses, no priority",
    PRIORITY: "priority, no entropy losses",
    CLASSIC: "neither",
    DENSE: "dense, one tower",
    TWO_TOWER: "dense, two towers",
}
MODALITIES = ("image", "text")
# Of 16 experts, what the runs ask for, and what the sweep asks for instead; its images as before.
IMAGE_MINIMUM, TEXT_MINIMUM = 10, 4
SOFT_MINIMA = (1, 2, 4, 8)
SWEEP_SEEDS = 2
MEASURES = {
    "zeroshot/digits": "zero-shot",
    "retrieval/image_to_text@1": "image to text R@1",
    "retrieval/text_to_image@1": "text to image R@1",
}
# The paper's: tokens that get an expert, with its losses; and what we call a collapse.
KEPT, COLLAPSED = 0.95, 0.5
_WITH = {CLASSIC: "neither", ENTROPY: "entropy losses alone", PRIORITY: "priority alone"}
_RIVALS = {
    DENSE: "a dense tower of equal activated FLOPs",
    TWO_TOWER: "two dense towers of equal FLOPs",
    CLASSIC: "itself without entropy losses and priority",
}
_ROUTING = ("success_rate", "effective_experts", "local_entropy")

#: A row of `metrics.jsonl`, of which the routing is kept.
Row = Mapping[str, float]


class Measured(NamedTuple):
    """Everything that was measured, one entry a seed.

    Attributes:
        seeds: the seeds.
        steps: of each run.
        macs: kind of run to multiply-accumulates of one pair in training.
        scores: kind of run to the name of a measurement to its values at the end.
        history: sparse kind of run to the rows of training, for each seed.
        soft_minima: the soft minimum of experts for text to the last row of each run.
        taken: the same to the experts that take held-out text, see `Routed.taken_experts`.
        routed: how the first seed's LIMoE routes held-out pairs.
    """

    seeds: tuple[int, ...]
    steps: int
    macs: dict[str, int]
    scores: dict[str, dict[str, list[float]]]
    history: dict[str, list[list[Row]]]
    soft_minima: dict[int, list[Row]]
    taken: dict[int, list[float]]
    routed: Routed

    def kept(self, kind: str, modality: str) -> list[float]:
        """The success rate at the end of training, in the layer where it is lowest."""
        return [lowest(rows[-1], modality, "success_rate") for rows in self.history[kind]]


def lowest(row: Row, modality: str, what: str) -> float:
    """Returns what was measured of a modality's routing in the layer where it is least.

    Args:
        row: of `metrics.jsonl`.
        modality: "image" or "text".
        what: such as "success_rate".

    Example:
        >>> row = {"step": 9, "block_1/text_success_rate": 0.5, "block_3/text_success_rate": 0.25}
        >>> lowest(row, "text", "success_rate")
        0.25
    """
    return min(value for name, value in row.items() if name.endswith(f"/{modality}_{what}"))


def num_runs(seeds: int) -> int:
    """The number of runs for a number of seeds."""
    return seeds * len(GIN_FILES) + min(seeds, SWEEP_SEEDS) * (len(SOFT_MINIMA) - 1)


def trainings(
    out: Path, seeds: Sequence[int], bindings: Sequence[str], kinds: Sequence[str] = ()
) -> list[Training]:
    """The runs of several kinds, seed by seed.

    Args:
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings of all of them; those of arguments of the other class of models
            are left out.
        kinds: kinds of runs; all if empty.
    """
    runs = []
    for seed in seeds:
        for kind in kinds or GIN_FILES:
            foreign = "LIMoE." if kind == TWO_TOWER else "TwoTower."
            own = [binding for binding in bindings if not binding.startswith(foreign)]
            words = (*own, f"train.seed={seed}")
            name = f"{NAMES[kind]}, seed {seed}"
            runs.append(Training(name, GIN_FILES[kind], words, out / f"{kind}-{seed}"))
    return runs


def sweep(out: Path, seeds: Sequence[int], bindings: Sequence[str]) -> dict[int, list[Training]]:
    """The runs of each soft minimum of experts for text, one a seed.

    Args:
        out: the folder of their workdirs.
        seeds: the seeds.
        bindings: further bindings of all of them.
    """
    runs = {}
    for minimum in SOFT_MINIMA:
        if minimum == TEXT_MINIMUM:  # which the other runs train with
            runs[minimum] = trainings(out, seeds, bindings, [LIMOE])
            continue
        minima = {"image": IMAGE_MINIMUM, "text": minimum}
        words = [*bindings, f"LIMoE.soft_minimum_experts={minima}"]
        runs[minimum] = [
            run._replace(
                name=f"LIMoE, {minimum} experts asked for text, seed {seed}",
                workdir=out / f"text_{minimum}-{seed}",
            )
            for seed, run in zip(seeds, trainings(out, seeds, words, [LIMOE]), strict=True)
        ]
    return runs


def measure(
    out: Path, seeds: Sequence[int], processes: int, bindings: Sequence[str] = ()
) -> Measured:
    """Trains all kinds of runs and the sweep, and reads what they measured.

    Args:
        out: where runs are kept; those that it holds go on or are taken as they are.
        seeds: the seeds; every kind of run is trained with each, the sweep with the first two.
        processes: how many runs train side by side.
        bindings: further gin bindings of all runs.

    Raises:
        RuntimeError: if a run fails.
    """
    runs, swept = trainings(out, seeds, bindings), sweep(out, seeds[:SWEEP_SEEDS], bindings)
    config = configure(runs[0])  # data and length are the same for all
    source = config.dataset()
    steps = length(config, source)
    train_all([run._replace(steps=steps) for run in _in_order(runs, swept)], processes)
    by_kind = {kind: runs[i :: len(GIN_FILES)] for i, kind in enumerate(GIN_FILES)}
    return Measured(
        seeds=tuple(seeds),
        steps=steps,
        macs={kind: _macs(of_kind[0], source) for kind, of_kind in by_kind.items()},
        scores={kind: _scores(of_kind) for kind, of_kind in by_kind.items()},
        history={kind: [_routing(run) for run in by_kind[kind]] for kind in SPARSE},
        soft_minima={n: [_routing(run)[-1] for run in of_n] for n, of_n in swept.items()},
        taken={n: [_taken(run, source.eval) for run in of_n] for n, of_n in swept.items()},
        routed=route(by_kind[LIMOE][0].workdir, source.eval),
    )


def _in_order(runs: Sequence[Training], swept: Mapping[int, Sequence[Training]]) -> list[Training]:
    """Seed by seed, so that a command that is stopped has whole comparisons."""
    order = []
    for number, first in enumerate(range(0, len(runs), len(GIN_FILES))):
        order += runs[first : first + len(GIN_FILES)]
        order += [of_n[number] for of_n in swept.values() if number < len(of_n)]
    return list(dict.fromkeys(order))  # one of the soft minima is that of the other runs


def _macs(run: Training, source: Pairs) -> int:
    model = make_task(configure(run), source).make_model()
    return analysis.profile(model, training=True).macs


def _taken(run: Training, split: data.Split) -> float:
    return route(run.workdir, split).taken_experts("text")


def _scores(runs: Sequence[Training]) -> dict[str, list[float]]:
    last = [MetricsLog(run.workdir / "metrics.jsonl").last("eval") for run in runs]
    return {name: [row[name] for row in last] for name in MEASURES}


def _routing(run: Training) -> list[Row]:
    """The rows of training, with nothing but the routing of each modality."""
    rows = MetricsLog(run.workdir / "metrics.jsonl").rows()
    return [
        {name: row[name] for name in row if name == "step" or name.endswith(_ROUTING)}
        for row in rows
        if row["split"] == "train"
    ]


def claims(found: Measured) -> list[Claim]:
    """Judges the paper's claims.

    Args:
        found: what was measured.
    """
    return [*_routing_claims(found), *_score_claims(found), *_soft_minimum_claims(found)]


def _routing_claims(found: Measured) -> list[Claim]:
    result = []
    for modality in MODALITIES:
        kept = found.kept(LIMOE, modality)
        result.append(
            Claim(
                f"with entropy losses and priority more than {KEPT:.0%} of the {modality} tokens "
                "get an expert",
                estimate(kept).words(),
                _above(kept, KEPT),
            )
        )
    text, neither = found.kept(LIMOE, "text"), found.kept(CLASSIC, "text")
    result.append(
        Claim(
            f"with neither, the success rate of text collapses (below {COLLAPSED:.0%})",
            estimate(neither).words(),
            _above([-rate for rate in neither], -COLLAPSED),
        )
    )
    for kind in (CLASSIC, ENTROPY, PRIORITY):
        other = found.kept(kind, "text")
        result.append(
            Claim(
                f"with both, more text tokens get an expert than with {_WITH[kind]}",
                f"{estimate(text).words()} against {estimate(other).words()}",
                difference(text, other),
            )
        )
    return result


def _above(values: Sequence[float], least: float) -> Estimate:
    return difference(values, [least] * len(values))


def _score_claims(found: Measured) -> list[Claim]:
    result = []
    for rival in (DENSE, TWO_TOWER, CLASSIC):
        for name, words in MEASURES.items():
            left, right = (found.scores[kind][name] for kind in (LIMOE, rival))
            result.append(
                Claim(
                    f"{words}: LIMoE beats {_RIVALS[rival]}",
                    f"{estimate(left).words()} against {estimate(right).words()}",
                    difference(left, right),
                )
            )
    return result


def _soft_minimum_claims(found: Measured) -> list[Claim]:
    gates = {
        minimum: [lowest(row, "text", "effective_experts") for row in rows]
        for minimum, rows in found.soft_minima.items()
    }
    result = []
    for minimum in SOFT_MINIMA[1:]:  # no text spreads over less than one expert
        for words, used in (("gates", gates), ("tokens", found.taken)):
            result.append(
                Claim(
                    f"asked for {minimum} experts, text spreads its {words} over as many "
                    "(relative)",
                    f"{_count(used[minimum])} experts",
                    _above([n / minimum for n in used[minimum]], 1.0),
                )
            )
    few, many = SOFT_MINIMA[1], SOFT_MINIMA[-1]
    for words, used in (("gates", gates), ("tokens", found.taken)):
        result.append(
            Claim(
                f"asked for {many} experts instead of {few}, text spreads its {words} over more "
                "(relative)",
                f"{_count(used[many])} against {_count(used[few])} experts",
                _above([n / m for n, m in zip(used[many], used[few], strict=True)], 1.0),
            )
        )
    return result


def _count(values: Sequence[float]) -> str:
    mean = estimate(values)
    return f"{mean.mean:.2f}" + (f" ± {mean.error:.2f}" if mean.count > 1 else "")


def table(found: Measured) -> str:
    """The runs and the claims as tables of text."""
    lines = [
        f"seeds {', '.join(map(str, found.seeds))}; {found.steps} steps; in %, mean ± standard "
        "error; the gain is paired by seed, with its 95% interval",
        "success rates: of the last rows of training, in the MoE layer where they are lowest; "
        "experts, there too: exp(H) of the mean gates, and of the shares of held-out tokens",
        "",
        f"{'run':<30}{'MACs/pair':<12}"
        + "".join(f"{words:<20}" for words in MEASURES.values())
        + f"{'image success':<18}text success",
    ]
    for kind, scores in found.scores.items():
        cells = [f"{estimate(scores[name]).words():<20}" for name in MEASURES]
        if kind in SPARSE:
            cells += [f"{estimate(found.kept(kind, name)).words():<18}" for name in MODALITIES]
        macs = f"{found.macs[kind] / 1e6:.3f}M"
        lines.append(f"{NAMES[kind]:<30}{macs:<12}{''.join(cells)}".rstrip())
    return "\n".join([*lines, "", *table_lines(claims(found))])


def to_dict(found: Measured) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        "seeds": list(found.seeds),
        "steps": found.steps,
        "training_macs": found.macs,
        "scores": found.scores,
        "success_rates": {
            kind: {modality: found.kept(kind, modality) for modality in MODALITIES}
            for kind in SPARSE
        },
        "soft_minimum_experts": {
            minimum: [lowest(row, "text", "effective_experts") for row in rows]
            for minimum, rows in found.soft_minima.items()
        },
        "experts_that_take_text": found.taken,
        "tokens_of_experts": {
            layer: analysis.modality_counts(record).tolist()
            for layer, record in found.routed.records.items()
        },
        "history": found.history,
        "claims": to_dicts(claims(found)),
    }
