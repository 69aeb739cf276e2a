"""Claims of a paper beside the numbers that were found, as text and ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_vmoe.trainers.repro.paired import Estimate, verdict


class Claim(NamedTuple):
    """One claim and what was found.

    Attributes:
        text: the claim.
        found: the numbers.
        gain: the paired difference that decides.
        margin: how far below 0 the difference may lie.
    """

    text: str
    found: str
    gain: Estimate
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """See `paired.verdict`."""
        return verdict(self.gain, self.margin)


def table_lines(claims: Sequence[Claim], width: int = 86) -> list[str]:
    """The claims as lines of text, a head first.

    Args:
        claims: what was judged.
        width: of the column of the claims, in characters.
    """
    lines = [f"{'claim':<{width}}{'accuracy':<34}{'gain':<18}verdict"]
    for claim in claims:
        gain = claim.gain
        interval = f" ± {100 * gain.half_width:.2f}" if gain.count > 1 else ""
        allowed = f" (margin {100 * claim.margin:.1f})" if claim.margin else ""
        lines.append(
            f"{claim.text:<{width}}{claim.found:<34}{f'{100 * gain.mean:+.2f}{interval}':<18}"
            f"{claim.verdict}{allowed}"
        )
    return lines


def to_dicts(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims, ready for JSON."""
    return [
        {
            "claim": claim.text,
            "accuracy": claim.found,
            "gain": claim.gain.mean,
            "standard_error": None if math.isnan(claim.gain.error) else claim.gain.error,
            "verdict": claim.verdict,
        }
        for claim in claims
    ]
