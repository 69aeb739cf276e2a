"""Progressive re-tokenization: a run that begins with few coarse tokens and ends with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_vmoe import models
from keras_vmoe.analysis.phases import Phase, coarse_phases


def phases_of(setting: Any) -> tuple[Phase, ...]:
    """The coarse phases of a `train.retokenization`; the model's own tokens follow them.

    Args:
        setting: `((until_epoch, stride, dilation), ...)`, epochs rising and strides falling; empty:
            none.

    Raises:
        ValueError: anything else; the message shows it, and an example.

    Example:
        >>> phases_of(((40, 16, 5), (70, 8, 2)))[1].stride
        8
    """
    return coarse_phases(setting, "train.retokenization")


class Retokenization:
    """Which model trains at which step: one set of weights in graphs of coarser tokens.

    Args:
        model: the run's, an `AsViT`.
        phases: the coarse ones.
        steps_per_epoch: batches of one epoch.
        total_steps: length of the run; its last phase has the tokens of `model`.

    Raises:
        ValueError: a model that cannot be re-tokenized, a phase without a step, or a run that is
            over before its tokens are those of the model.
    """

    def __init__(
        self,
        model: keras.Model,
        phases: Sequence[Phase],
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.phases = tuple(phases)
        self._ends = [round(phase.until_epoch * steps_per_epoch) for phase in phases]
        if self._ends and self._ends[-1] >= total_steps:
            raise ValueError(
                f"train.retokenization ends with epoch {phases[-1].until_epoch:g}, step "
                f"{self._ends[-1]}, but the run ends with step {total_steps}: the rest of it must "
                "have the model's own tokens; end the phases earlier, or train longer"
            )
        for phase, begin, end in zip(phases, [0, *self._ends], self._ends, strict=False):
            if end <= begin:
                raise ValueError(
                    f"train.retokenization must give each phase a step. Received: the phase of "
                    f"stride {phase.stride} ends with epoch {phase.until_epoch:g}, step {end}, "
                    f"where it begins, of {steps_per_epoch} steps an epoch; end it later, or leave "
                    "it out"
                )
        coarse = [models.retokenized(model, phase.stride, phase.dilation) for phase in phases]
        self.models = (*coarse, model)

    def at(self, step: int) -> int:
        """The number of the phase in which the step after `step` others is taken."""
        return sum(step >= end for end in self._ends)

    def stride(self, step: int) -> int:
        """Pixels from one token to the next in the phase that step `step` was taken in."""
        phase = self.at(step - 1)
        own = models.AsViT.STRIDE
        return self.phases[phase].stride if phase < len(self.phases) else own

    def __str__(self) -> str:
        parts = [f"stride {p.stride} to epoch {p.until_epoch:g}" for p in self.phases]
        return ", ".join([*parts, f"then {models.AsViT.STRIDE}"])
