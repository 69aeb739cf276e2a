"""Algorithm 1: a policy learns which topologies measure well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe.autoscale.policy import Policy
from keras_vmoe.autoscale.repeats import Measures
from keras_vmoe.autoscale.rewards import WINDOW, require_window, reward
from keras_vmoe.autoscale.space import SearchSpace
from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require, require_positive_int

# (topology, step) to its measures.
Evaluate = Callable[[Genotype, int], Measures]
_OF_LOGITS, _OF_ACTIONS = range(100, 102)


class Step(NamedTuple):
    """What one step of a search tried and found.

    Attributes:
        step: from 0.
        genotype: the topology.
        action: its place on each axis of the space.
        length: L^E.
        condition_number: of the NTK; NaN where the kernel is singular.
        reward, baseline, loss: of REINFORCE.
        entropy: of the policy after the step, nats.
    """

    step: int
    genotype: str
    action: tuple[int, ...]
    length: float
    condition_number: float
    reward: float
    baseline: float
    loss: float
    entropy: float


@dataclasses.dataclass
class Search:
    """A search at some step; `advance` takes the next.

    All random numbers follow from the seed and the step, so that a search which goes on from its
    state finds what it would have found without a stop.

    Args:
        space: the topologies.
        width: of the first stage of all of them.
        seed: of the policy's draws.
        learning_rate: of the policy.
        window: topologies over which rewards are scaled.
        compat: rewards as the published code gives them, see `reward`.
        policy: where it is; drawn from the seed by default.
        trace: the steps so far.

    Raises:
        ValueError: a width, window, seed or learning rate out of range.

    Example:
        >>> search = Search(SearchSpace(), seed=1)
        >>> step = search.advance(lambda genotype, step: Measures(1.0, 10.0))
        >>> step.step, step.reward, len(search.trace)
        (0, 0.0, 1)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), algorithm 1.
    """

    space: SearchSpace
    width: int = 32
    seed: int = 0
    learning_rate: float = 0.08
    window: int = WINDOW
    compat: bool = False
    policy: Policy | None = None
    trace: list[Step] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        require_positive_int("width", self.width)
        require_window(self.window)
        require(self.seed >= 0, f"seed must be at least 0. Received: seed={self.seed}")
        if self.policy is None:
            sizes = [len(axis) for axis in self.space.axes.values()]
            rng = np.random.default_rng([self.seed, _OF_LOGITS])
            self.policy = Policy.draw(sizes, rng, self.learning_rate)

    def advance(self, evaluate: Evaluate) -> Step:
        """Samples a topology, measures it, and updates the policy.

        Args:
            evaluate: measures a topology. It is told the step, which its draws should follow from.
        """
        number = len(self.trace)
        rng = np.random.default_rng([self.seed, _OF_ACTIONS, number])
        action = self.policy.sample(rng)
        genotype = self.space.genotype(action, self.width)
        found = evaluate(genotype, number)
        earned = reward(
            [*(step.condition_number for step in self.trace), found.condition_number],
            [*(step.length for step in self.trace), found.length],
            window=self.window,
            compat=self.compat,
        )
        baseline, loss = self.policy.update(action, earned)
        entropy = self.policy.entropy
        step = Step(number, str(genotype), action, *found, earned, baseline, loss, entropy)
        self.trace.append(step)
        return step

    @property
    def derived(self) -> Genotype:
        """The likeliest topology."""
        return self.space.genotype(self.policy.most_likely(), self.width)

    def marginals(self, last: int) -> dict[str, dict[int, int]]:
        """How often each choice was sampled in the last steps, by the axis' name.

        Args:
            last: steps to count.
        """
        actions = [step.action for step in self.trace[-last:]]
        return {
            name: {choice: sum(a[i] == j for a in actions) for j, choice in enumerate(axis)}
            for i, (name, axis) in enumerate(self.space.axes.items())
        }

    def state(self) -> dict[str, Any]:
        """What `resume` goes on from, ready for JSON but for NaN."""
        return {"policy": self.policy.to_dict(), "trace": [step._asdict() for step in self.trace]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state.

        Args:
            state: of `state`, of a search with the same arguments.

        Raises:
            KeyError, TypeError, ValueError: a state that is none, or one of another space.
        """
        trace = [Step(**{**row, "action": tuple(row["action"])}) for row in state["trace"]]
        policy = Policy(**state["policy"])
        sizes = [len(axis) for axis in self.space.axes.values()]
        for name in ("logits", "means", "squares"):
            found = [x.size for x in getattr(policy, name)]
            require(
                found == sizes,
                f"policy must have {name} for {sizes} choices. Received: {name} for {found}",
            )
        for step in trace:
            fits = len(step.action) == len(sizes) and all(
                isinstance(i, int) and 0 <= i < n for i, n in zip(step.action, sizes, strict=True)
            )
            require(
                fits,
                f"trace must hold actions on axes of {sizes} choices. Received: {step.action} in "
                f"step {step.step}",
            )
        self.trace, self.policy = trace, policy
