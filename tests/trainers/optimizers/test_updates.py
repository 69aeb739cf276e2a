"""Updates beside NumPy: clipping, decay, accumulation, averages, freezing, odd gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe.trainers import optimizers
from tests.support import numpy_optimizers as oracle
from tests.trainers.optimizers.variables import (
    SHAPES,
    arrays,
    assert_close,
    averages,
    stepper,
    take,
    values,
    variables,
)

START = arrays(0)
# Small and large ones, so that some are clipped.
GRADIENTS = [arrays(1 + i, scale=10.0 ** (i % 3 - 1)) for i in range(12)]
DECAY = (("head/kernel", 0.3), (".*kernel", 0.1))
RATES = {"head/kernel": 0.3, "moe/experts/hidden_kernel": 0.1}
AXES = {**dict.fromkeys(SHAPES), "moe/experts/hidden_kernel": (1, 2), "head/kernel": (0, 1)}
RULES = {
    "adamw": (optimizers.AdamW, {}, oracle.adam()),
    "momentum": (optimizers.Momentum, {}, oracle.momentum()),
    "plain": (optimizers.Momentum, {"momentum": 0.0}, oracle.momentum(0.0)),
    "adafactor": (
        optimizers.Adafactor,
        {"min_dim_size_to_factor": 4},
        oracle.adafactor(AXES),
    ),
}
EVERY = pytest.mark.parametrize("name", list(RULES))


def make(name, learning_rate=0.01, **options):
    optimizer, own, _ = RULES[name]
    return optimizer(learning_rate, **own, **options)


def clipped_norm(gradients):
    return float(np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients.values())))


@EVERY
@pytest.mark.parametrize("accumulate", [1, 3])
def test_updates_equal_numpy(name, accumulate):
    schedule = optimizers.linear(0.1, 12 // accumulate, warmup_steps=2, final=0.02)
    optimizer = make(
        name,
        schedule,
        weight_decay=DECAY,
        global_clipnorm=2.0,
        gradient_accumulation_steps=accumulate,
        ema_momentum=0.7,
    )
    of = variables(START)
    step = stepper(optimizer, of)
    wanted, wanted_averages = oracle.train(
        RULES[name][2],
        START,
        GRADIENTS,
        lambda update: float(schedule(update)),
        {path: RATES.get(path, 0.0) for path in START},
        clip=2.0,
        accumulate=accumulate,
        ema=0.7,
    )
    for i, gradients in enumerate(GRADIENTS):
        step(gradients)
        done = (i + 1) // accumulate
        assert_close(values(of), wanted[done - 1] if done else START, rtol=0, atol=3e-6)
        if done:
            found = dict(zip(START, averages(optimizer), strict=True))
            assert_close(found, wanted_averages[done - 1], rtol=0, atol=3e-6)


@EVERY
@pytest.mark.parametrize("accumulate", [1, 2])
def test_large_variables_are_updated_by_a_compiled_function(monkeypatch, name, accumulate):
    options = {
        "weight_decay": DECAY,
        "global_clipnorm": 2.0,
        "gradient_accumulation_steps": accumulate,
        "ema_momentum": 0.7,
    }
    monkeypatch.setattr(optimizers.base.DecoupledOptimizer, "has_kernel", False)
    plain = make(name, **options)
    wanted = take(plain, START, GRADIENTS)
    assert plain._compiled_values.experimental_get_tracing_count() == 0
    # Of the four one is smaller.
    monkeypatch.setattr(optimizers.base, "COMPILED_SIZE", 20)
    compiled = make(name, **options)
    found = take(compiled, START, GRADIENTS)
    assert compiled._compiled_values.experimental_get_tracing_count() == 3
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-7)
    for one, other in zip(compiled.variables, plain.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["adamw", "momentum", "plain"])
def test_a_kernel_does_what_the_rule_does_in_place(monkeypatch, name, dtype):
    def cast(arrays):
        return {path: value.astype(dtype) for path, value in arrays.items()}

    options = {"weight_decay": DECAY, "global_clipnorm": 2.0, "ema_momentum": 0.7}
    start, gradients = cast(START), [cast(each) for each in GRADIENTS]
    in_place, of = make(name, **options), variables(start)
    assert {v.dtype for v in of} == {dtype}
    in_place.build(of)
    apply = tf.function(lambda gradients: in_place.apply(gradients, of), autograph=False)
    graph = apply.get_concrete_function([tf.zeros(v.shape, dtype) for v in of]).graph
    kernels = [op for op in graph.get_operations() if op.type.startswith("ResourceApply")]
    assert len(kernels) == len(of)
    in_place = make(name, **options)
    found = take(in_place, start, gradients)
    monkeypatch.setattr(optimizers.base.DecoupledOptimizer, "has_kernel", False)
    by_rule = make(name, **options)
    wanted = take(by_rule, start, gradients)
    close = 1e-7 if dtype == "float32" else 1e-10
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=10 * close, atol=close)
    for one, other in zip(in_place.variables, by_rule.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


STRATEGIES = {
    "default": tf.distribute.get_strategy,
    "one device": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "mirrored": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_updates_in_place_wait_for_one_another(strategy):
    """Or the scaled gradients of all variables would lie in memory at once."""
    strategy = STRATEGIES[strategy]()
    with strategy.scope():
        optimizer, of = make("adamw", weight_decay=DECAY, global_clipnorm=2.0), variables(START)
        optimizer.build(of)

    def update(gradients):
        with tf.device("CPU:0"):
            gradients = [tf.identity(gradients[v.path]) for v in of]
        optimizer.apply(gradients, of)

    step = tf.function(lambda each: strategy.run(update, (each,)), autograph=False)
    for each in GRADIENTS:
        step(each)
    wanted = take(make("adamw", weight_decay=DECAY, global_clipnorm=2.0), START, GRADIENTS)[-1]
    assert_close(values(of), wanted, rtol=1e-6, atol=1e-7)
    graph = step.get_concrete_function(GRADIENTS[0]).graph
    kernels = [op for op in graph.get_operations() if op.type == "ResourceApplyAdam"]
    assert len(kernels) == len(of)
    for place, kernel in enumerate(kernels):
        assert set(kernels[:place]) <= before(kernel)


def before(operation):
    """All operations that one waits for."""
    found, left = set(), [operation]
    while left:
        last = left.pop()
        new = {*last.control_inputs, *(each.op for each in last.inputs)} - found
        found |= new
        left += new
    return found


def test_a_subclass_with_another_rule_is_updated_by_it():
    class Sign(optimizers.AdamW):
        def rule(self, gradient, slots, learning_rate, step, kind):
            return learning_rate * keras.ops.sign(gradient), slots

    found = take(Sign(0.5), START, GRADIENTS[:1])[-1]
    assert_close(found, {n: START[n] - 0.5 * np.sign(GRADIENTS[0][n]) for n in START}, rtol=1e-6)
    assert not Sign(0.5).has_kernel


def test_a_beta_that_rounds_to_one_is_no_division_by_zero():
    found = take(optimizers.AdamW(0.1, beta_2=1 - 1e-9), START, GRADIENTS[:2])[-1]
    assert all(np.isfinite(value).all() for value in found.values())


def test_accumulated_batches_are_one_big_batch():
    schedule = optimizers.cosine(0.1, 4, warmup_steps=1)
    options = {"weight_decay": DECAY, "global_clipnorm": 1.0, "ema_momentum": 0.5}
    small = take(
        make("adamw", schedule, gradient_accumulation_steps=3, **options), START, GRADIENTS
    )
    means = [
        {n: np.mean([g[n] for g in GRADIENTS[i : i + 3]], axis=0) for n in START}
        for i in range(0, 12, 3)
    ]
    big = take(make("adamw", schedule, **options), START, means)
    for update in range(4):
        assert_close(small[3 * update + 2], big[update], rtol=0, atol=2e-6)
        # In between nothing moves.
        for early in (3 * update, 3 * update + 1):
            before = small[3 * update - 1] if update else START
            assert_close(small[early], before, rtol=0, atol=0)


def test_the_learning_rate_stands_still_over_an_accumulation():
    optimizer = make("adamw", optimizers.linear(1.0, 4), gradient_accumulation_steps=3)
    step = stepper(optimizer, variables(START))
    seen = []
    for gradients in GRADIENTS:
        seen.append(round(float(optimizer.learning_rate), 4))
        step(gradients)
    assert seen == [1.0] * 3 + [0.75] * 3 + [0.5] * 3 + [0.25] * 3
    assert int(optimizer.iterations) == 4


def test_a_rate_below_zero_is_taken_for_zero():
    schedule = optimizers.rsqrt(0.1, 4, timescale=2, cooldown_steps=2)
    assert float(schedule(6)) < 0
    trail = take(make("adamw", schedule, weight_decay=0.1), START, GRADIENTS)
    assert_close(trail[-1], trail[3], rtol=0, atol=0)


def test_tiny_gradients_meet_epsilon_as_in_the_paper():
    gradients = [arrays(i, scale=1e-8) for i in range(3)]
    found = take(make("adamw", 0.1), START, gradients)[-1]
    none = dict.fromkeys(START, 0.0)
    wanted, _ = oracle.train(oracle.adam(), START, gradients, lambda _: 0.1, none)
    assert_close(found, wanted[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_eager_and_compiled_by_xla(name):
    options = {"weight_decay": 0.1, "global_clipnorm": 1.0, "gradient_accumulation_steps": 2}
    wanted = take(make(name, **options), START, GRADIENTS[:4])[-1]
    compiled = take(make(name, **options), START, GRADIENTS[:4], jit_compile=True)[-1]
    assert_close(compiled, wanted, rtol=0, atol=2e-6)
    optimizer, of = make(name, **options), variables(START)
    for gradients in GRADIENTS[:4]:
        optimizer.apply([tf.constant(gradients[v.path]) for v in of], of)
    assert_close(values(of), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_frozen_variables_stay_and_count_for_nothing(name):
    options = {"global_clipnorm": 1.0, "weight_decay": 0.1, "ema_momentum": 0.9}
    optimizer, of = make(name, freeze=("experts",), **options), variables(START)
    step = stepper(optimizer, of)
    rest = {n: v for n, v in START.items() if n.startswith("head")}
    alone = take(make(name, **options), rest, GRADIENTS[:4])[-1]
    for gradients in GRADIENTS[:4]:
        step(gradients)
    found = values(of)
    assert_close({n: found[n] for n in rest}, alone, rtol=0, atol=1e-7)
    for path, average in zip(START, averages(optimizer), strict=True):
        if path not in rest:
            np.testing.assert_array_equal(found[path], START[path])
            np.testing.assert_array_equal(average, START[path])


def test_variables_without_a_gradient_are_left_alone():
    optimizer, of = make("adamw", weight_decay=0.1), variables(START)
    gradients = [tf.constant(GRADIENTS[0][v.path]) for v in of]
    with pytest.warns(UserWarning, match="head/bias"):
        optimizer.apply([*gradients[:-1], None], of)
    np.testing.assert_array_equal(values(of)["head/bias"], START["head/bias"])
    assert not np.array_equal(values(of)["head/kernel"], START["head/kernel"])


def test_the_gradient_of_an_embedding_is_a_gradient():
    """Rows and their indices, one of which comes twice."""
    table = {"embedding/table": arrays(0, shapes={"t": (6, 4)})["t"]}
    rows = np.array([[1.0] * 4, [2.0] * 4, [3.0] * 4], "float32")
    dense = np.zeros((6, 4), "float32")
    dense[4], dense[1] = rows[0] + rows[2], rows[1]
    wanted = take(make("adamw"), table, [{"embedding/table": dense}] * 2)[-1]
    optimizer, of = make("adamw"), variables(table)
    for _ in range(2):
        slices = tf.IndexedSlices(tf.constant(rows), tf.constant([4, 1, 4]), tf.constant([6, 4]))
        optimizer.apply([slices], of)
    assert_close(values(of), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_norm_that_is_not_finite_does_not_pass_for_a_small_step(bad):
    gradients = {n: g.copy() for n, g in GRADIENTS[0].items()}
    gradients["head/bias"][0] = bad
    found = take(make("adamw", global_clipnorm=1.0), START, [gradients])[-1]
    assert np.isnan(found["head/kernel"]).all()


def test_half_precision_weights_are_updated():
    of = [keras.Variable(np.ones((4, 5)), dtype="bfloat16", name="kernel")]
    for name in RULES:
        optimizer = make(name, 0.5, global_clipnorm=1.0, weight_decay=0.1, ema_momentum=0.5)
        of[0].assign(np.ones((4, 5)))
        optimizer.apply([tf.ones((4, 5), tf.bfloat16)], of)
        assert (tf.cast(of[0].value, tf.float32).numpy() < 0.9).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"global_clipnorm": 0.0}, "global_clipnorm=0.0 must be positive"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"gradient_accumulation_steps": 1.5}, "gradient_accumulation_steps=1.5"),
        ({"ema_momentum": 1.5}, "ema_momentum"),
        ({"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("optimizer", [optimizers.Momentum, optimizers.Adafactor])
def test_wrong_numbers_are_refused(optimizer, options, words):
    with pytest.raises(ValueError, match=words):
        optimizer(0.1, **options)


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_adam_refuses_a_beta_of_one(name):
    with pytest.raises(ValueError, match=rf"{name}=1.0 must be in \[0, 1\)"):
        optimizers.AdamW(0.1, **{name: 1.0})


def test_adam_without_moments_takes_steps_of_the_learning_rate():
    optimizer = optimizers.AdamW(0.1, beta_1=0.0, beta_2=0.0)
    found = take(optimizer, START, GRADIENTS[:1])[0]
    wanted = {n: START[n] - 0.1 * np.sign(GRADIENTS[0][n]) for n in START}
    assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_regex_that_matches_nothing_is_told_when_the_optimizer_is_built():
    with pytest.raises(ValueError, match="weight_decay holds 'kernle'"):
        make("adamw", weight_decay=(("kernle", 0.1),)).build(variables(START))
    with pytest.raises(ValueError, match="freeze holds 'rooter'"):
        make("adamw", freeze=("rooter",)).build(variables(START))


# What is remembered between updates.


def test_adafactor_keeps_a_row_and_a_column_of_each_expert():
    optimizer = make("adafactor")
    optimizer.build(variables(START))
    shapes = [[tuple(v.shape) for v in second] for second in optimizer._seconds]
    assert shapes == [[(6, 4), (6, 5)], [(6, 5)], [(4,), (5,)], [(5,)]]


def test_adafactor_treats_each_expert_as_a_kernel_of_its_own():
    """The experts of a stack move as if each were a variable; one with no tokens stays."""
    name = "moe/experts/hidden_kernel"
    gradients = [{name: g[name].copy()} for g in GRADIENTS]
    for gradient in gradients:
        gradient[name][2] = 0.0
        gradient[name][3] *= 1000.0
    found = take(make("adafactor"), {name: START[name]}, gradients)[-1][name]
    for e in range(6):
        alone = take(
            make("adafactor"),
            {"mlp/kernel": START[name][e]},
            [{"mlp/kernel": g[name][e]} for g in gradients],
        )[-1]["mlp/kernel"]
        np.testing.assert_allclose(found[e], alone, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[2], START[name][2])
