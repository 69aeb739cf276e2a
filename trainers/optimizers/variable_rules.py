"""Which variables decay and which stay as they are: regular expressions over their paths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

Decay = float | Sequence[tuple[str, float]] | None


@dataclasses.dataclass(frozen=True)
class VariableRules:
    """Weight decay and freezing, by the path of a variable.

    A pattern may match anywhere in the path (`re.search`).

    Args:
        weight_decay: a number: of all variables; pairs `(regex, number)`: the first pair whose
            regex matches a path decides, and a variable that none matches does not decay;
            None: no decay.
        freeze: regexes; a variable that one of them matches is never changed.

    Raises:
        ValueError: for anything else, or a regex that is none.

    Example:
        >>> rules = VariableRules([("router", 0.0), (".*kernel", 0.1)])
        >>> rules.decay_rates(["router/kernel", "mlp/kernel", "mlp/bias"])
        (0.0, 0.1, 0.0)
    """

    weight_decay: Decay = None
    freeze: Sequence[str] = ()

    def __post_init__(self) -> None:
        # Lists are what a JSON config holds; a lone regex is what one writes by hand.
        decay = self.weight_decay
        if decay is not None and not _is_rate(decay):
            decay = tuple(_checked_pair(pair, decay) for pair in _sequence(decay))
        freeze = (self.freeze,) if isinstance(self.freeze, str) else tuple(self.freeze)
        for pattern in freeze:
            _check_pattern("freeze", pattern)
        object.__setattr__(self, "weight_decay", decay)
        object.__setattr__(self, "freeze", freeze)

    def decay_rates(self, paths: Sequence[str]) -> tuple[float, ...]:
        """Returns the weight decay of each variable.

        Args:
            paths: the path of each variable.

        Raises:
            ValueError: if a regex matches no variable.
        """
        if not isinstance(self.weight_decay, tuple):
            return (self.weight_decay or 0.0,) * len(paths)
        _check_used("weight_decay", [pattern for pattern, _ in self.weight_decay], paths)
        return tuple(self._rate_of(path) for path in paths)

    def _rate_of(self, path: str) -> float:
        rates = (rate for pattern, rate in self.weight_decay if re.search(pattern, path))
        return next(rates, 0.0)

    def frozen(self, paths: Sequence[str]) -> tuple[bool, ...]:
        """Tells of each variable whether it is frozen.

        Args:
            paths: the path of each variable.

        Raises:
            ValueError: if a regex matches no variable, or together they match all.
        """
        _check_used("freeze", self.freeze, paths)
        frozen = tuple(any(re.search(p, path) for p in self.freeze) for path in paths)
        if paths and all(frozen):
            raise ValueError(f"freeze={self.freeze!r} leaves no variable to train")
        return frozen


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _sequence(decay: object) -> Sequence[object]:
    if isinstance(decay, list | tuple) and decay:
        return decay
    raise ValueError(_not_a_decay(decay))


def _checked_pair(pair: object, decay: object) -> tuple[str, float]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not _is_rate(pair[1]):
        raise ValueError(_not_a_decay(decay))
    _check_pattern("weight_decay", pair[0])
    return (pair[0], pair[1])


def _not_a_decay(decay: object) -> str:
    return (
        f"weight_decay={decay!r} must be a number of at least 0, None, or pairs of a regex and "
        'such a number, as in ((".*kernel", 0.1),)'
    )


def _check_pattern(name: str, pattern: object) -> None:
    if not isinstance(pattern, str):
        raise ValueError(f"{name} holds {pattern!r}, which must be a regex in quotes")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} holds {pattern!r}, which is no regex: {error}") from error


def _check_used(name: str, patterns: Sequence[str], paths: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"{name} holds {pattern!r}, which matches no variable; "
                f"the variables are {', '.join(paths)}"
            )
