"""MoEMLP: the reference's layer, any batch size, masks, and what it tells about its routing."""

import itertools

import keras
import numpy as np
import pytest

from keras_vmoe import layers, ops
from tests.layers import cases, harness
from tests.support.golden import case_name, load, max_error
from tests.support.gradients import layer_gradients

GOLDEN = load("03_moe_layer")
DISPATCHES = ("einsum", "gather", "grouped")
VARIABLES = {
    "Mlp/Dense_0/kernel": "experts/hidden_kernel",
    "Mlp/Dense_0/bias": "experts/hidden_bias",
    "Mlp/Dense_1/kernel": "experts/output_kernel",
    "Mlp/Dense_1/bias": "experts/output_bias",
    "Router/dense/kernel": "kernel",
}


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.MOE_MLPS.values(), ids=cases.MOE_MLPS)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def reference_layer(case, dispatch):
    config = case.config
    router, dispatcher = config["router"], config["router"]["dispatcher"]
    moe = layers.MoEMLP(
        layers.TopKRouter(
            config["num_experts"],
            router["num_selected_experts"],
            capacity_factor=dispatcher["capacity_factor"],
            batch_priority=dispatcher["batch_priority"],
            noise_std=router.get("noise_std", 1.0),
            importance_loss_weight=router.get("importance_loss_weight", 1.0),
            load_loss_weight=router.get("load_loss_weight", 1.0),
            gshard_loss_weight=router.get("gshard_loss_weight", 0.0),
        ),
        config["mlp_dim"],
        images_per_group=config["group_size"] // config["T"],
        dispatch=dispatch,
        dispatch_dtype="bfloat16" if dispatcher["bfloat16"] else None,
    )
    moe.build(case["in/x"].shape)
    for name, value in case.under("params").items():
        by_suffix(moe.trainable_variables, VARIABLES[name]).assign(value)
    return moe


def by_suffix(variables, suffix):
    found = [v for v in variables if v.path.endswith("/" + suffix)]
    assert len(found) == 1, [v.path for v in variables]
    return found[0]


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("mode", ["det", "noisy"])
@pytest.mark.parametrize("case", GOLDEN.cases(), ids=case_name)
def test_values_and_gradients_of_the_reference(case, mode, dispatch):
    moe = reference_layer(case, dispatch)
    half = case.config["router"]["dispatcher"]["bfloat16"]
    outputs, gradients, of_x = layer_gradients(
        moe,
        lambda y, losses: keras.ops.sum(y * case["in/cotangent"]) + sum(losses),
        case["in/x"],
        training=mode == "noisy",
        noise=case["in/noise_normal"] if mode == "noisy" else None,
    )
    np.testing.assert_allclose(np.asarray(outputs), case[f"{mode}/y"], atol=2e-2 if half else 1e-5)
    limit = 2e-2 if half else 1e-4
    assert max_error(of_x, case[f"{mode}/grad_x"]) < limit
    for name, wanted in case.under(f"{mode}/grad_params").items():
        path = next(p for p in gradients if p.endswith("/" + VARIABLES[name]))
        assert max_error(gradients[path], wanted) < limit, name
    moe(case["in/x"])
    auxiliary = case["det/metrics/auxiliary_loss"].mean()
    assert float(sum(moe.losses)) == pytest.approx(auxiliary, abs=1e-5)


# --------------------------------------------------------------------- batches of any size


def make(kind, dispatch="auto", per_group=3, **arguments):
    router = {
        "top_k": lambda: layers.TopKRouter(
            4, 2, name="router", **{"capacity_factor": 0.6, "capacity_multiple_of": 1, **arguments}
        ),
        "expert_choice": lambda: layers.ExpertChoiceRouter(4, name="router", **arguments),
        "soft": lambda: layers.SoftRouter(4, num_slots=2, name="router", **arguments),
    }[kind]()
    case = harness.LayerCase(
        layers.MoEMLP,
        {
            "router": cases.config(router),
            "hidden_dim": 6,
            "images_per_group": per_group,
            "dispatch": dispatch,
            "name": "moe",
        },
        (per_group, 5, 8),
    )
    return case.built()


KINDS = [("top_k", d) for d in DISPATCHES] + [("expert_choice", d) for d in DISPATCHES]
KINDS += [("soft", "einsum")]


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 5, 8)).astype("float32")


def in_groups(moe, x, **arguments):
    """Each group routed by a call of its own."""
    size = moe.images_per_group
    return np.concatenate(
        [np.asarray(moe(x[i : i + size], **arguments)) for i in range(0, len(x), size)]
    )


@pytest.mark.parametrize(("kind", "dispatch"), KINDS)
def test_the_rest_of_a_batch_is_a_group_of_its_own(kind, dispatch):
    moe = make(kind, dispatch)
    for batch in (1, 2, 3, 4, 7):
        x = images(batch)
        np.testing.assert_allclose(np.asarray(moe(x)), in_groups(moe, x), atol=1e-5)


@pytest.mark.parametrize(("kind", "dispatch"), KINDS)
def test_an_unknown_batch_size_changes_nothing(kind, dispatch):
    import tensorflow as tf

    moe = make(kind, dispatch)

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 8]), tf.TensorSpec([None, 5], tf.bool)])
    def forward(x, mask):
        return moe(x), sum(moe.losses, 0.0), moe(x, mask=mask)

    for batch in (1, 2, 3, 8):
        x, mask = images(batch), np.random.default_rng(1).random((batch, 5)) < 0.7
        wanted = np.asarray(moe(x))
        loss = float(sum(moe.losses, 0.0))
        masked = np.asarray(moe(x, mask=mask))
        found = [part.numpy() for part in forward(x, mask)]
        np.testing.assert_allclose(found[0], wanted, atol=1e-5)
        assert found[1] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(found[2], masked, atol=1e-5)


def test_small_batches_have_a_capacity_of_their_own():
    """Two images of a group of eight get the slots of two images."""
    moe = make("top_k", per_group=8)
    with layers.record_routing() as calls:
        moe(images(2))
        moe(images(10))
    assert calls[0].capacity == moe.router.capacity(10)
    assert calls[1].capacity == moe.router.capacity(40)
    kept = np.asarray(calls[1].plan.kept)[1]
    expert = np.asarray(calls[1].plan.expert)[1]
    assert np.bincount(expert[kept], minlength=4).max() == moe.router.capacity(10)
    assert not kept[10:].any()


def test_capacity_above_the_group_keeps_everything():
    moe = make("top_k", capacity_factor=50.0)
    with layers.record_routing() as calls:
        moe(images(3))
    assert calls[0].capacity == 15
    assert np.asarray(calls[0].plan.kept).all()


def test_evaluation_has_a_capacity_factor_of_its_own():
    moe = make("top_k", capacity_factor=0.5, eval_capacity_factor=4.0, noise_std=0.0)
    kept = []
    with layers.record_routing() as calls:
        for training in (True, False):
            moe(images(3), training=training)
    kept = [np.asarray(call.plan.kept).mean() for call in calls]
    assert kept[0] < 0.6
    assert kept[1] == 1
    with layers.record_routing() as calls:
        moe(images(3), capacity_factor=0.5)
    assert np.asarray(calls[0].plan.kept).mean() == kept[0]


def test_routing_of_a_call_can_be_overridden():
    moe = make("top_k", noise_std=0.0)
    x = images(3)
    with layers.record_routing() as calls:
        moe(x, num_selected=1, batch_priority=False)
        moe(x)
    assert calls[0].plan.expert.shape[2] == 1
    assert calls[1].plan.expert.shape[2] == 2
    same = make("top_k", noise_std=0.0)
    same.router.batch_priority, same.router.num_selected = False, 1
    np.testing.assert_array_equal(
        np.asarray(moe(x, num_selected=1, batch_priority=False)), np.asarray(same(x))
    )


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(("kind", "dispatch"), KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_padded_images_change_nothing(kind, dispatch, training):
    """A padded and masked batch is the batch itself: outputs, losses, metrics, gradients."""
    noise_std = {"noise_std": 0.0}
    for real, padded in ((2, 3), (4, 6), (4, 9), (3, 6)):
        x = images(real)
        filled = np.concatenate([x, 100 * images(padded - real, seed=1)])
        mask = np.arange(padded) < real
        results = []
        for batch, arguments in ((x, {}), (filled, {"mask": mask})):
            moe = make(kind, dispatch, **noise_std)
            y, gradients, of_x = layer_gradients(
                moe,
                # Masked images are zero, so they add nothing to a sum of squares.
                lambda y, losses: keras.ops.sum(y**2) + 100 * sum(losses, 0.0),
                batch,
                training=training,
                **arguments,
            )
            metrics = {m.name: float(m.result()) for m in moe.metrics}
            results.append((np.asarray(y), gradients, of_x, metrics))
        (y, gradients, of_x, metrics), (masked_y, masked_gradients, masked_of_x, masked) = results
        np.testing.assert_allclose(masked_y[:real], y, atol=1e-5)
        np.testing.assert_array_equal(masked_y[real:], 0)
        np.testing.assert_array_equal(masked_of_x[real:], 0)
        assert max_error(masked_of_x[:real], of_x) < 1e-5
        for path, gradient in gradients.items():
            assert max_error(masked_gradients[path], gradient) < 1e-5, path
        assert masked == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("kind", "dispatch"), KINDS)
def test_masked_tokens_take_no_slot_and_come_out_zero(kind, dispatch):
    moe = make(kind, dispatch, noise_std=0.0)
    x, mask = images(4), np.random.default_rng(2).random((4, 5)) < 0.6
    mask[1] = False
    y = np.asarray(moe(x, mask=mask))
    losses, metrics = float(sum(moe.losses, 0.0)), [float(m.result()) for m in moe.metrics]
    np.testing.assert_array_equal(y[~mask], 0)
    # What masked tokens hold is seen by nobody.
    other = np.where(mask[..., None], x, 1000 * images(4, seed=3))
    for metric in moe.metrics:
        metric.reset_state()
    np.testing.assert_allclose(np.asarray(moe(other, mask=mask)), y, atol=1e-5)
    assert float(sum(moe.losses, 0.0)) == pytest.approx(losses, rel=1e-5)
    assert [float(m.result()) for m in moe.metrics] == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize(("kind", "dispatch"), KINDS)
def test_nothing_but_masked_images(kind, dispatch):
    moe = make(kind, dispatch)
    y, gradients, of_x = layer_gradients(
        moe,
        lambda y, losses: keras.ops.sum(y) + sum(losses, 0.0),
        images(4),
        training=True,
        mask=np.zeros(4, bool),
    )
    np.testing.assert_array_equal(np.asarray(y), 0)
    for gradient in (*gradients.values(), of_x):
        np.testing.assert_array_equal(gradient, 0)


def test_an_unknown_batch_size_keeps_modalities_with_their_tokens():
    import tensorflow as tf

    case = cases.MODALITIES["moe"]
    moe = case.built()

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 8]), tf.TensorSpec([None, 5], tf.int32)])
    def forward(x, modality):
        return moe(x, modality=modality), sum(moe.losses)

    wanted = np.asarray(case.call(moe))
    loss = float(sum(moe.losses))
    found = forward(case.inputs(), case.also["modality"])
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-5)
    assert float(found[1]) == pytest.approx(loss, rel=1e-5)


# ---------------------------------------------------------------- losses, metrics, records


def test_losses_are_those_of_the_last_call():
    moe = make("top_k", noise_std=0.0)
    x = images(3)
    moe(x)
    first = [float(loss) for loss in moe.losses]
    moe(images(3, seed=5))
    assert len(moe.losses) == len(first) == 1
    assert float(moe.losses[0]) != first[0]


def test_metrics_count_what_was_routed():
    moe = make("top_k", noise_std=0.0)
    with layers.record_routing() as calls:
        moe(images(3))
    plan = calls[0].plan
    kept, expert = np.asarray(plan.kept), np.asarray(plan.expert)
    shares = np.bincount(expert[kept], minlength=4) / kept.sum()
    gates = np.asarray(plan.gates)
    found = {m.name: float(m.result()) for m in moe.metrics}
    assert found == pytest.approx(
        {
            "moe/expert_load_min": shares.min(),
            "moe/expert_load_max": shares.max(),
            "moe/dropped": 1 - kept.mean(),
            "moe/confidence": gates.max(-1).mean(),
            "moe/entropy": -(gates * np.log(gates)).sum(-1).mean(),
        },
        rel=1e-5,
    )
    with layers.routing_metrics(False):
        moe(100 * images(3))
    assert {m.name: float(m.result()) for m in moe.metrics} == found


def test_records_hold_unweighted_losses():
    moe = make("top_k", importance_loss_weight=0.25, load_loss_weight=0.5)
    with layers.record_routing() as calls:
        moe(images(3), training=True)
        total = float(sum(moe.losses))
    terms = {name: float(value) for name, value in calls[0].losses.items()}
    assert sorted(terms) == ["importance", "load"]
    assert 0.25 * terms["importance"] + 0.5 * terms["load"] == pytest.approx(total, rel=1e-5)


def test_precision_of_the_way_can_be_lowered():
    x = images(3)
    full, rounded = (make("top_k", noise_std=0.0) for _ in range(2))
    rounded.dispatch_dtype = "bfloat16"
    difference = max_error(np.asarray(rounded(x)), np.asarray(full(x)))
    assert 1e-5 < difference < 2e-2


MASKS = [np.ones((3, 4), bool), np.ones(2, bool), np.ones((3, 5, 1), bool)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.MoEMLP("switch"), "'switch'"),
        (lambda: layers.MoEMLP(hidden_dim=0), "hidden_dim=0"),
        (lambda: layers.MoEMLP(images_per_group=0), "images_per_group=0"),
        (lambda: layers.MoEMLP(dispatch="scatter"), "'auto', 'einsum', 'gather', 'grouped'"),
        (lambda: layers.MoEMLP("soft", dispatch="gather"), "'gather'"),
        (lambda: layers.MoEMLP(dispatch_dtype="int8"), "dispatch_dtype.*'int8'"),
        (lambda: layers.MoEMLP(dropout_rate=2), "dropout_rate=2"),
        (lambda: layers.MoEMLP().build((3, 5)), "(3, 5)"),
        (lambda: layers.MoEMLP().build((3, 5, None)), "(3, 5, None)"),
        (lambda: make("top_k")(images(3), num_selected=5), "num_selected=5"),
        (lambda: make("top_k")(images(3), capacity_factor=0.0), "capacity_factor=0.0"),
        (lambda: make("expert_choice")(images(3), num_selected=1), "ExpertChoiceRouter.*'moe'"),
        (lambda: make("soft")(images(3), batch_priority=False), "batch_priority.*SoftRouter"),
        (lambda: make("soft")(images(3), capacity_factor=2.0), "capacity_factor.*SoftRouter"),
        (lambda: make("top_k")(images(3)[..., :7]), "width 8"),
        (lambda: make("top_k")(images(3)[0]), "shape"),
        (lambda: make("top_k")(images(3) * np.nan), "finite"),
        *((lambda mask=mask: make("top_k")(images(3), mask=mask), "mask") for mask in MASKS),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_all_ways_give_the_same_layer():
    x = images(7)
    for kind in ("top_k", "expert_choice"):
        outputs = [np.asarray(make(kind, dispatch)(x)) for dispatch in DISPATCHES]
        for one, other in itertools.pairwise(outputs):
            assert max_error(one, other) < 5e-6


def test_padding_makes_no_slots():
    """As many slots as real tokens ask for, wherever they lie."""
    moe = make("top_k")
    x = images(2)
    mask = np.zeros((2, 5), bool)
    mask[0, :3] = mask[1, 2] = True
    with layers.record_routing() as calls:
        moe(x, mask=mask)
        moe(np.reshape(x[mask], (1, 4, -1)))
    padded, alone = calls
    assert np.asarray(padded.group_capacity).tolist() == [alone.capacity]
    assert int(np.sum(padded.plan.kept)) == int(np.sum(alone.plan.kept))


def test_few_rows_an_expert_train_by_a_gradient_of_their_own(monkeypatch):
    import tensorflow as tf

    tokens = np.random.default_rng(0).normal(size=(2, 9, 8)).astype("float32")
    layer = layers.MoEMLP(
        layers.TopKRouter(num_experts=3, num_selected=2, noise_std=0.0), 16, dispatch="grouped"
    )
    layer(tokens)
    asked = []
    grouped_mlp = ops.grouped_mlp

    def gradients():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.sin(layer(tokens, training=True)))
        return tape.gradient(total, [v.value for v in layer.trainable_variables])

    def spy(*arguments):
        asked.append(arguments[-1])
        return grouped_mlp(*arguments)

    monkeypatch.setattr(ops, "grouped_mlp", spy)
    few = gradients()
    layer(tokens)  # inference keeps the matmuls that are fused with biases and activations
    monkeypatch.setattr(ops, "has_few_rows", lambda *arguments: False)
    many = gradients()
    assert asked == [True, False, False]
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
