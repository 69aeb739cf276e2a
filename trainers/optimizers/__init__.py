"""Optimizers and learning-rate schedules of the papers, as gin files name them.

`adamw`, `sgd` and `adafactor` make an optimizer for a run of known length; `cosine`, `linear`,
`rsqrt` and `constant` are the schedules that they take. The classes are Keras optimizers and
schedules and work in `compile` and `fit` by themselves.
"""

from keras_vmoe.trainers.optimizers.adafactor import Adafactor, adafactor
from keras_vmoe.trainers.optimizers.adamw import AdamW, adamw
from keras_vmoe.trainers.optimizers.base import DecoupledOptimizer, learning_rate_at
from keras_vmoe.trainers.optimizers.momentum import Momentum, sgd
from keras_vmoe.trainers.optimizers.schedules import (
    ConstantRate,
    LinearDecay,
    RsqrtDecay,
    constant,
    cosine,
    linear,
    rsqrt,
)
from keras_vmoe.trainers.optimizers.variable_rules import VariableRules

__all__ = [
    "Adafactor",
    "AdamW",
    "ConstantRate",
    "DecoupledOptimizer",
    "LinearDecay",
    "Momentum",
    "RsqrtDecay",
    "VariableRules",
    "adafactor",
    "adamw",
    "constant",
    "cosine",
    "learning_rate_at",
    "linear",
    "rsqrt",
    "sgd",
]
