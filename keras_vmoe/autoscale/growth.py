"""Algorithm 2: a topology grows deeper and wider, step by step, by ranks of its measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require

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
    ranks = [[sorted(set(measure)).index(x) for x in measure] for measure in measures]
    sums = [sum(pair) for pair in zip(*ranks, strict=True)]
    tied = [i for i, total in enumerate(sums) if total == min(sums)]
    wider = int(_relative_range(lengths) > _relative_range(condition_numbers))
    if compat:
        raw = (condition_numbers, lengths)[wider]
        return min(tied[:2], key=lambda i: raw[i])
    return min(tied, key=lambda i: (measures[wider][i], measures[1 - wider][i]))


def _relative_range(values: Sequence[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return (max(finite) - min(finite)) / max(finite) if finite and max(finite) > 0 else 0.0
