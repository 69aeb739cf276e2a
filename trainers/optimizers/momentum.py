"""Stochastic gradient descent with momentum, as the papers fine-tune with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vmoe.trainers.optimizers import schedules
from keras_vmoe.trainers.optimizers.base import DecoupledOptimizer
from keras_vmoe.trainers.optimizers.variable_rules import Decay


@keras.saving.register_keras_serializable(package="keras_vmoe")
class Momentum(DecoupledOptimizer):
    """SGD with momentum, the learning rate outside: `m = momentum m + g`, `w = w - lr m`.

    `keras.optimizers.SGD` sums `lr g` instead: there a step keeps the learning rate of its day
    for as long as momentum carries it, which differs as soon as the rate changes.
    See `DecoupledOptimizer` for what all optimizers share.

    Args:
        learning_rate: a number or a schedule over updates.
        momentum: decay of the sum of gradients, from 0 up to 1; 0: plain SGD.
        weight_decay: a number, or pairs `(regex, number)` over the variables' paths.
        freeze: regexes of variables that are never changed.
        global_clipnorm: largest norm of all gradients together; None: no clipping.
        gradient_accumulation_steps: batches of one update; None: 1.
        ema_momentum: keep an average of the weights with this momentum; None: no average.
        name: of the optimizer.

    Raises:
        ValueError: for a value out of range; from `build`: for a regex that matches no variable.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013,
        with the learning rate as in its later uses.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(Momentum(1e-3, global_clipnorm=10.0), "mse")
    """

    def __init__(
        self,
        learning_rate: float | schedules.Schedule = 1e-2,
        momentum: float = 0.9,
        weight_decay: Decay = None,
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
        self.momentum = momentum

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        if self.momentum:
            self._momentums = self.add_optimizer_variables(variables, "momentum")

    def slots(self, index: int) -> list[keras.Variable]:
        return [self._momentums[index]] if self.momentum else []

    def rule(
        self, gradient: Any, slots: Sequence[Any], learning_rate: Any, step: Any, kind: Hashable
    ) -> tuple[Any, Sequence[Any]]:
        slots = [m * self.momentum + gradient for m in slots]
        (direction,) = slots or [gradient]
        return direction * ops.cast(learning_rate, gradient.dtype), slots

    def update_in_place(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        slots: Sequence[tf.Variable],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Operation:
        rate = tf.cast(learning_rate, gradient.dtype)
        if not slots:
            return tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=rate, delta=gradient
            )
        (momentum,) = slots
        return tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=momentum.handle,
            lr=rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, gradient.dtype),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}


def sgd(
    total_steps: int,
    steps_per_epoch: int,
    learning_rate: float = 3e-3,
    schedule: Callable[..., schedules.Schedule] = schedules.cosine,
    weight_decay: Decay = None,
    momentum: float = 0.9,
    clipnorm: float | None = 10.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    freeze: Sequence[str] = (),
) -> Momentum:
    """Returns SGD with momentum for a run, with its schedule.

    The defaults are those that V-MoE is fine-tuned with.

    Args:
        total_steps: steps (batches) of the whole run; the trainer gives it.
        steps_per_epoch: the trainer gives it.
        learning_rate: the peak.
        schedule: `cosine`, `linear`, `rsqrt` or `constant`; `@linear` in gin. Its steps are
            updates, so that its numbers stay as they are when batches are accumulated.
        weight_decay: a number for all variables, or pairs `(regex, number)` over their paths,
            of which the first that matches decides; multiplied by the current learning rate.
        momentum: decay of the sum of gradients; 0: plain SGD.
        clipnorm: largest norm of all gradients together; None: no clipping.
        accumulation_steps: steps (batches) of one update; a batch of `train.batch_size` times
            this number has the same gradient.
        ema_momentum: keep an average of the weights with this momentum, which evaluation and the
            saved model use; None: no average.
        freeze: regexes of variables that are never changed.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> optimizer = sgd(total_steps=100, steps_per_epoch=10, freeze=(".*router",))
    """
    return Momentum(
        schedules.of_run(schedule, learning_rate, total_steps, steps_per_epoch, accumulation_steps),
        momentum,
        weight_decay,
        freeze=freeze,
        global_clipnorm=clipnorm,
        gradient_accumulation_steps=accumulation_steps,
        ema_momentum=ema_momentum,
    )
