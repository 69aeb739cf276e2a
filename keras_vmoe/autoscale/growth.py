"""Algorithm 2: a topology grows deeper and wider, step by step, by ranks of its measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe.autoscale.repeats import Measures
from keras_vmoe.autoscale.weights import count_params
from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require, require_positive_int

GROWTH_RATES = (0.05, 0.10, 0.15, 0.20)


class Size(NamedTuple):
    """How far a topology has grown.

    Attributes:
        depths: blocks of each stage.
        width: of the first stage in the network that is measured, a fraction of the real one.
    """

    depths: tuple[int, ...]
    width: int

    def of(self, topology: Genotype, widening: int = 1) -> Genotype:
        """The topology at this size.

        Args:
            topology: whose kernels, splits, ratios and heads are taken.
            widening: the real width over this one.
        """
        stages = tuple(
            genes._replace(depth=depth)
            for genes, depth in zip(topology.stages, self.depths, strict=True)
        )
        return Genotype.parse(Genotype(stages, topology.heads, self.width * widening))


def candidates(
    size: Size, deeper: Sequence[int] = (1,), rates: Sequence[float] = GROWTH_RATES
) -> list[Size]:
    """The sizes that come next: more blocks in one stage, and all stages wider.

    Args:
        size: where the growth is.
        deeper: blocks that a stage may get; empty for none.
        rates: shares by which the width may grow, to the nearest integer (halves to the even
            one); empty for none. Widths that come twice are taken once. Narrow networks may keep
            their width.

    Raises:
        ValueError: if both are empty.

    Example:
        >>> [found.width for found in candidates(Size((1, 1, 1, 1), 8))][:3]
        [8, 9, 10]

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 2.
    """
    require(
        len(deeper) + len(rates) > 0,
        f"deeper or rates must hold a step. Received: deeper={deeper}, rates={rates}",
    )
    depths = [
        (*size.depths[:stage], size.depths[stage] + more, *size.depths[stage + 1 :])
        for more in deeper
        for stage in range(4)
    ]
    widths = dict.fromkeys(round(size.width * (1 + rate)) for rate in rates)
    return [Size(d, w) for d in depths or [size.depths] for w in widths or [size.width]]


def best_candidate(
    condition_numbers: Sequence[float], lengths: Sequence[float], compat: bool = False
) -> int:
    """The candidate whose ranks by both measures sum to least.

    Candidates of equal measure share a rank, and the next one follows without a gap. Of candidates
    with equal sums that one is taken which is better by the measure whose range, as a share of its
    largest value, is larger; then by the other; then the first.

    Args:
        condition_numbers: of the NTK, lower is better; what is not finite is worst.
        lengths: L^E, higher is better; what is not finite is worst.
        compat: as the published code: of the candidates with equal sums only the first two are
            compared, and the lower value is taken, though a longer curve is better.

    Returns:
        Its place in the sequences.

    Raises:
        ValueError: no candidates, or sequences of different length.

    Example:
        >>> best_candidate([8.0, 8.1, 9.0], [0.3, 0.9, 0.1])
        1
        >>> best_candidate([8.0, 8.1, 9.0], [0.3, 0.9, 0.1], compat=True)
        0

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 2.
    """
    require(
        0 < len(condition_numbers) == len(lengths),
        "condition_numbers and lengths must have one entry for each of one or more candidates. "
        f"Received: {len(condition_numbers)} and {len(lengths)}",
    )
    # Lower is better of both from here on.
    measures = [
        [x if math.isfinite(x) else math.inf for x in condition_numbers],
        [-x if math.isfinite(x) else math.inf for x in lengths],
    ]
    ranks = [{x: rank for rank, x in enumerate(sorted(set(measure)))} for measure in measures]
    sums = [ranks[0][x] + ranks[1][y] for x, y in zip(*measures, strict=True)]
    least = min(sums)
    tied = [i for i, total in enumerate(sums) if total == least]
    wider = int(_relative_range(lengths) > _relative_range(condition_numbers))
    if compat:
        raw = (condition_numbers, lengths)[wider]
        return min(tied[:2], key=lambda i: raw[i])
    return min(tied, key=lambda i: (measures[wider][i], measures[1 - wider][i]))


def _relative_range(values: Sequence[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return (max(finite) - min(finite)) / max(finite) if finite and max(finite) > 0 else 0.0


# One block in each stage, and a quarter of the paper's 32.
_FIRST = Size((1, 1, 1, 1), 8)


class Grown(NamedTuple):
    """One size on the way.

    Attributes:
        step: from 0, the size that the growth begins with.
        genotype: at the real width: one member of the family.
        depths: blocks of each stage.
        width: of the first stage in the network that was measured.
        params: of the genotype, with 1,000 classes.
        length, condition_number: what made it the best candidate; NaN at step 0.
        candidates: how many there were to choose from.
    """

    step: int
    genotype: str
    depths: tuple[int, ...]
    width: int
    params: int
    length: float
    condition_number: float
    candidates: int


# (candidates, step) to the measures of each.
EvaluateAll = Callable[[list[Genotype], int], list[Measures]]


@dataclasses.dataclass
class Growth:
    """A topology that grows; `advance` takes the next step.

    Args:
        topology: kernels, splits, ratios and heads; its own depths and width are left aside.
        widening: the real width over the one that is measured.
        limit: parameters that no size may have more of.
        size: what it begins with.
        compat: ties as the published code breaks them, see `best_candidate`.
        trace: the sizes so far; the first by default.

    Raises:
        ValueError: a first size above the limit.

    Example:
        >>> growth = Growth(Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32"))
        >>> grown = growth.advance(lambda sizes, step: [Measures(1.0, i) for i in range(12)])
        >>> grown.genotype, grown.params
        ('8,2,3,2|4,1,2,1|4,1,4,1|4,1,6,1|32,32', 2330248)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 2.
    """

    topology: Genotype
    widening: int = 4
    limit: float = 110e6
    size: Size = _FIRST
    compat: bool = False
    trace: list[Grown] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.trace:
            self.trace.append(self._grown(self.size, Measures(math.nan, math.nan), 0))
        require(
            self.trace[0].params <= self.limit,
            f"limit must leave room for the first size, of {self.trace[0].params:,} parameters. "
            f"Received: limit={self.limit:,.0f}",
        )

    def advance(self, evaluate: EvaluateAll) -> Grown | None:
        """Measures the next sizes at the small width and takes the best; `None` if all are above
        the limit.

        Args:
            evaluate: measures topologies. It is told the step, which its draws should follow from.
        """
        sizes = self._next()
        if not sizes:
            return None
        found = evaluate([size.of(self.topology) for size in sizes], len(self.trace))
        numbers = [one.condition_number for one in found]
        best = best_candidate(numbers, [one.length for one in found], self.compat)
        return self._take(sizes[best], found[best], len(sizes))

    def advance_at_random(self, rng: np.random.Generator) -> Grown | None:
        """Takes any of the next sizes, measuring none: what growth is compared with."""
        sizes = self._next()
        if not sizes:
            return None
        chosen = sizes[int(rng.integers(len(sizes)))]
        return self._take(chosen, Measures(math.nan, math.nan), len(sizes))

    def resume(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Goes back to a trace.

        Args:
            rows: `Grown._asdict()` of each size.

        Raises:
            KeyError, TypeError, IndexError, ValueError: rows that are no trace.
        """
        trace = [Grown(**{**row, "depths": tuple(row["depths"])}) for row in rows]
        for one in trace:
            require(
                len(one.depths) == 4,
                f"depths must be those of four stages. Received: depths={one.depths} in step "
                f"{one.step}",
            )
            for depth in one.depths:
                require_positive_int(f"depths of step {one.step}", depth)
            require_positive_int(f"width of step {one.step}", one.width)
        self.trace, self.size = trace, Size(trace[-1].depths, trace[-1].width)

    def _next(self) -> list[Size]:
        real = {size: size.of(self.topology, self.widening) for size in candidates(self.size)}
        return [size for size, genotype in real.items() if count_params(genotype) <= self.limit]

    def _take(self, size: Size, measures: Measures, count: int) -> Grown:
        self.size = size
        self.trace.append(self._grown(size, measures, count))
        return self.trace[-1]

    def _grown(self, size: Size, measures: Measures, count: int) -> Grown:
        genotype = size.of(self.topology, self.widening)
        params = count_params(genotype)
        return Grown(len(self.trace), str(genotype), *size, params, *measures, count)
