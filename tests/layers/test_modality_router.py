"""The router of several modalities: its losses are those of ops, each by its own weight."""

import math

import numpy as np
import pytest

from keras_vmoe import layers, ops
from tests.layers import cases, harness

CASE = cases.MODALITIES["router"]
MODALITY = cases.MODALITY["modality"]
PLAIN = {"importance_loss_weight": 0.0, "load_loss_weight": 0.0}
ENTROPIES = {
    "local_entropy_loss_weights": {"image": 0.0, "text": 0.0},
    "global_entropy_loss_weights": {"image": 0.0, "text": 0.0},
}


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.MODALITIES.values(), ids=cases.MODALITIES)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def built(**arguments):
    case = CASE._replace(arguments={"num_experts": 4, **PLAIN, **arguments})
    return case.built()


def test_every_loss_is_that_of_ops_by_its_own_weight():
    mask = np.arange(5)[None] != [[1], [9], [4]]
    own = [(index == MODALITY) & mask for index in (0, 1)]
    gates = np.asarray(built()(CASE.inputs(), modality=MODALITY).gates)
    wanted = {
        "local_entropy_image": ops.local_entropy_loss(gates, own[0]),
        "local_entropy_text": ops.local_entropy_loss(gates, own[1]),
        "global_entropy_image": ops.global_entropy_loss(gates, own[0], math.log(4)),
        "global_entropy_text": ops.global_entropy_loss(gates, own[1]),
        "z": None,
    }
    router = layers.MoEMLP(
        cases.config(
            built(
                local_entropy_loss_weights={"image": 0.1, "text": 0.2},
                global_entropy_loss_weights={"image": 0.3, "text": 0.4},
                soft_minimum_experts={"image": 4},
                z_loss_weight=0.5,
            )
        ),
        hidden_dim=4,
        images_per_group=1,
    )
    router.build(CASE.shape)
    router.router.set_weights(built().get_weights())
    with layers.record_routing() as calls:
        router(CASE.inputs(), modality=MODALITY, mask=mask)
    found = {name: float(value) for name, value in calls[0].losses.items()}
    assert found.keys() == wanted.keys()
    wanted["z"] = found["z"]
    assert found == pytest.approx({n: float(v) for n, v in wanted.items()}, rel=1e-5)
    weights = dict(zip(wanted, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    total = sum(weight * found[name] for name, weight in weights.items())
    assert float(sum(router.losses)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 0),
        ({"local_entropy_loss_weights": {"text": 1.0}}, 1),
        ({"global_entropy_loss_weights": {"image": 1.0, "text": 0.0}}, 1),
        ({**ENTROPIES, "z_loss_weight": 1.0}, 1),
        ({"balanced_importance": True}, 0),
        ({"importance_loss_weight": 1.0, "balanced_importance": True}, 1),
    ],
)
def test_any_subset_of_the_losses(arguments, count):
    router = built(**arguments)
    CASE.call(router)
    assert len(router.losses) == count


def test_balanced_importance_takes_the_place_of_the_plain_one():
    found = []
    for balanced in (False, True):
        router = built(importance_loss_weight=1.0, balanced_importance=balanced)
        gates = CASE.call(router).gates
        found.append(float(router.losses[0]))
    masks = [index == MODALITY for index in (0, 1)]
    wanted = [ops.importance_loss(gates), ops.balanced_importance_loss(gates, masks)]
    assert found == pytest.approx([float(np.mean(np.asarray(loss))) for loss in wanted], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-2)


def test_a_group_without_tokens_is_not_of_the_mean():
    mask = np.array([[True] * 5, [False] * 5, [True] * 5])
    router = built(importance_loss_weight=1.0, balanced_importance=True)
    gates = router(CASE.inputs(), modality=MODALITY, mask=mask).gates
    masks = [(index == MODALITY) & mask for index in (0, 1)]
    losses = np.asarray(ops.balanced_importance_loss(gates, masks))
    assert float(router.losses[0]) == pytest.approx(losses[[0, 2]].mean(), rel=1e-5)


def test_losses_are_of_the_gates_without_noise():
    router = built(local_entropy_loss_weights={"text": 1.0}, noise_std=50.0)
    losses = []
    for training in (False, True):
        CASE.call(router, training=training)
        losses.append(float(router.losses[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_choice_itself_knows_of_no_modality():
    plans = [CASE.call(built()), built()(CASE.inputs(), modality=1 - MODALITY)]
    plain = layers.TopKRouter(4, 1, name="plain")
    plain.build(CASE.shape)
    plain.set_weights(built().get_weights())
    plans.append(plain(CASE.inputs()))
    for plan in plans[1:]:
        for part, wanted in zip(plan, plans[0], strict=True):
            np.testing.assert_array_equal(np.asarray(part), np.asarray(wanted))


def test_metrics_tell_the_modalities_apart():
    moe = cases.MODALITIES["moe"].built()
    with layers.record_routing() as calls:
        cases.MODALITIES["moe"].call(moe)
    found = {m.name.split("/")[1]: float(m.result()) for m in moe.metrics}
    call = calls[0]
    np.testing.assert_array_equal(
        np.asarray(call.modality)[:, :5], [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    )
    real = np.array([[True] * 10, [True] * 5 + [False] * 5])  # a group of two images, one of one
    wanted = ops.modality_statistics(call.plan, call.modality, ("image", "text"), real)
    assert (
        found.items() >= {n: pytest.approx(float(v), rel=1e-5) for n, v in wanted.items()}.items()
    )
    assert (found["image_tokens"], found["text_tokens"]) == (9, 6)
    plain = {"expert_load_min", "expert_load_max", "dropped", "confidence", "entropy"}
    assert found.keys() == plain | wanted.keys() | {"image_soft_minimum"}
    assert found["image_soft_minimum"] == 4


def test_a_minimum_that_no_loss_asks_for_is_not_reported():
    minima = {"image": 4, "text": 2}
    router = cases.modality_router(
        soft_minimum_experts=minima, global_entropy_loss_weights={"text": 0.3}
    )
    assert router.soft_minimum_experts == minima
    names = {metric.name for metric in moe(router).metrics}
    assert {name for name in names if "minimum" in name} == {"moe/text_soft_minimum"}


def moe(router):
    return layers.MoEMLP(router, 4, name="moe")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: built(modalities=()), "modalities must be distinct names.*()"),
        (lambda: built(modalities=("text", "text")), "modalities must be distinct"),
        (
            lambda: built(local_entropy_loss_weights={"audio": 1.0}),
            "local_entropy_loss_weights is by modality: image, text.*'audio'",
        ),
        (lambda: built(global_entropy_loss_weights={"audio": 1.0}), "global.*'audio'"),
        (lambda: built(soft_minimum_experts={"audio": 1.0}), "soft_minimum_experts.*'audio'"),
        (lambda: built(local_entropy_loss_weights={"text": -1.0}), "text=-1.0"),
        (lambda: built(soft_minimum_experts={"image": 5}), "num_experts=4.*image=5"),
        (lambda: built(soft_minimum_experts={"image": 0.5}), "between 1 and.*image=0.5"),
        (lambda: built()(CASE.inputs()), "modality must tell the tokens of image, text apart"),
        (
            lambda: built()(CASE.inputs(), modality=MODALITY[:, :4]),
            r"modality must begin with the axes \(3, 5\)",
        ),
        (lambda: built()(CASE.inputs(), modality=MODALITY[0]), "modality must have shape"),
        (
            lambda: moe(cases.modality_router())(CASE.inputs()),
            "modality must tell the tokens of image, text apart.*'moe'",
        ),
        (
            lambda: moe("top_k")(CASE.inputs(), modality=MODALITY),
            "modality is of a ModalityRouter; 'moe' has a TopKRouter",
        ),
        (
            lambda: moe(cases.modality_router())(CASE.inputs(), modality=MODALITY[:, :4]),
            r"modality must begin with the axes \(3, 5\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
