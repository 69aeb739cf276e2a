"""What progressive re-tokenization costs, and what it saves of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from keras_vmoe import models
from keras_vmoe.analysis.as_vit_rows import as_vit_rows
from keras_vmoe.analysis.model_rows import with_defaults
from keras_vmoe.analysis.phases import coarse_phases
from keras_vmoe.analysis.routing_costs import Counting
from keras_vmoe.analysis.rows import LayerProfile
from keras_vmoe.models.genotype import STRIDES
from keras_vmoe.models.variants import merge_arguments, variant
from keras_vmoe.ops.validation import require
from keras_vmoe.tables import aligned

Phases = Sequence[tuple[float, int, int]]


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """One phase of a training.

    Attributes:
        stride: pixels from one token to the next.
        epochs: its length.
        macs: multiply-accumulates of one image's forward pass.
    """

    stride: int
    epochs: float
    macs: int


@dataclasses.dataclass(frozen=True)
class RetokenizationCost:
    """What a training with coarse phases computes. `print` shows a table.

    Attributes:
        phases: a `PhaseCost` of each, the model's own tokens last.
    """

    phases: tuple[PhaseCost, ...]

    @property
    def share(self) -> float:
        """What is computed, as a share of a training with the model's own tokens throughout."""
        full = sum(phase.epochs for phase in self.phases) * self.phases[-1].macs
        return sum(phase.epochs * phase.macs for phase in self.phases) / full

    @property
    def saved(self) -> float:
        """What the phases save of the FLOPs of the training, as a share."""
        return 1.0 - self.share

    def to_dict(self) -> dict[str, Any]:
        """The phases and the share that they save, ready for JSON."""
        return {"phases": [dataclasses.asdict(phase) for phase in self.phases], "saved": self.saved}

    def __str__(self) -> str:
        full = self.phases[-1].macs
        rows = [("stride", "epochs", "GFLOPs", "of the model's")]
        rows += [
            (
                str(phase.stride),
                f"{phase.epochs:g}",
                f"{2e-9 * phase.macs:.3f}",
                f"{phase.macs / full:.1%}",
            )
            for phase in self.phases
        ]
        return "\n".join(
            [*aligned(rows, num_left=0), f"saves {self.saved:.1%} of the training's FLOPs"]
        )


def retokenization_cost(
    model: str | models.AsViT, phases: Phases, epochs: float, **overrides: Any
) -> RetokenizationCost:
    """Counts the FLOPs of each phase of a training with progressive re-tokenization.

    A step of training costs about three forward passes in each phase, so that shares of the forward
    pass are shares of the training.

    Args:
        model: an `AsViT`, or the id of one in `keras_vmoe.list_variants()`.
        phases: the coarse ones, `((until_epoch, stride, dilation), ...)`, as
            `train.retokenization` has them.
        epochs: length of the training.
        **overrides: arguments of the model's class.

    Raises:
        ValueError: another model, phases that a training would refuse, or that it is over before.

    Example:

    >>> from keras_vmoe import analysis
    >>> cost = analysis.retokenization_cost("asvit_l", ((40, 16, 5), (70, 8, 2)), epochs=300)
    >>> print(cost)
    stride  epochs  GFLOPs  of the model's
        16      40   2.494            5.6%
         8      30   9.424           21.1%
         4     230  44.716          100.0%
    saves 20.5% of the training's FLOPs

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 4.2 and table 6.
    """
    phases = coarse_phases(phases)
    ends = [phase.until_epoch for phase in phases]
    require(
        sorted({0, epochs, *ends}) == [0, *ends, epochs],
        "phases must end one after the other, above 0 and before the training. Received: "
        f"phases={tuple(map(tuple, phases))}, epochs={epochs}",
    )
    arguments = _arguments(model, overrides)
    counting = Counting(training=True, whole_slots=False, modality=None)
    lengths = [end - begin for begin, end in zip([0, *ends], [*ends, epochs], strict=True)]
    strides = [*(phase.stride for phase in phases), STRIDES[0]]
    return RetokenizationCost(
        tuple(
            PhaseCost(stride, length, _macs(as_vit_rows(arguments, counting, stride)))
            for stride, length in zip(strides, lengths, strict=True)
        )
    )


def _macs(rows: Sequence[LayerProfile]) -> int:
    return sum(row.macs for row in rows)


def _arguments(model: str | models.AsViT, overrides: dict[str, Any]) -> SimpleNamespace:
    cls, arguments = variant(model) if isinstance(model, str) else (type(model), None)
    require(
        cls is models.AsViT,
        f"model must be an AsViT or the id of one. Received: {model!r} of class {cls.__name__}",
    )
    arguments = merge_arguments(cls, model.arguments if arguments is None else arguments, overrides)
    return with_defaults(cls, arguments)
