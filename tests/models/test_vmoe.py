"""The sparse model as Keras users meet it: fit, files, precision, any batch."""

import keras
import numpy as np
import pytest

from keras_vmoe import layers, models
from tests.models import tiny
from tests.support.golden import max_error
from tests.support.gradients import layer_gradients

KINDS = ("top_k", "expert_choice", "soft")
METRICS = {"confidence", "dropped", "entropy", "expert_load_max", "expert_load_min"}
LABELS = np.arange(7) % 3


@pytest.mark.parametrize("kind", KINDS)
def test_config_and_clone(kind):
    model = tiny.vmoe(router=kind)
    x = tiny.images(4)
    wanted = np.asarray(model(x))
    by_config = models.VMoE.from_config(model.get_config())
    assert by_config.get_config() == model.get_config()
    for again in (by_config, keras.models.clone_model(model)):
        again.set_weights(model.get_weights())
        np.testing.assert_array_equal(np.asarray(again(x)), wanted)
        assert not {id(v) for v in again.weights} & {id(v) for v in model.weights}


def test_every_argument_is_in_the_config():
    arguments = {
        "router": "top_k",
        "num_selected": 1,
        "eval_capacity_factor": 3.0,
        "capacity_rounding": "round",
        "expert_capacity": 3,
        "batch_priority": False,
        "priority_score": "sum",
        "renormalise_gates": True,
        "noise_std": 0.5,
        "importance_loss_weight": 0.1,
        "load_loss_weight": 0.2,
        "gshard_loss_weight": 0.3,
        "z_loss_weight": 0.4,
        "expert_dropout_rate": 0.25,
        "shared_expert_init": False,
        "dispatch": "gather",
        "dispatch_dtype": "bfloat16",
        "activation": keras.activations.relu,
    }
    model = models.VMoE.from_config(tiny.vmoe(**arguments).get_config())
    moe = model.get_layer("encoder_block_1").mlp
    for name in set(arguments) - {"router", "activation", "shared_expert_init"}:
        owner = {"dispatch": moe, "dispatch_dtype": moe}.get(name, moe.router)
        if name == "expert_dropout_rate":
            assert moe.experts.dropout_rate == 0.25
        else:
            assert getattr(owner, name) == arguments[name], name
    assert moe.experts.activation is keras.activations.relu
    assert not moe.experts.shared_init
    assert moe.images_per_group == 3


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path):
    model = tiny.vmoe(router=kind, dropout_rate=0.1, stochastic_depth_rate=0.1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is models.VMoE
    assert again.get_config() == model.get_config()
    x = tiny.images(4)
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = tiny.vmoe(router=kind, dropout_rate=0.1, stochastic_depth_rate=0.1)
    for variable in fresh.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(np.asarray(fresh(x)), np.asarray(model(x)))


@pytest.mark.parametrize(
    "kind",
    [
        "top_k",
        pytest.param("expert_choice", marks=pytest.mark.slow),
        pytest.param("soft", marks=pytest.mark.slow),
    ],
)
def test_saved_model_export(kind, tmp_path):
    import tensorflow as tf

    model = tiny.vmoe(router=kind)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    for batch in (1, 2, 3, 7):
        x = tiny.images(batch, seed=batch)
        np.testing.assert_allclose(served.serve(x).numpy(), np.asarray(model(x)), atol=1e-5)
    assert not assignments(served)
    assert layers.metrics_enabled(), "metrics are switched on again"


def assignments(served):
    """Operations of a served graph that change a variable."""
    graph = served.signatures["serving_default"].graph.as_graph_def()
    nodes = [n.op for f in graph.library.function for n in f.node_def]
    return {op for op in nodes + [n.op for n in graph.node] if "Assign" in op}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size(kind):
    """A batch is its groups of three images, one after the other; one image costs one image."""
    model = tiny.vmoe(router=kind)
    x = tiny.images(7)
    groups = [np.asarray(model(x[i : i + 3])) for i in (0, 3, 6)]
    np.testing.assert_allclose(np.asarray(model(x)), np.concatenate(groups), atol=1e-5)
    found = model.predict(x, batch_size=7, verbose=0)
    np.testing.assert_allclose(found, np.concatenate(groups), atol=1e-5)
    assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("top_k", "float32"),
        pytest.param("expert_choice", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("top_k", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("expert_choice", "float32", marks=pytest.mark.slow),
        pytest.param("soft", "float32", marks=pytest.mark.slow),
        pytest.param("soft", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_fit_evaluate_predict(kind, dtype):
    model = tiny.vmoe(
        placement=(1,),
        router=kind,
        dtype=dtype,
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
        stochastic_depth_rate=0.1,
        expert_dropout_rate=0.2,
    )
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = [np.asarray(v) for v in model.trainable_variables]
    data = (tiny.images(7), LABELS)
    history = model.fit(*data, batch_size=3, epochs=2, verbose=0, validation_data=data).history
    assert np.isfinite(history["loss"]).all()
    moved = [
        (np.asarray(v) != b).any() for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert all(moved)
    check_history(history, "encoder_block_1_moe/", kind)
    results = model.evaluate(*data, verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-2)
    logits = model.predict(data[0], verbose=0)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def check_history(history, prefix, kind):
    named = {n.removeprefix(prefix) for n in history if n.startswith(prefix)}
    assert named == (METRICS - {"dropped"} if kind == "soft" else METRICS)
    for name in named:
        assert np.isfinite(history[prefix + name]).all()
        assert "val_" + prefix + name in history
    assert 0 < history[prefix + "confidence"][-1] <= 1
    shares = [history[prefix + f"expert_load_{end}"][-1] for end in ("min", "max")]
    assert 0 <= shares[0] <= 0.25 <= shares[1] <= 1
    if kind != "soft":
        assert 0 <= history[prefix + "dropped"][-1] < 1


def test_evaluation_is_the_loss_and_the_auxiliary_losses():
    model = tiny.vmoe(importance_loss_weight=0.5, z_loss_weight=0.1)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = tiny.images(3)
    loss = model.evaluate(x, LABELS[:3], verbose=0, return_dict=True)["loss"]
    logits = np.asarray(model(x), "float64")
    auxiliary = float(sum(model.losses))
    assert len(model.losses) == 4
    log_sum = np.log(np.exp(logits).sum(-1))
    cross_entropy = (log_sum - logits[np.arange(3), LABELS[:3]]).mean()
    assert loss == pytest.approx(cross_entropy + auxiliary, rel=1e-5)


def test_metrics_of_an_epoch_are_means_over_its_batches():
    model = tiny.vmoe(noise_std=0.0)
    model.compile(loss="mse")
    x = tiny.images(6)
    results = model.evaluate(x, np.zeros((6, 3)), batch_size=3, verbose=0, return_dict=True)
    wanted = []
    for i in (0, 3):
        with layers.record_routing() as calls:
            model(x[i : i + 3])
        wanted.append(1 - np.asarray(calls[1].plan.kept).mean())
    assert results["encoder_block_1_moe/dropped"] == pytest.approx(np.mean(wanted), abs=1e-6)


@pytest.mark.slow
def test_a_compiled_model_survives_its_file(tmp_path):
    model = tiny.vmoe(num_layers=1, placement=(0,), noise_std=0.0)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tiny.images(6), LABELS[:6], batch_size=3, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    wanted, found = (
        m.evaluate(tiny.images(6), LABELS[:6], verbose=0, return_dict=True) for m in (model, again)
    )
    assert found == pytest.approx(wanted, rel=1e-6)
    results = [
        m.train_on_batch(tiny.images(6), LABELS[:6], return_dict=True) for m in (model, again)
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-5), "the optimizer came along"
    assert len(again.optimizer.variables) == len(model.optimizer.variables)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(kind):
    full = tiny.vmoe(router=kind, noise_std=0.0)
    half = tiny.vmoe(router=kind, noise_std=0.0, dtype="mixed_bfloat16")
    half.set_weights(full.get_weights())
    x = tiny.images(1)
    assert half.get_layer("encoder_block_0").output.dtype == "bfloat16"
    found = half(x, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert all(keras.backend.standardize_dtype(loss.dtype) == "float32" for loss in half.losses)
    _, gradients, _ = layer_gradients(
        half, lambda y, losses: keras.ops.sum(y) + sum(losses, 0.0), x, training=True
    )
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert np.median(np.abs(np.asarray(found) - np.asarray(full(x, training=True)))) < 0.3


def test_expert_dropout_is_of_experts_alone():
    model = tiny.vmoe(dropout_rate=0.1, expert_dropout_rate=0.4, placement=(1,))
    assert model.get_layer("encoder_block_0").mlp.dropout_rate == 0.1
    assert model.get_layer("encoder_block_1").mlp.experts.dropout_rate == 0.4
    model = tiny.vmoe(dropout_rate=0.1)
    assert model.get_layer("encoder_block_1").mlp.experts.dropout_rate == 0.1


def test_dispatches_give_the_same_model():
    x = tiny.images(5)
    for kind in ("top_k", "expert_choice"):
        outputs = [
            np.asarray(tiny.vmoe(router=kind, dispatch=d)(x))
            for d in ("einsum", "gather", "grouped")
        ]
        assert max_error(outputs[1], outputs[0]) < 5e-6
        assert max_error(outputs[2], outputs[0]) < 5e-6


def test_a_frozen_model_stays_frozen():
    model = tiny.vmoe()
    model.trainable = False
    assert not models.VMoE.from_config(model.get_config()).trainable_variables


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"router": "switch"}, "'top_k', 'expert_choice', 'soft'.*'switch'"),
        ({"placement": "last_3"}, "placement='last_3'"),
        ({"placement": (2,)}, "placement=(2,)"),
        ({"num_selected": 5}, "num_selected=5"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0"),
        ({"images_per_group": 0}, "images_per_group=0"),
        ({"dispatch": "scatter"}, "'scatter'"),
        ({"router": "soft", "dispatch": "grouped"}, "'grouped'"),
        ({"num_slots": 3}, "num_slots"),
        ({"router": "soft", "expert_capacity": 3}, "expert_capacity"),
        ({"router": "soft", "eval_capacity_factor": 3.0}, "eval_capacity_factor"),
        ({"expert_dropout_rate": 1.0}, "dropout_rate=1.0"),
    ],
)
def test_bad_input_is_named(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        tiny.vmoe(**overrides)
