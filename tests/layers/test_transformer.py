"""Transformer blocks against a forward pass in NumPy, their dropouts, and recomputation."""

import numpy as np
import pytest

from keras_vmoe import layers
from keras_vmoe.layers.transformer import make_attention
from tests.layers import cases, harness
from tests.support.golden import max_error
from tests.support.gradients import layer_gradients


@pytest.mark.parametrize("check", harness.CHECKS)
@pytest.mark.parametrize("case", cases.TRANSFORMER.values(), ids=cases.TRANSFORMER)
def test_harness(case, check, tmp_path):
    harness.run(check, case, tmp_path)


def weight(variable):
    return np.asarray(variable, "float64")


def norm(layer, x):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    scaled = scaled * weight(layer.gamma)
    return scaled if layer.beta is None else scaled + weight(layer.beta)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(layer, x):
    hidden = gelu(x @ weight(layer.hidden.kernel) + weight(layer.hidden.bias))
    return hidden @ weight(layer.output_dense.kernel) + weight(layer.output_dense.bias)


def attend(layer, q, k):
    def project(dense, x):
        return np.einsum("btd,dhc->bhtc", x, weight(dense.kernel)) + weight(dense.bias)[:, None]

    query, key, value = (
        project(dense, x)
        for dense, x in zip(
            (layer.query_dense, layer.key_dense, layer.value_dense), (q, k, k), strict=True
        )
    )
    if layer.qk_norm:
        query, key = norm(layer.query_norm, query), norm(layer.key_norm, key)
    logits = np.einsum("bhqc,bhkc->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bhkc->bhqc", weights / weights.sum(-1, keepdims=True), value)
    out = layer.output_dense
    return np.einsum("bhqc,hcd->bqd", mixed, weight(out.kernel)) + weight(out.bias)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_block_is_the_formula(qk_norm):
    case = cases.TRANSFORMER["block"]
    block = case.built(qk_norm=qk_norm)
    x = case.inputs().astype("float64")
    wanted = x + attend(block.attention, *[norm(block.attention_norm, x)] * 2)
    wanted = wanted + mlp(block.mlp, norm(block.mlp_norm, wanted))
    np.testing.assert_allclose(np.asarray(block(case.inputs())), wanted, atol=1e-5)
    assert (block.attention.query_norm is not None) == qk_norm


def test_attention_kernels_have_the_fans_of_square_ones():
    attention = make_attention(64, 4, False, 0.0, 1e-6, None)
    attention.build((None, 5, 64), (None, 5, 64))
    limit = np.sqrt(6 / 128)
    for dense in (attention.query_dense, attention.output_dense):
        kernel = np.asarray(dense.kernel)
        assert 0.97 * limit < np.abs(kernel).max() <= limit
        assert not np.asarray(dense.bias).any()


def test_a_sparse_block_passes_routing_on():
    block = cases.TRANSFORMER["sparse_block"].built()
    x = cases.TRANSFORMER["sparse_block"].inputs()
    with layers.record_routing() as calls:
        block(x, num_selected=1, capacity_factor=0.5, batch_priority=False)
        masked = np.asarray(block(x, mask=np.array([True, True, False])))
    assert calls[0].plan.expert.shape[2] == 1
    assert calls[0].capacity == 4
    assert not np.asarray(calls[1].plan.kept)[1].any()
    np.testing.assert_allclose(masked[:2], np.asarray(block(x[:2])), atol=1e-5)
    assert block.is_sparse
    assert not cases.TRANSFORMER["block"].make().is_sparse


def test_a_dense_block_refuses_routing():
    case = cases.TRANSFORMER["block"]
    with pytest.raises(ValueError, match="num_selected"):
        case.built()(case.inputs(), num_selected=1)


def test_stochastic_depth_drops_whole_branches_of_images():
    block = layers.EncoderBlock(2, layers.MLP(6), stochastic_depth_rate=0.5)
    x = np.random.default_rng(0).normal(size=(400, 3, 8)).astype("float32")
    plain = np.asarray(block(x))
    drawn = np.asarray(block(x, training=True))
    left_out = np.isclose(drawn, x, atol=1e-6).all((1, 2))
    assert left_out.mean() == pytest.approx(0.25, abs=0.07), "both branches, each at 0.5"
    assert not np.isclose(plain, x, atol=1e-6).all((1, 2)).any()


def test_dropout_draws_anew_at_each_place_and_step():
    mlp = layers.MLP(16, activation="linear", dropout_rate=0.5)
    x = np.ones((64, 8), "float32")
    first, second = (np.asarray(mlp(x, training=True)) for _ in range(2))
    assert (first != second).any()
    assert (first == 0).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(np.asarray(mlp(x)), np.asarray(mlp(x)))


def test_recomputation_without_random_draws_changes_nothing():
    case = cases.TRANSFORMER["sparse_block"]
    results = [
        layer_gradients(case.built(remat=remat), harness.total, case.inputs(), training=True)
        for remat in (False, True)
    ]
    for one, other in zip(results[0][1].values(), results[1][1].values(), strict=True):
        assert max_error(other, one) < 1e-6
    np.testing.assert_array_equal(np.asarray(results[0][0]), np.asarray(results[1][0]))


def test_recomputation_draws_the_same_twice():
    """With dropout and noise the gradient is that of the very function that was computed.

    Were other numbers drawn in the backward pass, the directional derivative would not fit.
    """
    case = cases.TRANSFORMER["all_dropouts"]
    block = case.built(remat=True, dropout_rate=0.5, attention_dropout_rate=0.5)
    states = [v for v in block.variables if "seed_generator" in v.path]
    before = [np.asarray(v) for v in states]

    def loss(x):
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        outputs, _, of_x = layer_gradients(block, harness.total, x, training=True)
        return harness.total(outputs, block.losses), of_x

    x = case.inputs()
    value, gradient = loss(x)
    again, _ = loss(x)
    assert float(value) == pytest.approx(float(again), rel=1e-6)
    direction = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    ends = [float(loss(x + step * direction)[0]) for step in (1e-3, -1e-3)]
    slope = (ends[0] - ends[1]) / 2e-3
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_recomputation_carries_losses_and_metrics_out():
    block = cases.TRANSFORMER["remat"].built()
    block(cases.TRANSFORMER["remat"].inputs(), training=True)
    assert len(block.losses) == 2
    metrics = {m.name.split("/")[-1]: float(m.result()) for m in block.metrics}
    assert 0 < metrics["confidence"] <= 1
    first = [np.asarray(v) for v in block.variables if "seed_generator" in v.path]
    block(cases.TRANSFORMER["remat"].inputs(), training=True)
    second = [np.asarray(v) for v in block.variables if "seed_generator" in v.path]
    assert any((one != other).any() for one, other in zip(first, second, strict=True))


# ------------------------------------------------------------- several sequences side by side

LENGTHS = (3, 2)
TEXT = np.array([[True, True], [True, False], [True, True]])
SIDES = {"segments": LENGTHS, "attention_masks": (None, TEXT)}


def side_block(router=None, remat=False):
    mlp = layers.MLP(6) if router is None else layers.MoEMLP(router, 6, images_per_group=2)
    return harness.LayerCase(
        layers.EncoderBlock,
        {"num_heads": 2, "mlp": cases.config(mlp), "remat": remat},
        cases.TOKENS,
    ).built()


def roomy():
    """A router that drops nothing, so that sequences cannot crowd each other out."""
    return cases.top_k(capacity_factor=4.0)


@pytest.mark.parametrize("sparse", [False, True])
def test_segments_are_the_sequences_alone(sparse):
    block = side_block(roomy() if sparse else None)
    x = cases.TRANSFORMER["block"].inputs()
    found = np.asarray(block(x, segments=LENGTHS))
    parts = [np.asarray(block(part)) for part in (x[:, :3], x[:, 3:])]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), atol=1e-5)
    assert np.abs(found - np.asarray(block(x))).max() > 1e-2, "they would attend to each other"


def test_a_mask_of_attention_leaves_tokens_out():
    """A padded text is the text without its padding, and what the padding holds is seen by none."""
    block = side_block()
    x = cases.TRANSFORMER["block"].inputs()
    found = np.asarray(block(x, **SIDES))
    short = np.asarray(block(x[1:2, 3:4]))
    np.testing.assert_allclose(found[1:2, 3:4], short, atol=1e-5)
    other = x.copy()
    other[1, 4] = 100.0
    np.testing.assert_allclose(np.asarray(block(other, **SIDES))[:, :4], found[:, :4], atol=1e-5)
    assert np.abs(np.asarray(block(other, segments=LENGTHS))[1, 3] - found[1, 3]).max() > 1e-2


@pytest.mark.parametrize("lengths", [None, (5,)])
def test_one_segment_is_none(lengths):
    block, x = side_block(), cases.TRANSFORMER["block"].inputs()
    np.testing.assert_array_equal(np.asarray(block(x, segments=lengths)), np.asarray(block(x)))


def test_recomputation_with_segments_and_modalities():
    x, mask = cases.TRANSFORMER["block"].inputs(), np.concatenate([np.ones((3, 3), bool), TEXT], 1)
    results = []
    for remat in (False, True):
        block = side_block(cases.modality_router(noise_std=0.0), remat)
        y, gradients, of_x = layer_gradients(
            block, harness.total, x, training=True, mask=mask, **SIDES, **cases.MODALITY
        )
        losses = [float(loss) for loss in block.losses]
        results.append((np.asarray(y), losses, [*gradients.values(), of_x]))
    (y, losses, gradients), (same_y, same_losses, same_gradients) = results
    assert len(losses) == 4
    np.testing.assert_allclose(same_y, y, atol=1e-6)
    assert same_losses == pytest.approx(losses, rel=1e-6)
    for one, other in zip(gradients, same_gradients, strict=True):
        assert max_error(other, one) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: side_block()(x, segments=(3, 3)), r"sum to the 5 tokens.*segments=(3, 3)"),
        (
            lambda x: side_block()(x, segments=LENGTHS, attention_masks=(None,)),
            "each of the 2 segments. Received: 1",
        ),
        (lambda x: side_block(roomy())(x, **cases.MODALITY), "modality is of a ModalityRouter"),
        (lambda x: side_block(cases.modality_router())(x), "modality must tell"),
        (lambda x: side_block()(x, **cases.MODALITY), "modality"),
    ],
)
def test_bad_segments_are_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call(cases.TRANSFORMER["block"].inputs())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.MLP(0), "hidden_dim=0"),
        (lambda: layers.MLP(4, dropout_rate=-0.1), "dropout_rate=-0.1"),
        (lambda: layers.EncoderBlock(0, layers.MLP(4)), "num_heads=0"),
        (lambda: layers.EncoderBlock(3, layers.MLP(4)).build((None, 5, 8)), "num_heads=3, width=8"),
        (lambda: layers.EncoderBlock(2, layers.MLP(4)).build((None, 8)), "(None, 8)"),
        (lambda: layers.EncoderBlock(2, layers.MLP(4), dropout_rate=1), "dropout_rate=1"),
        (
            lambda: layers.EncoderBlock(2, layers.MLP(4), attention_dropout_rate="a"),
            "attention_dropout_rate='a'",
        ),
        (
            lambda: layers.EncoderBlock(2, layers.MLP(4), stochastic_depth_rate=1.5),
            "stochastic_depth_rate=1.5",
        ),
        (lambda: layers.EncoderBlock(2, "dense"), "mlp.*'dense'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        call()
