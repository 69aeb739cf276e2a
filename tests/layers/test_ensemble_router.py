"""The router of an ensemble is a top-k router for each member."""

import numpy as np
import pytest

from keras_vmoe import layers, ops
from tests.layers import cases, harness

G, IMAGES, M, T, D, E = 2, 3, 2, 5, 8, 6


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.ENSEMBLE.values(), ids=cases.ENSEMBLE)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(G, IMAGES * M * T, D)).astype("float32")


def made(**arguments):
    router = layers.EnsembleTopKRouter(
        E, M, capacity_factor=0.7, capacity_multiple_of=1, gshard_loss_weight=0.1, **arguments
    )
    router.build((None, None, D))
    router.kernel.assign(np.random.default_rng(1).normal(size=router.kernel.shape))
    return router


def of_member(router, member, **arguments):
    """The top-k router that a member is."""
    alone = layers.TopKRouter(E // M, gshard_loss_weight=0.1, **arguments)
    alone.build((None, None, D))
    alone.kernel.assign(np.asarray(router.kernel)[:, member])
    return alone


def tokens_of(values, member):
    groups = values.reshape(G, IMAGES, M, T, *values.shape[2:])[:, :, member]
    return groups.reshape(G, IMAGES * T, *values.shape[2:])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_each_member_routes_by_itself(k, masked):
    router, x = made(num_selected=k), inputs()
    noise = np.random.default_rng(2).normal(size=(G * M, IMAGES * T, E // M)).astype("float32")
    mask = np.random.default_rng(3).random((G, IMAGES * M * T)) < 0.8 if masked else None
    plan = router(x, mask=mask, noise=noise, training=True, tokens_per_member=T)
    plan = ops.TokenChoicePlan(*map(np.asarray, plan))
    capacity = router.capacity(IMAGES * M * T)
    assert capacity == int(np.ceil(IMAGES * M * T * k * 0.7 / E))
    losses = []
    for member in range(M):
        alone = of_member(router, member, num_selected=k)
        own = None if mask is None else tokens_of(mask, member)
        wanted = alone(
            tokens_of(x, member),
            mask=own,
            noise=noise[member::M],
            training=True,
            capacity=capacity,
        )
        losses.append([float(loss) for loss in alone.losses])
        first = member * E // M
        experts = tokens_of(plan.expert, member)
        np.testing.assert_array_equal(experts, np.asarray(wanted.expert) + first)
        for name in ("slot", "kept"):
            found = tokens_of(getattr(plan, name), member)
            np.testing.assert_array_equal(found, np.asarray(getattr(wanted, name)))
        found = tokens_of(plan.weight, member)
        np.testing.assert_allclose(found, np.asarray(wanted.weight), rtol=1e-5)
        gates = tokens_of(plan.gates, member)
        np.testing.assert_allclose(gates[..., first : first + E // M], wanted.gates, rtol=1e-5)
        np.testing.assert_allclose(gates.sum(-1), 1.0, rtol=1e-5)
    assert not plan.kept.all()
    found = [float(loss) for loss in router.losses]
    np.testing.assert_allclose(found, np.mean(losses, axis=0), rtol=1e-5)


def test_noise_is_drawn_for_each_member():
    router = made(importance_loss_weight=0.0, load_loss_weight=0.0)
    router.kernel.assign(np.zeros(router.kernel.shape))
    x = np.random.default_rng(0).normal(size=(64, IMAGES * M * T, D)).astype("float32")
    gates = np.asarray(router(x, training=True, tokens_per_member=T).gates)
    parts = np.log(np.asarray(ops.split_members(gates, M, T)))
    first, second = parts[0::M][..., : E // M], parts[1::M][..., E // M :]
    for logits in (first, second):
        centred = logits - logits.mean(-1, keepdims=True)
        # Deviation m / e, less a degree of freedom that the softmax does not show.
        assert centred.std() == pytest.approx(M / E * np.sqrt(2 / 3), rel=0.03)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_without_a_length_members_stand_in_a_row():
    router, x = made(), inputs()
    one_image = router(x)
    told = router(x, tokens_per_member=IMAGES * T)
    np.testing.assert_array_equal(np.asarray(one_image.expert), np.asarray(told.expert))


def test_the_kernel_starts_as_that_of_one_model():
    router = layers.EnsembleTopKRouter(8, 2, kernel_initializer="lecun_normal")
    router.build((None, None, 4096))
    assert tuple(router.kernel.shape) == (4096, 2, 4)
    assert np.asarray(router.kernel).std() == pytest.approx(1 / 64, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_members": 4}, "num_members must divide num_experts.*num_members=4, num_experts=6"),
        ({"num_members": 0}, "num_members=0"),
        ({"num_members": 3, "num_selected": 3}, "num_experts / num_members = 2.*num_selected=3"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.EnsembleTopKRouter(6, **arguments)


def test_more_choices_in_a_call_than_a_member_has_experts():
    with pytest.raises(ValueError, match="num_selected=4"):
        made()(inputs(), num_selected=4)
