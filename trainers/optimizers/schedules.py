"""Learning rates over a run: a warm-up from 0, then a decay. A step is an update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ConstantRate(Schedule):
    """A linear warm-up from 0, then the peak.

    Args:
        peak: the learning rate.
        warmup_steps: steps of the warm-up.

    Example:
        >>> [round(float(ConstantRate(0.5, warmup_steps=2)(step)), 2) for step in range(4)]
        [0.0, 0.25, 0.5, 0.5]
    """

    def __init__(self, peak: float, warmup_steps: int = 0) -> None:
        self.peak, self.warmup_steps = peak, warmup_steps

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        return self.peak * _warm(step, self.warmup_steps)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class LinearDecay(Schedule):
    """A linear warm-up from 0, then a straight line from the peak to the final rate.

    Args:
        peak: the highest learning rate.
        total_steps: steps of the run.
        warmup_steps: of them, the warm-up.
        final: the learning rate at `total_steps` and after.

    Example:
        >>> schedule = LinearDecay(1.0, total_steps=6, warmup_steps=2, final=0.5)
        >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 4, 6)]
        [0.0, 0.5, 1.0, 0.75, 0.5]
    """

    def __init__(
        self, peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0
    ) -> None:
        self.peak, self.total_steps = peak, total_steps
        self.warmup_steps, self.final = warmup_steps, final

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        length = max(self.total_steps - self.warmup_steps, 1)
        done = ops.clip((step - self.warmup_steps) / length, 0.0, 1.0)
        return _warm(step, self.warmup_steps) * (self.peak * (1.0 - done) + self.final * done)

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "final": self.final,
        }


@keras.saving.register_keras_serializable(package="keras_vmoe")
class RsqrtDecay(Schedule):
    """A linear warm-up from 0, then one over the square root of time, then a line to 0.

    With `t` the steps since the warm-up, the rate is `peak / sqrt(1 + t / timescale)`, until
    `cooldown_steps` before the end; from there a straight line takes it to 0 at `total_steps`,
    and goes on below it, as the reference's does. The optimizers here take a rate below 0 for 0.

    Args:
        peak: the highest learning rate.
        total_steps: steps of the run.
        warmup_steps: of them, the warm-up.
        timescale: steps after which the rate has fallen to 71 % of the peak.
        cooldown_steps: length of the last line; 0: none.
        first_step: steps that an earlier run took; this schedule goes on there.

    Reference:
        Zhai et al., Scaling vision transformers, 2022, section 3.5.

    Example:
        >>> schedule = RsqrtDecay(1.0, 20, warmup_steps=2, timescale=4, cooldown_steps=6)
        >>> [round(float(schedule(step)), 3) for step in (1, 2, 6, 14, 17, 20)]
        [0.5, 1.0, 0.707, 0.5, 0.25, 0.0]
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        timescale: int = 10_000,
        cooldown_steps: int = 0,
        first_step: int = 0,
    ) -> None:
        self.peak, self.total_steps, self.warmup_steps = peak, total_steps, warmup_steps
        self.timescale, self.cooldown_steps = timescale, cooldown_steps
        self.first_step = first_step

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32") + self.first_step
        decayed, cool = step, 1.0
        if self.cooldown_steps:
            last = float(self.first_step + self.total_steps)
            decayed = ops.minimum(step, last - self.cooldown_steps)
            cool = ops.minimum((last - step) / self.cooldown_steps, 1.0)
        time = ops.maximum(decayed - self.warmup_steps, 0.0)
        fall = ops.rsqrt(1.0 + time / self.timescale)
        return self.peak * _warm(step, self.warmup_steps) * fall * cool

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "timescale": self.timescale,
            "cooldown_steps": self.cooldown_steps,
            "first_step": self.first_step,
        }


def _warm(step: Any, warmup_steps: int) -> Any:
    return ops.minimum(step / warmup_steps, 1.0) if warmup_steps else ops.ones_like(step)


# What gin files name: each makes the schedule of a run of known length.


def cosine(
    peak: float,
    total_steps: int,
    steps_per_epoch: float | None = None,
    warmup_steps: int | None = None,
    warmup_epochs: float = 0.0,
    final: float | None = None,
    final_fraction: float | None = None,
) -> Schedule:
    """Returns a linear warm-up from 0, then half a cosine to the final rate.

    Args:
        peak: the highest learning rate; the optimizer gives it.
        total_steps: steps of the whole run; the optimizer gives it.
        steps_per_epoch: the optimizer gives it; needed for `warmup_epochs` only.
        warmup_steps: length of the warm-up; it is cut to half of the run.
        warmup_epochs: the same in epochs; give one of both.
        final: the learning rate at the end; 0 by default.
        final_fraction: the same as a share of the peak; give one of both.

    Raises:
        ValueError: if both of a pair are given, or a value is out of range.

    Reference:
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017, eq. 5.

    Example:
        >>> schedule = cosine(1.0, total_steps=100, warmup_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 10, 55, 100)]
        [0.0, 1.0, 0.5, 0.0]
    """
    warmup = _warmup(total_steps, steps_per_epoch, warmup_steps, warmup_epochs)
    peak = float(peak)  # of a whole number, Keras makes a schedule of whole numbers
    warm = {"warmup_target": peak, "warmup_steps": warmup} if warmup else {}
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        decay_steps=total_steps - warmup,
        alpha=_final(peak, final, final_fraction) / peak,
        **warm,
    )


def linear(
    peak: float,
    total_steps: int,
    steps_per_epoch: float | None = None,
    warmup_steps: int | None = None,
    warmup_epochs: float = 0.0,
    final: float | None = None,
    final_fraction: float | None = None,
) -> LinearDecay:
    """Returns a linear warm-up from 0, then a straight line to the final rate.

    Args:
        peak: the highest learning rate; the optimizer gives it.
        total_steps: steps of the whole run; the optimizer gives it.
        steps_per_epoch: the optimizer gives it; needed for `warmup_epochs` only.
        warmup_steps: length of the warm-up; it is cut to half of the run.
        warmup_epochs: the same in epochs; give one of both.
        final: the learning rate at the end; 0 by default.
        final_fraction: the same as a share of the peak; give one of both.

    Raises:
        ValueError: if both of a pair are given, or a value is out of range.

    Example:
        >>> round(float(linear(1.0, total_steps=100, warmup_steps=10, final=0.1)(55)), 3)
        0.55
    """
    warmup = _warmup(total_steps, steps_per_epoch, warmup_steps, warmup_epochs)
    return LinearDecay(peak, total_steps, warmup, _final(peak, final, final_fraction))


def rsqrt(
    peak: float,
    total_steps: int,
    steps_per_epoch: float | None = None,
    warmup_steps: int | None = None,
    warmup_epochs: float = 0.0,
    timescale: int = 10_000,
    cooldown_steps: int = 0,
    first_step: int = 0,
) -> RsqrtDecay:
    """Returns a linear warm-up from 0, an inverse square root, and a line to 0 at the end.

    Args:
        peak: the highest learning rate; the optimizer gives it.
        total_steps: steps of the whole run; the optimizer gives it.
        steps_per_epoch: the optimizer gives it; needed for `warmup_epochs` only.
        warmup_steps: length of the warm-up; it is cut to half of the run.
        warmup_epochs: the same in epochs; give one of both.
        timescale: steps of the decay's unit of time, see `RsqrtDecay`.
        cooldown_steps: length of the line to 0; it is cut to what the warm-up leaves. 0: none.
        first_step: steps of the run whose weights this one starts from. The schedule goes on there
            as if it were one run: past that run's warm-up, at its decayed rate.

    Raises:
        ValueError: if both of a pair are given, or a value is out of range.

    Example:
        >>> round(float(rsqrt(1.0, total_steps=100, timescale=10)(30)), 3)
        0.5
        >>> round(float(rsqrt(1.0, total_steps=100, timescale=10, first_step=30)(0)), 3)
        0.5
    """
    _check_positive("timescale", timescale)
    _check_not_negative("cooldown_steps", cooldown_steps)
    _check_not_negative("first_step", first_step)
    _check_positive("total_steps", total_steps)
    warmup = _warmup(first_step + total_steps, steps_per_epoch, warmup_steps, warmup_epochs)
    cooldown = min(cooldown_steps, total_steps - max(warmup - first_step, 0))
    return RsqrtDecay(peak, total_steps, warmup, timescale, cooldown, first_step)


def constant(
    peak: float,
    total_steps: int,
    steps_per_epoch: float | None = None,
    warmup_steps: int | None = None,
    warmup_epochs: float = 0.0,
) -> ConstantRate:
    """Returns a linear warm-up from 0, then the peak to the end.

    Args:
        peak: the learning rate; the optimizer gives it.
        total_steps: steps of the whole run; the optimizer gives it.
        steps_per_epoch: the optimizer gives it; needed for `warmup_epochs` only.
        warmup_steps: length of the warm-up; it is cut to half of the run.
        warmup_epochs: the same in epochs; give one of both.

    Raises:
        ValueError: if both lengths are given, or a value is out of range.

    Example:
        >>> round(float(constant(0.1, total_steps=100, warmup_steps=10)(5)), 3)
        0.05
    """
    return ConstantRate(peak, _warmup(total_steps, steps_per_epoch, warmup_steps, warmup_epochs))


def of_run(
    schedule: Callable[..., Schedule],
    learning_rate: float,
    total_steps: int,
    steps_per_epoch: float,
    accumulation_steps: int,
) -> Schedule:
    """Returns the schedule of a run, counted in updates.

    Args:
        schedule: `cosine` or one like it.
        learning_rate: the peak.
        total_steps: batches of the whole run.
        steps_per_epoch: batches of an epoch.
        accumulation_steps: batches of an update.

    Raises:
        ValueError: for a wrong number, or if the run is over before its first update.
    """
    _check_positive("learning_rate", learning_rate)
    _check_positive("accumulation_steps", accumulation_steps)
    if total_steps < accumulation_steps:
        raise ValueError(
            f"accumulation_steps={accumulation_steps} is more than the {total_steps} steps of the "
            "run, which would be over before the first update: lower it or train longer"
        )
    return schedule(
        peak=learning_rate,
        total_steps=total_steps // accumulation_steps,
        steps_per_epoch=steps_per_epoch / accumulation_steps,
    )


def _warmup(
    total_steps: int, steps_per_epoch: float | None, steps: int | None, epochs: float
) -> int:
    _check_positive("total_steps", total_steps)
    _check_not_negative("warmup_epochs", epochs)
    _check_not_negative("warmup_steps", steps or 0)
    if steps is not None and epochs:
        raise ValueError(f"warmup_steps={steps} and warmup_epochs={epochs}: give one of both")
    if epochs and steps_per_epoch is None:
        raise ValueError(f"warmup_epochs={epochs} needs steps_per_epoch; or give warmup_steps")
    if steps is None:
        steps = round(epochs * (steps_per_epoch or 0))
    return min(steps, total_steps // 2)


def _final(peak: float, final: float | None, fraction: float | None) -> float:
    if final is not None and fraction is not None:
        raise ValueError(f"final={final} and final_fraction={fraction}: give one of both")
    _check_not_negative("final", final or 0.0)
    _check_not_negative("final_fraction", fraction or 0.0)
    return peak * fraction if fraction is not None else final or 0.0


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value!r} must be positive")


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}={value!r} must not be negative")
