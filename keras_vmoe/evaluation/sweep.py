"""Accuracy against compute: one trained model under many routings, without retraining."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import keras

from keras_vmoe import layers, models, ops
from keras_vmoe.evaluation.passes import (
    Batch,
    Evaluation,
    Evaluator,
    Loss,
    real_images,
    softmax_loss,
)
from keras_vmoe.ops.validation import require

#: Capacity factors that a sweep tries where none are given.
CAPACITY_FACTORS: tuple[float, ...] = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
#: In which order tokens are served: by position, or by the size of their gates.
PRIORITIES: dict[str, bool] = {"vanilla": False, "bpr": True}
DENSE = "dense"


class RoutingSetting(NamedTuple):
    """A way to route; `None` leaves what the model has.

    Attributes:
        num_selected: choices per token (k).
        capacity_factor: slots per choice (C).
        priority: `"vanilla"` or `"bpr"`.
    """

    num_selected: int | None = None
    capacity_factor: float | None = None
    priority: str | None = None

    def apply(self, model: keras.Model) -> keras.Model:
        """The model that routes so, on the same weights."""
        priority = None if self.priority is None else PRIORITIES[self.priority]
        if (self.num_selected, self.capacity_factor, priority) == (None, None, None):
            return model
        return models.with_routing(model, self.num_selected, self.capacity_factor, priority)


class SweepRow(NamedTuple):
    """One line of a sweep. Numbers are per image where that makes sense.

    Attributes:
        num_selected: choices per token (k); `None` under expert choice and for a dense model.
        capacity_factor: slots per choice as asked for (C).
        priority: `"vanilla"`, `"bpr"`, `"dense"`, or `None` under expert choice.
        capacity: slots per choice that there were: C rounded to whole slots.
        accuracy: on the images of the sweep.
        loss: mean over the images.
        kept: share of the choices that got a slot.
        macs: multiply-accumulates, experts counted on kept choices: those of the data.
        slot_macs: with experts counted on all slots, filled or not.
        milliseconds: median time of a batch divided by its images; `None` if it was not measured.
        images: how many.
        group_tokens: that are routed together (s); curves of other groups are others.
        kept_by_layer: MoE layer name to its share of kept choices.
    """

    num_selected: int | None
    capacity_factor: float | None
    priority: str | None
    capacity: float | None
    accuracy: float
    loss: float
    kept: float | None
    macs: float
    slot_macs: float
    milliseconds: float | None
    images: int
    group_tokens: int | None
    kept_by_layer: dict[str, float]


def routing_settings(
    model: keras.Model,
    num_selected: Sequence[int] | None = None,
    capacity_factors: Sequence[float] = CAPACITY_FACTORS,
    priorities: Sequence[str] | None = None,
) -> list[RoutingSetting]:
    """All combinations, checked against what the routers of a model take.

    Args:
        model: a model with MoE layers.
        num_selected: choices per token; the model's own by default.
        capacity_factors: slots per choice.
        priorities: of `"vanilla"` and `"bpr"`; both by default where the router knows them.

    Returns:
        The settings: by choices, then priority, then capacity.

    Raises:
        ValueError: a dense model, an empty list, a word or number that the routers do not take.

    Example:

    >>> from keras_vmoe import evaluation, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_experts=4,
    ... )
    >>> evaluation.routing_settings(model, capacity_factors=(0.5,))[0]
    RoutingSetting(num_selected=2, capacity_factor=0.5, priority='vanilla')
    """
    sparse = sparse_layers(model)
    of_tokens = all(layer.router.plan_type is ops.TokenChoicePlan for layer in sparse)
    if num_selected is None:
        own = {getattr(layer.router, "num_selected", None) for layer in sparse}
        num_selected = (own.pop() if len(own) == 1 else None,)
    if priorities is None:
        priorities = tuple(PRIORITIES) if of_tokens else (None,)
    given = (num_selected, capacity_factors, priorities)
    for name, values in zip(("num_selected", "capacity_factors", "priorities"), given, strict=True):
        require(len(values) > 0, f"{name} must hold at least one value. Received: none")
        require(
            len(set(values)) == len(values),
            f"{name} must hold different values. Received: {tuple(values)}",
        )
    known = ", ".join(map(repr, PRIORITIES))
    for priority in priorities:
        require(
            priority is None or priority in PRIORITIES,
            f"priorities must be of {known}. Received: {priority!r}",
        )
    combinations = itertools.product(num_selected, priorities, capacity_factors)
    settings = [RoutingSetting(k, c, priority) for k, priority, c in combinations]
    for setting, layer in itertools.product(settings, sparse):
        priority = None if setting.priority is None else PRIORITIES[setting.priority]
        layer.check_routing(setting.num_selected, setting.capacity_factor, priority)
    return settings


def sparse_layers(model: keras.Model) -> list[layers.MoEMLP]:
    """The MoE layers of a model whose routing can be swept.

    Raises:
        ValueError: none, or a soft router, whose slots are part of the weights.
    """
    found = models.moe_layers(model)
    require(
        bool(found),
        "model must hold at least one MoE layer of tokens; routing of whole images has no "
        f"capacity, and a dense model has no routing to sweep. {model.name!r} holds none",
    )
    soft = [layer.name for layer in found if layer.router.plan_type is ops.SoftPlan]
    require(
        not soft,
        "model must choose tokens or experts: soft routing has no capacity that could be swept. "
        f"Received: {', '.join(soft)}",
    )
    return found


def routing_sweep(
    model: keras.Model,
    batches: Iterable[Batch],
    settings: Sequence[RoutingSetting],
    *,
    dense: keras.Model | None = None,
    other_macs: float = 0.0,
    dense_macs: float = 0.0,
    loss: Loss = softmax_loss,
    exact_capacity: bool = True,
    timing_rounds: int = 5,
    on_call: Callable[[], None] = lambda: None,
) -> list[SweepRow]:
    """Evaluates one model under many routings, on the same weights and images.

    All take turns, batch by batch, so the data is read once. The time of each is the median over
    rounds in which all compute the logits of the first batch, one after the other; each round
    begins with another, and the rounds after one that compiles them count.

    Args:
        model: a functional model with MoE layers, from images to logits.
        batches: of `{"image", "label"}`, and "mask" where there is padding.
        settings: what to try, see `routing_settings`.
        dense: optional dense model that is measured beside them; the last row.
        other_macs: multiply-accumulates of one image through everything but the experts, which
            rows count themselves; 0: the rows hold those of the experts alone.
        dense_macs: of one image through the dense model.
        loss: from labels and logits to one number an image.
        exact_capacity: C rounded up to whole slots, in place of multiples of the routers'
            `capacity_multiple_of`; at small groups these lie far from C.
        timing_rounds: 0 measures no time.
        on_call: called each time a model has run on a batch; `sweep_calls` tells how often.

    Returns:
        A row per setting, in order, and the dense model's.

    Raises:
        ValueError: no settings, a setting that the model does not take, a dense `model`, a
            `dense` that is sparse or takes other images, no images.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ... )
    >>> batch = {"image": np.zeros((8, 32, 32, 3), "float32"), "label": np.zeros(8, int)}
    >>> settings = evaluation.routing_settings(model, capacity_factors=(0.25,), priorities=["bpr"])
    >>> rows = evaluation.routing_sweep(model, [batch], settings, timing_rounds=1)
    >>> rows[0].kept <= 0.25 * 1.02  # 69 of 272 choices, in whole slots
    True

    Reference: Riquelme et al. 2021, arXiv 2106.05974, section 4.3.
    """
    require(len(settings) > 0, "settings must hold at least one. Received: none")
    sparse_layers(model)
    _check_dense(dense, model)
    evaluators = [Evaluator(setting.apply(model), loss, exact_capacity) for setting in settings]
    if dense is not None:
        evaluators.append(Evaluator(dense, loss))
    seconds: list[list[float]] = [[] for _ in evaluators]
    size = 0
    with _quiet_retracing():
        for number, batch in enumerate(batches):
            for evaluator in evaluators:
                evaluator.add(batch)
                on_call()
            if number == 0:
                size = len(real_images(batch, model)[0])
                for turn in range(timing_rounds + 1 if timing_rounds else 0):
                    for place in range(len(evaluators)):
                        index = (turn + place) % len(evaluators)
                        taken = evaluators[index].seconds(batch)
                        if turn > 0:
                            seconds[index].append(taken)
                        on_call()
    results = [evaluator.result() for evaluator in evaluators]
    times = [1e3 * median(taken) / size if taken else None for taken in seconds]
    parts = zip(settings, results, times, strict=False)  # without the dense model
    rows = [_row(setting, result, other_macs, time) for setting, result, time in parts]
    if dense is not None:
        rows.append(_dense_row(results[-1], dense_macs, times[-1]))
    return rows


@contextlib.contextmanager
def _quiet_retracing() -> Iterator[None]:
    """Holds back, within a `with` block, TensorFlow's warning that many graphs are traced."""

    def keep(record: logging.LogRecord) -> bool:
        return "tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def sweep_calls(num_batches: int, num_models: int, timing_rounds: int = 5) -> int:
    """How often `routing_sweep` runs a model on a batch.

    Example:

    >>> sweep_calls(num_batches=10, num_models=4, timing_rounds=5)
    64
    """
    return (num_batches + timing_rounds + (timing_rounds > 0)) * num_models


def _check_dense(dense: keras.Model | None, model: keras.Model) -> None:
    if dense is None:
        return
    require(
        not models.is_sparse(dense),
        f"dense must be a model without MoE layers. Received: {dense.name!r}, which holds some",
    )
    for what in ("input_shape", "output_shape"):
        require(
            getattr(dense, what)[1:] == getattr(model, what)[1:],
            f"dense must have the {what} of model, {getattr(model, what)}. "
            f"Received: {getattr(dense, what)}",
        )


def _row(
    setting: RoutingSetting, result: Evaluation, other_macs: float, milliseconds: float | None
) -> SweepRow:
    used = result.layers.values()
    choices = sum(layer.choices for layer in used)
    return SweepRow(
        num_selected=setting.num_selected,
        capacity_factor=setting.capacity_factor,
        priority=setting.priority,
        capacity=sum(layer.slots for layer in used) / choices,
        accuracy=result.accuracy,
        loss=result.loss,
        kept=1.0 - result.dropped,
        macs=other_macs + sum(layer.rows * layer.row_macs for layer in used),
        slot_macs=other_macs + sum(layer.slots * layer.row_macs for layer in used),
        milliseconds=milliseconds,
        images=result.images,
        group_tokens=max(layer.group_tokens for layer in used),
        kept_by_layer={name: 1.0 - layer.dropped for name, layer in result.layers.items()},
    )


def _dense_row(result: Evaluation, macs: float, milliseconds: float | None) -> SweepRow:
    return SweepRow(
        num_selected=None,
        capacity_factor=None,
        priority=DENSE,
        capacity=None,
        accuracy=result.accuracy,
        loss=result.loss,
        kept=None,
        macs=macs,
        slot_macs=macs,
        milliseconds=milliseconds,
        images=result.images,
        group_tokens=None,
        kept_by_layer={},
    )
