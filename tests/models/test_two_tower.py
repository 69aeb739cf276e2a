"""Two towers against the reference's numbers, and what is theirs alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops as kops

from keras_vmoe import checkpoints, models, ops
from tests.support.golden import load, max_error

GOLDEN = load("06_contrastive_two_tower")
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "mlp_dim": 32,
    "num_heads": 2,
    "vocabulary_size": 50,
    "text_length": 8,
    "projection_dim": 12,
}
# Groups of 32 image tokens are 2 images, of 16 text tokens 2 texts.
SPARSE = {"num_experts": 4, "pairs_per_group": 2}
TEXT = {
    "vocabulary_size": 50,
    "text_length": 8,
    "num_layers": 2,
    "width": 16,
    "mlp_dim": 32,
    "num_heads": 2,
    "num_classes": 12,
    "mask_padding": False,
    "placement": (1,),
    "num_experts": 4,
    "texts_per_group": 2,
}


def two_towers(**arguments):
    return models.TwoTower(**{**SIZES, "num_layers": 2, **arguments})


@pytest.fixture(scope="module")
def reference():
    model = two_towers(
        num_layers=4,
        text_num_layers=2,
        mask_padding=False,
        text_pooling="last",
        placement=(1, 3),
        text_placement=(1,),
        loss="sigmoid",
        **SPARSE,
    )
    checkpoints.assign_reference_params(model, GOLDEN.under("params"))
    return model


def inputs():
    return {"images": GOLDEN["in/images"], "tokens": GOLDEN["in/texts"].astype("int32")}


def test_embeddings_and_loss_of_the_reference(reference):
    outputs = reference(inputs())
    for name, wanted in (("image_embedding", "zimg"), ("text_embedding", "ztxt")):
        np.testing.assert_allclose(np.asarray(outputs[name]), GOLDEN[f"out/{wanted}"], atol=1e-5)
    logits, kind = ops.contrastive_outputs(outputs)
    assert max_error(logits.to_texts, GOLDEN["out/logits"]) < 1e-5
    losses = np.asarray(ops.contrastive_loss(logits, kind))
    np.testing.assert_allclose(losses, GOLDEN["out/sigmoid_loss_per_row"], rtol=1e-5)
    np.testing.assert_allclose(losses.mean(), GOLDEN["out/main_loss"], rtol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "gap", "gmp", "map"])
def test_poolings_of_texts(pooling):
    model = models.TextTransformer(**TEXT, pooling=pooling)
    checkpoints.assign_reference_params(model, GOLDEN.under(f"text_{pooling}/params"))
    z = np.asarray(model(GOLDEN["in/texts"].astype("int32")))
    np.testing.assert_allclose(z, GOLDEN[f"text_{pooling}/out/z"], atol=1e-5)


def test_gradients_of_the_reference(reference):
    variables = checkpoints.reference_variables(reference)
    with tf.GradientTape() as tape:
        outputs = reference(inputs())
        loss = kops.mean(ops.contrastive_loss(*ops.contrastive_outputs(outputs)))
    found = tape.gradient(loss, {name: v.value for name, v in variables.items()})
    wanted = GOLDEN.under("grad_params_total_as_trained")
    assert found.keys() == wanted.keys()
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        ours = tf.convert_to_tensor(found[name]).numpy()
        # Key biases have no gradient but rounding: the softmax does not see them.
        if np.abs(gradient).max() < 1e-6 * largest:
            assert np.abs(ours).max() < 1e-6 * largest, name
        else:
            assert max_error(ours, gradient) < 1e-5, name


def test_one_tower_has_no_names_there():
    with pytest.raises(ValueError, match="the reference implementation does not have"):
        checkpoints.reference_variables(models.LIMoE.from_variant("limoe_ti8"))


def test_towers_share_nothing_and_are_alike_by_default():
    model = two_towers()
    tokens = np.array([[4, 7, 1, 1, 1, 1, 1, 1]] * 2, "int32")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    outputs = model({"images": images, "tokens": tokens})
    np.testing.assert_allclose(
        np.asarray(model.encode_image(images)), np.asarray(outputs["image_embedding"]), atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(model.encode_text(tokens)), np.asarray(outputs["text_embedding"]), atol=1e-6
    )
    own, theirs = ({id(v) for v in x.weights} for x in (model.image_tower, model.text_tower))
    assert not own & theirs
    assert not models.is_sparse(model)


def test_padding_changes_nothing():
    model = two_towers(text_placement=(1,), **SPARSE)
    tokens = np.array([[4, 7, 1, 1, 1, 1, 1, 1]], "int32")
    other = np.array([[4, 7, 1, 9, 9, 2, 3, 1]], "int32")
    np.testing.assert_allclose(
        np.asarray(model.encode_text(tokens)), np.asarray(model.encode_text(other)), atol=1e-6
    )


@pytest.mark.parametrize("pooling", ["gap", "map"])
def test_pairs_that_are_none_take_no_slot(pooling):
    sparse = {"placement": (1,), "text_placement": (1,), "capacity_factor": 0.6, **SPARSE}
    model = two_towers(pooling=pooling, text_pooling=pooling, **sparse)
    batch = {name: array[:4] for name, array in inputs().items()}
    real = np.array([True, False, True, True])
    outputs = models.with_image_mask(model)({**batch, "mask": real})
    # A group is two pairs, so that the first is routed with none.
    alone = {name: array[:1] for name, array in batch.items()}
    for name in ("image_embedding", "text_embedding"):
        given = np.asarray(outputs[name])
        np.testing.assert_allclose(given[:1], np.asarray(model(alone)[name]), atol=1e-6)
        np.testing.assert_allclose(given[2:], np.asarray(model(batch)[name])[2:], atol=1e-6)


def test_no_two_metrics_share_a_name():
    model = two_towers(placement=(1,), text_placement=(1,), **SPARSE)
    assert [layer.name for layer in models.moe_layers(model)] == [
        "encoder_block_1_moe",
        "text_encoder_block_1_moe",
    ]
    names = {id(metric): metric.name for metric in model.metrics}.values()
    assert len(set(names)) == len(names) > 0


def test_it_trains_and_is_saved(tmp_path):
    keras.utils.set_random_seed(0)
    model = two_towers(placement=(1,), loss="sigmoid", scale_init=5.0, bias_init=-2.0, **SPARSE)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(8, 32, 32, 3)).astype("float32"),
        "tokens": rng.integers(2, 50, size=(8, 8)).astype("int32"),
    }
    model.compile(keras.optimizers.Adam(3e-3))
    losses = model.fit(batch, epochs=12, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for name, value in again.predict(batch, verbose=0).items():
        np.testing.assert_allclose(value, model.predict(batch, verbose=0)[name], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of 'softmax', 'sigmoid'"),
        ({"text_pooling": "cls"}, "pooling must be one of"),
        ({"scale_init": 0.0}, "scale_init must be above 0"),
        ({"text_num_heads": 3}, "num_heads must divide the width"),
        ({"vocabulary_size": 0}, "vocabulary_size must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_towers(**arguments)
