"""REINFORCE over independent categorical choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclasses.dataclass
class Policy:
    """A distribution over actions, a number on each axis, that follows rewards.

    Args:
        logits: of each axis, one a choice.
        learning_rate: of Adam.
        momentum: of the baseline, a moving average of rewards without bias towards 0.
        updates: how many there were.
        average: the moving average before its bias is taken out.
        means, squares: Adam's moments, shaped as `logits`; zeros by default.

    Raises:
        ValueError: an axis without choices, or a learning rate that is not positive.

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 1; Williams 1992.
    """

    logits: list[np.ndarray]
    learning_rate: float = 0.08
    momentum: float = 0.9
    updates: int = 0
    average: float = 0.0
    means: list[np.ndarray] | None = None
    squares: list[np.ndarray] | None = None

    def __post_init__(self) -> None:
        self.logits = [np.asarray(x, "float64") for x in self.logits]
        require(
            bool(self.logits) and all(x.ndim == 1 and x.size for x in self.logits),
            f"logits must hold one or more numbers an axis. Received: {self.logits}",
        )
        require(
            self.learning_rate > 0,
            f"learning_rate must be positive. Received: learning_rate={self.learning_rate}",
        )
        for name in ("means", "squares"):
            moments = getattr(self, name) or [np.zeros_like(x) for x in self.logits]
            setattr(self, name, [np.asarray(x, "float64") for x in moments])

    @classmethod
    def draw(
        cls, sizes: Sequence[int], rng: np.random.Generator, learning_rate: float = 0.08
    ) -> Policy:
        """A policy whose choices are nearly equally likely: logits have a deviation of 0.001.

        Args:
            sizes: the number of choices on each axis.
            rng: draws the logits.
            learning_rate: of Adam.
        """
        return cls([1e-3 * rng.standard_normal(size) for size in sizes], learning_rate)

    @property
    def probabilities(self) -> list[np.ndarray]:
        """Of each axis' choices."""
        odds = [np.exp(x - x.max()) for x in self.logits]
        return [x / x.sum() for x in odds]

    @property
    def entropy(self) -> float:
        """In nats, the sum over axes.

        Example:
            >>> round(Policy([np.zeros(2), np.zeros(4)]).entropy, 4)
            2.0794
        """
        return float(-sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in self.probabilities))

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """An action, drawn by the probabilities."""
        return tuple(int(rng.choice(len(p), p=p)) for p in self.probabilities)

    def most_likely(self) -> tuple[int, ...]:
        """The likeliest choice of each axis; of equal ones the first."""
        return tuple(int(x.argmax()) for x in self.logits)

    def log_probability(self, action: Sequence[int]) -> float:
        """Of an action, in nats."""
        chosen = [p[i] for p, i in zip(self.probabilities, action, strict=True)]
        return float(np.log(chosen).sum())

    def update(self, action: Sequence[int], reward: float) -> tuple[float, float]:
        """Makes an action likelier by how far its reward is above the baseline.

        Args:
            action: what was chosen.
            reward: what it brought.

        Returns:
            The baseline, which has this reward in it, and the loss before the update.
        """
        self.updates += 1
        self.average = self.momentum * self.average + (1 - self.momentum) * reward
        baseline = self.average / (1 - self.momentum**self.updates)
        advantage = reward - baseline
        loss = -self.log_probability(action) * advantage
        corrections = [1 - beta**self.updates for beta in _BETAS]
        for i, probabilities in enumerate(self.probabilities):
            gradient = advantage * (probabilities - (np.arange(len(probabilities)) == action[i]))
            self.means[i] = _BETAS[0] * self.means[i] + (1 - _BETAS[0]) * gradient
            self.squares[i] = _BETAS[1] * self.squares[i] + (1 - _BETAS[1]) * gradient**2
            root = np.sqrt(self.squares[i] / corrections[1]) + _EPSILON
            self.logits[i] = self.logits[i] - (
                self.learning_rate * self.means[i] / corrections[0] / root
            )
        return baseline, loss

    def to_dict(self) -> dict[str, Any]:
        """The whole state, ready for JSON; `Policy(**state)` goes on from it to the bit."""
        lists = {
            name: [x.tolist() for x in getattr(self, name)]
            for name in ("logits", "means", "squares")
        }
        return dataclasses.asdict(self) | lists
