"""The optimizers that gin files name, made from those of Keras."""

from __future__ import annotations

from collections.abc import Sequence

import keras


def warmup_cosine(
    learning_rate: float, total_steps: int, warmup_steps: int, final_fraction: float = 0.0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a linear warm-up from 0 followed by a cosine to `final_fraction` of the peak.

    Args:
        learning_rate: the peak.
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up; less than `total_steps`.
        final_fraction: what is left of the peak at the end.

    Reference:
        Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017, eq. 5.
    """
    warm = {"warmup_target": learning_rate, "warmup_steps": warmup_steps} if warmup_steps else {}
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(total_steps - warmup_steps, 1),
        alpha=final_fraction,
        **warm,
    )


def adamw(
    total_steps: int,
    steps_per_epoch: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup_epochs: float = 0.0,
    final_fraction: float = 0.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    clipnorm: float | None = 1.0,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns AdamW with warm-up, cosine decay and clipping by the global norm.

    Args:
        total_steps: steps of the whole run; the trainer gives it.
        steps_per_epoch: the trainer gives it.
        learning_rate: the peak.
        weight_decay: decoupled, multiplied by the learning rate of the moment as AdamW has it.
        warmup_epochs: length of the warm-up; at most half of the run is warm-up.
        final_fraction: what is left of the peak learning rate at the end.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the second moment.
        clipnorm: largest global norm of the gradients; None: no clipping.
        ema_momentum: keep an average of the weights with this momentum, which evaluation and the
            saved model use; None: no average.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019.

    Example:
        >>> optimizer = adamw(total_steps=100, steps_per_epoch=10, warmup_epochs=1.0)
    """
    warmup_steps = min(round(warmup_epochs * steps_per_epoch), total_steps // 2)
    return keras.optimizers.AdamW(
        learning_rate=warmup_cosine(learning_rate, total_steps, warmup_steps, final_fraction),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        global_clipnorm=clipnorm,
        use_ema=ema_momentum is not None,
        ema_momentum=0.99 if ema_momentum is None else ema_momentum,
    )


def exclude_from_weight_decay(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], names: Sequence[str]
) -> None:
    """Takes variables out of the weight decay, before the optimizer is built.

    Args:
        optimizer: one with decoupled weight decay; others have nothing to be taken out of.
        variables: the model's trainable variables.
        names: words; a variable whose path holds one of them is not decayed.
    """
    if getattr(optimizer, "weight_decay", None) is None or not names:
        return
    excluded = [v for v in variables if any(name in v.path for name in names)]
    optimizer.exclude_from_weight_decay(var_list=excluded)
