"""Optimizers and schedules as gin files bind them."""

import pytest

from keras_vmoe.trainers import configurables, gin_config, optimizers

FULL = """
include "data/digits.gin"
include "models/vmoe_digits.gin"
"""
OPTIMIZERS = {
    "adamw": optimizers.AdamW,
    "sgd": optimizers.Momentum,
    "adafactor": optimizers.Adafactor,
}


@pytest.fixture(autouse=True)
def clean():
    yield
    gin_config.load().clear_config()


def optimizer_of(text, total_steps=100, steps_per_epoch=10):
    gin_config.parse([], [FULL + text])
    make = configurables.train_config().optimizer
    return make(total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def rate(optimizer, step):
    return float(optimizer._learning_rate(step))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_all_optimizers_are_told(name):
    text = f"""
    train.optimizer = @{name}
    {name}.learning_rate = 0.5
    {name}.weight_decay = ((".*router", 0.0), (".*kernel", 0.1))
    {name}.clipnorm = 3.0
    {name}.accumulation_steps = 4
    {name}.ema_momentum = 0.9
    {name}.freeze = (".*bias",)
    """
    optimizer = optimizer_of(text)
    assert type(optimizer) is OPTIMIZERS[name]
    config = optimizer.get_config()
    assert config["weight_decay"] == ((".*router", 0.0), (".*kernel", 0.1))
    assert config["freeze"] == (".*bias",)
    assert config["global_clipnorm"] == 3.0
    assert config["gradient_accumulation_steps"] == 4
    assert config["ema_momentum"] == 0.9
    assert rate(optimizer, 0) == 0.5
    assert rate(optimizer, 25) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.01), ("linear", 0.01), ("rsqrt", 0.0), ("constant", 0.5)]
)
def test_every_schedule_goes_with_every_optimizer(name, schedule, last):
    text = f"""
    train.optimizer = @{name}
    {name}.learning_rate = 0.5
    {name}.schedule = @{schedule}
    {schedule}.warmup_steps = 20
    """
    text += {"rsqrt": "rsqrt.cooldown_steps = 30", "constant": ""}.get(
        schedule, f"{schedule}.final = 0.01"
    )
    optimizer = optimizer_of(text)
    found = [rate(optimizer, step) for step in (0, 10, 20, 100)]
    assert found == pytest.approx([0.0, 0.25, 0.5, last], abs=1e-6)


def test_bindings_of_the_default_schedule_are_heard_and_told():
    text = "train.optimizer = @adamw\nadamw.learning_rate = 1.0\ncosine.warmup_epochs = 2.0"
    optimizer = optimizer_of(text)
    assert [rate(optimizer, step) for step in (10, 20)] == [0.5, 1.0]
    told = gin_config.bindings(gin_config.operative())
    assert told["cosine.warmup_epochs"] == "2.0"
    assert told["adamw.clipnorm"] == "1.0"


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("@adamw\nadamw.beta_2 = 0.95", "beta_2", 0.95),
        ("@adamw\nadamw.epsilon = 1e-7", "epsilon", 1e-7),
        ("@sgd\nsgd.momentum = 0.5", "momentum", 0.5),
        ("@adafactor\nadafactor.momentum = 0.5", "momentum", 0.5),
        ("@adafactor\nadafactor.decay_exponent = 0.7", "decay_exponent", 0.7),
        ("@adafactor\nadafactor.min_dim_size_to_factor = 5", "min_dim_size_to_factor", 5),
    ],
)
def test_what_one_optimizer_is_told(text, option, value):
    assert optimizer_of(f"train.optimizer = {text}").get_config()[option] == value


@pytest.mark.parametrize(
    "line", ["adamw.warmup_epochs = 5.0", "rsqrt.final = 0.1", "sgd.beta_1 = 0.5"]
)
def test_a_parameter_of_another_is_refused(line):
    with pytest.raises(ValueError, match=line.split(" ")[0].split(".")[1]):
        gin_config.parse([], [line])
