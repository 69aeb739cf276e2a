"""Adafactor as big vision transformers are trained with it, kept from mixing experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vmoe.trainers.optimizers import schedules
from keras_vmoe.trainers.optimizers.base import DecoupledOptimizer
from keras_vmoe.trainers.optimizers.variable_rules import Decay

# Variables whose first axis counts experts.
EXPERTS = r"(^|/)experts(_\d+)?/"


def factored_axes(
    shape: Sequence[int], min_dim_size_to_factor: int, stacked: bool = False
) -> tuple[int, int] | None:
    """Returns the two axes over which the second moment of a variable is factored, or None.

    They are the two longest, as the reference has it, but never the axis of experts: a kernel
    `[e, d, h]` has a row `[e, d]` and a column `[e, h]` however many experts there are, and a
    bias `[e, h]` is kept whole. The reference has to ask for a `min_dim_size_to_factor` above
    the number of experts for that.

    Args:
        shape: of the variable.
        min_dim_size_to_factor: both axes are at least this long, or nothing is factored.
        stacked: whether the first axis counts experts.

    Reference:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory cost, 2018,
        section 3.

    Example:
        >>> factored_axes((64, 40, 50), 32, stacked=True)
        (1, 2)
        >>> factored_axes((64, 50), 32, stacked=True)
    """
    axes = range(1 if stacked else 0, len(shape))
    longest = sorted(axes, key=lambda axis: shape[axis])[-2:]
    if len(longest) < 2 or shape[longest[0]] < min_dim_size_to_factor:
        return None
    return tuple(sorted(longest))


@keras.saving.register_keras_serializable(package="keras_vmoe")
class Adafactor(DecoupledOptimizer):
    """Adafactor in the form of "Scaling vision transformers", for stacked experts.

    The gradient is divided by the root of its second moment, which is kept as a row and a column
    where `factored_axes` finds two; then comes a first moment. The update is neither clipped nor
    scaled by the parameters, so that learning rates are those of Adam.
    See `DecoupledOptimizer` for what all optimizers share.

    Args:
        learning_rate: a number or a schedule over updates.
        weight_decay: a number, or pairs `(regex, number)` over the variables' paths.
        momentum: decay of the first moment; 0: none is kept.
        decay_exponent: at update t = 1, 2, … the second moment decays by `1 - t^-decay_exponent`,
        max_decay: but by no more than this.
        epsilon: added to the squares.
        min_dim_size_to_factor: both axes are at least this long, or nothing is factored.
        stacked: regex of the variables whose first axis counts experts; that axis is never
            factored.
        freeze: regexes of variables that are never changed.
        global_clipnorm: largest norm of all gradients together; None: no clipping.
        gradient_accumulation_steps: batches of one update; None: 1.
        ema_momentum: keep an average of the weights with this momentum; None: no average.
        name: of the optimizer.

    Raises:
        ValueError: for a value out of range; from `build`: for a regex that matches no variable.

    Reference:
        Zhai et al., Scaling vision transformers, 2022, section 3.4; Shazeer and Stern, Adafactor:
        adaptive learning rates with sublinear memory cost, 2018, algorithm 4.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(Adafactor(1e-3, weight_decay=0.1), "mse")
    """

    def __init__(
        self,
        learning_rate: float | schedules.Schedule = 1e-3,
        weight_decay: Decay = None,
        momentum: float = 0.9,
        decay_exponent: float = 0.8,
        max_decay: float = 0.999,
        epsilon: float = 1e-30,
        min_dim_size_to_factor: int = 32,
        stacked: str = EXPERTS,
        freeze: Sequence[str] = (),
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        ema_momentum: float | None = None,
        name: str | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum!r} must be in [0, 1)")
        super().__init__(
            learning_rate,
            weight_decay,
            freeze,
            global_clipnorm,
            gradient_accumulation_steps,
            ema_momentum,
            name,
        )
        self.momentum, self.epsilon = momentum, epsilon
        self.decay_exponent, self.max_decay = decay_exponent, max_decay
        self.min_dim_size_to_factor, self.stacked = min_dim_size_to_factor, stacked

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        # A row and a column, or the whole.
        self._seconds = [self._add_second_moment(variable) for variable in variables]
        if self.momentum:
            self._momentums = self.add_optimizer_variables(variables, "momentum")

    def _axes(self, variable: Any) -> tuple[int, int] | None:
        reference = self._trainable_variables[self._get_variable_index(variable)]
        stacked = re.search(self.stacked, reference.path) is not None
        return factored_axes(tuple(variable.shape), self.min_dim_size_to_factor, stacked)

    def _add_second_moment(self, variable: keras.Variable) -> list[keras.Variable]:
        axes, shape = self._axes(variable), list(variable.shape)
        if axes is None:
            return [self.add_variable_from_reference(variable, "second")]
        name = variable.path.replace("/", "_")
        return [
            self.add_variable(
                shape[:left_out] + shape[left_out + 1 :],
                dtype=variable.dtype,
                name=f"{name}_{kind}",
            )
            for kind, left_out in (("row", axes[1]), ("column", axes[0]))
        ]

    def slots(self, index: int) -> list[keras.Variable]:
        return [*self._seconds[index], *([self._momentums[index]] if self.momentum else [])]

    def kind(self, index: int) -> Hashable:
        return self._axes(self._trainable_variables[index])

    def rule(
        self, gradient: Any, slots: Sequence[Any], learning_rate: Any, step: Any, kind: Hashable
    ) -> tuple[Any, Sequence[Any]]:
        seconds, momentums = (slots[:-1], slots[-1:]) if self.momentum else (slots, [])
        one_over_root, seconds = self._one_over_root(gradient, seconds, step, kind)
        update = gradient * one_over_root
        momentums = [m + (update - m) * (1.0 - self.momentum) for m in momentums]
        (update,) = momentums or [update]
        return update * ops.cast(learning_rate, update.dtype), [*seconds, *momentums]

    def _one_over_root(
        self, gradient: Any, seconds: Sequence[Any], step: Any, axes: tuple[int, int] | None
    ) -> tuple[Any, list[Any]]:
        squares = ops.square(gradient) + self.epsilon
        step = ops.cast(step, gradient.dtype)
        share = ops.maximum(ops.power(step, -self.decay_exponent), 1.0 - self.max_decay)
        if axes is None:
            (whole,) = seconds
            whole = whole + (squares - whole) * share
            return ops.rsqrt(whole), [whole]
        (row, column), (first, last) = seconds, axes
        row = row + (ops.mean(squares, axis=last) - row) * share
        column = column + (ops.mean(squares, axis=first) - column) * share
        # first < last, so that `first` is the same axis in the row.
        rows = ops.rsqrt(row / ops.mean(row, axis=first, keepdims=True))
        return ops.expand_dims(rows, last) * ops.expand_dims(ops.rsqrt(column), first), [
            row,
            column,
        ]

    def get_config(self) -> dict[str, Any]:
        names = ("momentum", "decay_exponent", "max_decay", "epsilon")
        names += ("min_dim_size_to_factor", "stacked")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def adafactor(
    total_steps: int,
    steps_per_epoch: int,
    learning_rate: float = 1e-3,
    schedule: Callable[..., schedules.Schedule] = schedules.cosine,
    weight_decay: Decay = None,
    momentum: float = 0.9,
    decay_exponent: float = 0.8,
    max_decay: float = 0.999,
    epsilon: float = 1e-30,
    min_dim_size_to_factor: int = 32,
    clipnorm: float | None = 1.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    freeze: Sequence[str] = (),
) -> Adafactor:
    """Returns Adafactor for a run, with its schedule.

    Args:
        total_steps: steps (batches) of the whole run; the trainer gives it.
        steps_per_epoch: the trainer gives it.
        learning_rate: the peak.
        schedule: `cosine`, `linear`, `rsqrt` or `constant`; `@rsqrt` in gin. Its steps are
            updates, so that its numbers stay as they are when batches are accumulated.
        weight_decay: a number for all variables, or pairs `(regex, number)` over their paths,
            of which the first that matches decides; multiplied by the current learning rate.
        momentum: decay of the first moment; 0: none is kept.
        decay_exponent: of the second moment, see `Adafactor`.
        max_decay: largest decay of the second moment.
        epsilon: added to the squares.
        min_dim_size_to_factor: both axes are at least this long, or nothing is factored.
        clipnorm: largest norm of all gradients together; None: no clipping.
        accumulation_steps: steps (batches) of one update; a batch of `train.batch_size` times
            this number has the same gradient.
        ema_momentum: keep an average of the weights with this momentum, which evaluation and the
            saved model use; None: no average.
        freeze: regexes of variables that are never changed.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> optimizer = adafactor(1000, 100, schedule=schedules.rsqrt, weight_decay=1e-4)
    """
    return Adafactor(
        schedules.of_run(schedule, learning_rate, total_steps, steps_per_epoch, accumulation_steps),
        weight_decay,
        momentum,
        decay_exponent,
        max_decay,
        epsilon,
        min_dim_size_to_factor,
        freeze=freeze,
        global_clipnorm=clipnorm,
        gradient_accumulation_steps=accumulation_steps,
        ema_momentum=ema_momentum,
    )
