"""Routers: the reference's gates, losses and plans, and what a user may do with them."""

import numpy as np
import pytest

from keras_vmoe import layers, ops
from keras_vmoe.layers import routers
from tests.layers import cases, harness
from tests.support.golden import case_name, load, max_error
from tests.support.gradients import layer_gradients

TOP_K = load("01_router_top_experts_per_item")
EXPERT_CHOICE = load("01b_router_top_items_per_expert")
SOFT = load("06_soft_router")


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.ROUTERS.values(), ids=cases.ROUTERS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def built(router, case, kernel="in/kernel"):
    router.build(case["in/x"].shape)
    router.kernel.assign(case[kernel])
    return router


def noise_of(case, mode):
    return case["in/noise_normal"] if mode == "noisy" else None


def capacity_arguments(config):
    dispatcher = config["dispatcher"]
    arguments = {
        "expert_capacity": dispatcher.get("capacity"),
        "capacity_rounding": dispatcher.get("capacity_ceil_or_round", "ceil"),
        "capacity_multiple_of": dispatcher.get("capacity_multiple_of", 4),
    }
    if "capacity_factor" in dispatcher:
        arguments["capacity_factor"] = dispatcher["capacity_factor"]
    return arguments


def top_k_router(config):
    return layers.TopKRouter(
        config["num_experts"],
        config["num_selected_experts"],
        batch_priority=config["dispatcher"]["batch_priority"],
        noise_std=config["noise_std"],
        importance_loss_weight=config.get("importance_loss_weight", 1.0),
        load_loss_weight=config.get("load_loss_weight", 1.0),
        gshard_loss_weight=config.get("gshard_loss_weight", 0.0),
        **capacity_arguments(config),
    )


@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", TOP_K.cases(), ids=case_name)
def test_top_k_is_the_references(case, mode):
    router = built(top_k_router(case.config), case)
    wanted = case[f"{mode}/combine_weights"]
    plan = router(case["in/x"], noise=noise_of(case, mode), training=mode == "noisy")
    np.testing.assert_allclose(np.asarray(plan.gates), case[f"{mode}/gates"], atol=1e-5)
    e, capacity = wanted.shape[2:]
    assert router.capacity(case["in/x"].shape[1]) == min(capacity, case["in/x"].shape[1])
    np.testing.assert_array_equal(
        np.asarray(ops.dispatch_mask(plan, e, capacity)).astype(bool),
        case[f"{mode}/dispatch_weights"],
    )
    found = np.asarray(ops.combine_weights(plan, e, capacity))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    auxiliary = case[f"{mode}/auxiliary_loss"].mean()
    assert float(sum(router.losses)) == pytest.approx(auxiliary, abs=1e-5)
    _, (of_kernel,), of_x = gradients(router, case, mode)
    wanted = case.under(f"{mode}/grad_mean_auxiliary_loss")
    if e == 1:  # zero by zero in the reference
        np.testing.assert_array_equal(of_kernel, 0)
        return
    assert max_error(of_kernel, wanted["kernel"]) < 1e-4
    assert max_error(of_x, wanted["x"]) < 1e-4


def gradients(router, case, mode):
    outputs, by_path, of_x = layer_gradients(
        router,
        lambda _, losses: sum(losses),
        case["in/x"],
        noise=noise_of(case, mode),
        training=mode == "noisy",
    )
    return outputs, list(by_path.values()), of_x


@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", EXPERT_CHOICE.cases(), ids=case_name)
def test_expert_choice_is_the_references(case, mode):
    config = case.config
    router = layers.ExpertChoiceRouter(
        config["num_experts"], noise_std=config["noise_std"], **capacity_arguments(config)
    )
    plan = built(router, case)(case["in/x"], noise=noise_of(case, mode), training=mode == "noisy")
    wanted = case[f"{mode}/combine_weights"]
    np.testing.assert_allclose(np.asarray(plan.gates), case[f"{mode}/gates"], atol=1e-5)
    assert plan.token.shape[2] == wanted.shape[3]
    found = np.asarray(ops.combine_weights(plan, *wanted.shape[2:]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(found > 0, wanted > 0)
    assert not router.losses
    dropped = 1 - case[f"{mode}/metrics/ratio_processed_items_by_at_least_1_experts"].mean()
    assert float(ops.dropped_share(plan)) == pytest.approx(dropped, abs=1e-6)


@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", SOFT.cases(), ids=case_name)
def test_soft_is_the_references(case, mode):
    config = case.config
    router = layers.SoftRouter(
        config["num_experts"], config["num_slots"], noise_std=config["noise_std"]
    )
    built(router, case, "in/mu")
    assert router.slots == config["slots"]
    router.scale.assign(case["in/scale"])
    plan = router(case["in/x"], noise=noise_of(case, mode), training=mode == "noisy")
    for name in ("dispatch", "combine"):
        wanted = case[f"{mode}/{name}_weights"]
        np.testing.assert_allclose(np.asarray(getattr(plan, name)), wanted, atol=1e-5)
    assert not router.losses


X = np.random.default_rng(0).normal(size=(2, 12, 5)).astype("float32")


@pytest.mark.parametrize("cls", [layers.TopKRouter, layers.ExpertChoiceRouter])
def test_noise_is_of_the_right_size_and_in_training_only(cls):
    """Logits of zero show the noise alone: its standard deviation is noise_std / e."""
    router = cls(num_experts=8, noise_std=2.0, kernel_initializer="zeros", seed=0)
    x = np.ones((4, 500, 3), "float32")
    still = np.asarray(router(x).gates)
    np.testing.assert_allclose(still, 1 / 8, rtol=1e-6)
    logits = np.log(np.asarray(router(x, training=True).gates))
    centred = logits - logits.mean(-1, keepdims=True)
    assert centred.std() == pytest.approx(2 / 8 * np.sqrt(7 / 8), rel=0.03)
    again = np.log(np.asarray(router(x, training=True).gates))
    assert np.abs(again - logits).max() > 0.1


def test_soft_noise_is_not_divided():
    router = layers.SoftRouter(4, num_slots=2, noise_std=0.5, kernel_initializer="zeros")
    combine = np.log(np.asarray(router(np.ones((2, 500, 3), "float32"), training=True).combine))
    assert (combine - combine.mean((2, 3), keepdims=True)).std() == pytest.approx(
        0.5 * np.sqrt(7 / 8), rel=0.05
    )


def test_a_weight_of_zero_leaves_a_loss_out():
    weights = dict.fromkeys(
        ("importance_loss_weight", "load_loss_weight", "gshard_loss_weight", "z_loss_weight"), 0.0
    )
    router = layers.TopKRouter(4, 2, **weights)
    router(X, training=True)
    assert router.losses == []
    for name in weights:
        router = layers.TopKRouter(4, 2, **{**weights, name: 0.5})
        router(X, training=True)
        assert len(router.losses) == 1
        router(X)
        assert len(router.losses) == int(name != "load_loss_weight")


def test_capacity_factors():
    router = layers.TopKRouter(4, 2, capacity_factor=1.0, eval_capacity_factor=2.0)
    assert router.capacity(64, training=True) == 32
    assert router.capacity(64) == 64
    assert router.capacity(64, capacity_factor=0.5) == 16
    assert router.capacity(64, training=True, num_selected=1) == 16
    assert router.capacity(2) == 2, "never more than the group"
    tight = layers.TopKRouter(8, 1, capacity_factor=0.01, capacity_rounding="round")
    assert tight.capacity(16) == 4, "at least one, then the multiple"
    given = layers.TopKRouter(4, 2, expert_capacity=6)
    assert given.capacity(64) == 6
    assert given.capacity(64, capacity_factor=1.0) == 32, "what a call says is what counts"
    assert given.capacity(4) == 4


@pytest.mark.parametrize("name", ["top_k", "expert_choice", "soft"])
def test_names_make_routers(name):
    router = routers.get(name)
    assert routers.get(router) is router
    again = routers.get(cases.config(router))
    assert again.get_config() == router.get_config()


def test_float64_is_kept():
    router = layers.TopKRouter(4, 2, dtype="float64")
    assert np.asarray(router(X.astype("float64")).gates).dtype == np.float64


def router(**arguments):
    return layers.TopKRouter(**{"num_experts": 4, **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: router(num_experts=0), "num_experts=0"),
        (lambda: router(num_selected=5), "at most num_experts=4.*num_selected=5"),
        (lambda: router(num_selected=0), "num_selected=0"),
        (lambda: router(capacity_factor=0), "capacity_factor must be above 0.*0"),
        (lambda: router(capacity_factor=float("nan")), "capacity_factor.*nan"),
        (lambda: router(capacity_factor=None), "capacity_factor.*None"),
        (lambda: router(eval_capacity_factor=-1), "eval_capacity_factor.*-1"),
        (lambda: router(capacity_rounding="up"), "'ceil', 'round'.*'up'"),
        (lambda: router(capacity_multiple_of=0), "capacity_multiple_of=0"),
        (lambda: router(expert_capacity=0), "expert_capacity=0"),
        (lambda: router(noise_std=-0.1), "noise_std.*-0.1"),
        (lambda: router(priority_score="mean"), "'max', 'sum'.*'mean'"),
        (lambda: router(z_loss_weight=-1.0), "z_loss_weight.*-1.0"),
        (lambda: router()(X[0]), "inputs must have shape.*(12, 5)"),
        (lambda: router()(X, num_selected=9), "num_selected=9"),
        (lambda: router()(X, capacity_factor=-1.0), "capacity_factor=-1.0"),
        (lambda: router()(X, noise=np.zeros((2, 12, 3), "float32")), "noise.*(2, 12, 3)"),
        (lambda: router()(X, mask=np.ones((2, 11), bool)), "mask.*(2, 11)"),
        (lambda: router()(X * np.nan), "gates must be finite"),
        (lambda: layers.SoftRouter(4, num_slots=0), "num_slots=0"),
        (lambda: layers.SoftRouter(4).build((None, None, 5)), "num_slots must be given"),
        (lambda: layers.ExpertChoiceRouter(4, num_selected=2), "num_selected"),
        (lambda: routers.get("top_2"), "'top_k', 'expert_choice', 'soft'.*'top_2'"),
        (lambda: routers.get(3), "router=3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_a_changed_width_is_an_error():
    own = router()
    own(X)
    with pytest.raises(ValueError, match="width 5.*\\(2, 12, 4\\)"):
        own(X[..., :4])
