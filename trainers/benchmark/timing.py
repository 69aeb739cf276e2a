"""Timing of candidates against each other: interleaved rounds, medians, ratios.

On a shared machine two times taken minutes apart say little about each other. So all candidates
take turns within a round, a ratio is formed within each round, and the median is taken over the
rounds. CPU-seconds of the whole process stand beside wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, Protocol


class Result(Protocol):
    """A tensor: what forces its computation is asking for its numbers."""

    def numpy(self) -> Any: ...


Candidate = Callable[[], Result]


class Clocks(NamedTuple):
    """Wall seconds, and the CPU-seconds of all threads of this process."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


SYSTEM_CLOCKS = Clocks()


class Ratio(NamedTuple):
    """How many times as long one candidate takes as another; `None` where a clock stood still.

    Attributes:
        wall, cpu: the medians of the rounds' ratios.
        wall_of_medians, cpu_of_medians: the ratios of the medians, as a check.
    """

    wall: float | None
    cpu: float | None
    wall_of_medians: float | None
    cpu_of_medians: float | None


@dataclass(frozen=True)
class Samples:
    """The seconds of one candidate, one entry a round.

    Args:
        wall: wall seconds.
        cpu: CPU-seconds of the process.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def milliseconds(self) -> dict[str, float]:
        """Returns the medians in milliseconds, as `wall_ms` and `cpu_ms`.

        Example:
            >>> Samples(wall=(0.003, 0.001, 0.002), cpu=(0.5, 0.5, 0.5)).milliseconds()
            {'wall_ms': 2.0, 'cpu_ms': 500.0}
        """
        return {"wall_ms": median(self.wall) * 1e3, "cpu_ms": median(self.cpu) * 1e3}

    def over(self, other: Samples) -> Ratio:
        """Returns this candidate's time over another's of the same rounds.

        Args:
            other: the samples that divide.

        Raises:
            ValueError: samples of another number of rounds.

        Example:
            >>> slow, fast = Samples((2.0, 9.0), (4.0, 4.0)), Samples((1.0, 3.0), (1.0, 1.0))
            >>> slow.over(fast).wall, slow.over(fast).cpu
            (2.5, 4.0)
        """
        if len(self.wall) != len(other.wall):
            raise ValueError(
                "other must hold samples of the same rounds. "
                f"Received: {len(other.wall)} rounds beside {len(self.wall)}"
            )
        return Ratio(
            _median_ratio(self.wall, other.wall),
            _median_ratio(self.cpu, other.cpu),
            _median_ratio([median(self.wall)], [median(other.wall)]),
            _median_ratio([median(self.cpu)], [median(other.cpu)]),
        )


def _median_ratio(top: Any, bottom: Any) -> float | None:
    # CPU clocks of some kernels tick in hundredths of a second: a short run may count as zero.
    if min(bottom) <= 0:
        return None
    return median(a / b for a, b in zip(top, bottom, strict=True))


def interleave(
    candidates: Mapping[str, Candidate],
    rounds: int,
    warmup: int = 2,
    clocks: Clocks = SYSTEM_CLOCKS,
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, Samples]:
    """Times candidates in turns: A B C, A B C, ...

    Args:
        candidates: functions without arguments; the number they return is fetched within the time
            that is measured.
        rounds: turns of each.
        warmup: runs of each before the first round, which are not measured; the first of them
            traces a graph.
        clocks: tests hand in their own.
        on_round: called after each round with the share of rounds that is done.

    Returns:
        The samples of each candidate.

    Example:
        >>> import numpy as np
        >>> class Number(float):
        ...     numpy = float.__float__
        >>> samples = interleave({"sum": lambda: Number(np.ones(9).sum())}, rounds=3)
        >>> len(samples["sum"].wall)
        3
    """
    for candidate in candidates.values():
        for _ in range(warmup):
            candidate().numpy()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for done in range(1, rounds + 1):
        for name, candidate in candidates.items():
            wall, cpu = clocks.wall(), clocks.cpu()
            candidate().numpy()
            taken[name].append((clocks.wall() - wall, clocks.cpu() - cpu))
        on_round(done / rounds)
    return {
        name: Samples(tuple(wall for wall, _ in pairs), tuple(cpu for _, cpu in pairs))
        for name, pairs in taken.items()
    }
