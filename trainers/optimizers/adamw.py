"""Adam with decoupled weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vmoe.trainers.optimizers import schedules
from keras_vmoe.trainers.optimizers.base import DecoupledOptimizer
from keras_vmoe.trainers.optimizers.variable_rules import Decay


@keras.saving.register_keras_serializable(package="keras_vmoe")
class AdamW(DecoupledOptimizer):
    """Adam with weight decay by regex; see `DecoupledOptimizer` for what all optimizers share.

    Args:
        learning_rate: a number or a schedule over updates.
        weight_decay: a number, or pairs `(regex, number)` over the variables' paths.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the corrected second moment, as the paper and optax have
            it. Keras adds it to the uncorrected root, where it weighs 30 times as much at first.
        freeze: regexes of variables that are never changed.
        global_clipnorm: largest norm of all gradients together; None: no clipping.
        gradient_accumulation_steps: batches of one update; None: 1.
        ema_momentum: keep an average of the weights with this momentum; None: no average.
        name: of the optimizer.

    Raises:
        ValueError: for a value out of range; from `build`: for a regex that matches no variable.

    Reference:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1.
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(AdamW(1e-3, weight_decay=((".*kernel", 0.1),)), "mse")
    """

    def __init__(
        self,
        learning_rate: float | schedules.Schedule = 1e-3,
        weight_decay: Decay = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        freeze: Sequence[str] = (),
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        ema_momentum: float | None = None,
        name: str | None = None,
    ) -> None:
        for which, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{which}={beta!r} must be in [0, 1)")
        super().__init__(
            learning_rate,
            weight_decay,
            freeze,
            global_clipnorm,
            gradient_accumulation_steps,
            ema_momentum,
            name,
        )
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def slots(self, index: int) -> list[keras.Variable]:
        return [self._momentums[index], self._velocities[index]]

    def rule(
        self, gradient: Any, slots: Sequence[Any], learning_rate: Any, step: Any, kind: Hashable
    ) -> tuple[Any, Sequence[Any]]:
        m, v = slots
        m = m + (gradient - m) * (1.0 - self.beta_1)
        v = v + (ops.square(gradient) - v) * (1.0 - self.beta_2)
        rate, small = self._scalars(learning_rate, step, self.beta_1, self.beta_2)
        return m * ops.cast(rate, m.dtype) / (ops.sqrt(v) + ops.cast(small, m.dtype)), [m, v]

    def update_in_place(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        slots: Sequence[tf.Variable],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Operation:
        momentum, velocity = slots
        # The kernel's betas are in the variable's dtype, where 1 - 0.999 is off by 1e-5; so the
        # weights of the moments are corrected for those betas. It would do so itself, but from
        # powers in that dtype.
        beta_1, beta_2 = (
            float(np.array(beta, gradient.dtype.as_numpy_dtype))
            for beta in (self.beta_1, self.beta_2)
        )
        rate, small = self._scalars(learning_rate, step, beta_1, beta_2)
        # `tf.cast` of a Python number would go by float32.
        constants = {"beta1": beta_1, "beta2": beta_2, "beta1_power": 0.0, "beta2_power": 0.0}
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            grad=gradient,
            lr=tf.cast(rate, gradient.dtype),
            epsilon=tf.cast(small, gradient.dtype),
            **{name: tf.constant(value, gradient.dtype) for name, value in constants.items()},
        )

    @property
    def has_kernel(self) -> bool:
        # Of a beta that float32 rounds to 1 the kernel would divide nothing by nothing.
        return super().has_kernel and np.float32(max(self.beta_1, self.beta_2)) < 1

    def _scalars(
        self, learning_rate: Any, step: Any, beta_1: float, beta_2: float
    ) -> tuple[Any, Any]:
        # lr * (m / mean) / (sqrt(v) / root + epsilon), with the scalars taken together.
        mean, root = _weight(beta_1, step), ops.sqrt(_weight(beta_2, step))
        return learning_rate * root / mean, self.epsilon * root

    def get_config(self) -> dict[str, Any]:
        own = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **own}


def _weight(beta: float, step: Any) -> Any:
    # 1 - beta^step, the weight that a moment has gathered; written so, float32 is exact enough
    # for the first steps.
    return -ops.expm1(step * math.log(beta)) if beta else ops.ones_like(step)


def adamw(
    total_steps: int,
    steps_per_epoch: int,
    learning_rate: float = 1e-3,
    schedule: Callable[..., schedules.Schedule] = schedules.cosine,
    weight_decay: Decay = ((".*kernel", 0.05),),
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    clipnorm: float | None = 1.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    freeze: Sequence[str] = (),
) -> AdamW:
    """Returns AdamW for a run, with its schedule.

    Args:
        total_steps: steps (batches) of the whole run; the trainer gives it.
        steps_per_epoch: the trainer gives it.
        learning_rate: the peak.
        schedule: `cosine`, `linear`, `rsqrt` or `constant`; `@linear` in gin. Its steps are
            updates, so that its numbers stay as they are when batches are accumulated.
        weight_decay: a number for all variables, or pairs `(regex, number)` over their paths,
            of which the first that matches decides; multiplied by the current learning rate.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the corrected second moment.
        clipnorm: largest norm of all gradients together; None: no clipping.
        accumulation_steps: steps (batches) of one update; a batch of `train.batch_size` times
            this number has the same gradient.
        ema_momentum: keep an average of the weights with this momentum, which evaluation and the
            saved model use; None: no average.
        freeze: regexes of variables that are never changed.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> optimizer = adamw(total_steps=100, steps_per_epoch=10, weight_decay=0.1)
    """
    return AdamW(
        schedules.of_run(schedule, learning_rate, total_steps, steps_per_epoch, accumulation_steps),
        weight_decay,
        beta_1,
        beta_2,
        epsilon,
        freeze=freeze,
        global_clipnorm=clipnorm,
        gradient_accumulation_steps=accumulation_steps,
        ema_momentum=ema_momentum,
    )
