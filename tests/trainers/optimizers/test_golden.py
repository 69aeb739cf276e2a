"""Six updates of each optimizer, and each schedule, against the reference's numbers."""

import functools

import numpy as np
import pytest

from keras_vmoe.trainers import optimizers
from tests.support import golden
from tests.trainers.optimizers.variables import assert_close, take

EXTRAS = golden.load("07_extras")
UPDATES = 6
SCHEDULES = {
    "warmup_linear_decay": optimizers.linear,
    "warmup_cosine_decay": optimizers.cosine,
    "big_vision_rsqrt": optimizers.rsqrt,
}
RENAMED = {"end_value": "final"}
IGNORED = ("schedule", "peak_value")


def schedule_of(config):
    """Our function, bound to the reference's settings."""
    own = {RENAMED.get(k, k): v for k, v in config.items() if k not in IGNORED}
    return functools.partial(SCHEDULES[config["schedule"]], **own)


def optimizer_of(config):
    rate = config["learning_rate"]
    common = {
        "total_steps": UPDATES,
        "steps_per_epoch": 2,
        "learning_rate": rate["peak_value"] if isinstance(rate, dict) else rate,
        "schedule": schedule_of(rate) if isinstance(rate, dict) else optimizers.constant,
        "weight_decay": config.get("weight_decay"),
        "clipnorm": config.get("gradient_clip", {}).get("global_norm"),
    }
    if config["name"] == "adam":
        return optimizers.adamw(beta_1=config["b1"], beta_2=config["b2"], **common)
    if config["name"] == "sgd":
        return optimizers.sgd(momentum=config["momentum"], **common)
    smallest = config["min_dim_size_to_factor"]
    return optimizers.adafactor(min_dim_size_to_factor=smallest, **common)


@pytest.mark.parametrize("name", sorted(EXTRAS.config["optim"]))
def test_updates(name):
    optimizer = optimizer_of(EXTRAS.config["optim"][name])
    gradients = [EXTRAS.under(f"optim/grads{i}") for i in range(UPDATES)]
    trail = take(optimizer, EXTRAS.under("optim/params0"), gradients)
    for i, found in enumerate(trail):
        assert_close(found, EXTRAS.under(f"optim/{name}/params{i + 1}"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(EXTRAS.config["sched"]))
def test_learning_rates(name):
    config = EXTRAS.config["sched"][name]
    schedule = schedule_of(config)(config["peak_value"], total_steps=60)
    wanted = EXTRAS[f"sched/{name}"]
    found = [float(schedule(step)) for step in range(len(wanted))]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-10)
