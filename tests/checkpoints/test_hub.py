"""ViTs of KerasHub become models of this package."""

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from keras_vmoe.checkpoints import CheckpointError, hub

keras_hub = pytest.importorskip("keras_hub")

SIZES = {"num_layers": 11, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "patch_size": 8}


def classifier(use_class_token=True, pooling="token", image_shape=(32, 24, 3), **options):
    backbone = keras_hub.models.ViTBackbone(
        image_shape=image_shape,
        use_class_token=use_class_token,
        layer_norm_epsilon=1e-12,
        **SIZES,
        **options,
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone=backbone, num_classes=5, pooling=pooling, intermediate_dim=7
    )
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(0.3 * rng.normal(size=variable.shape))
    return model


@pytest.mark.parametrize(("token", "pooling"), [(True, "token"), (False, "gap"), (False, "token")])
def test_logits_are_the_same(token, pooling):
    theirs = classifier(token, pooling)
    model = checkpoints.load_model(theirs)
    assert type(model) is models.ViT
    assert model.arguments["activation"] == "gelu"
    assert model.arguments["layer_norm_epsilon"] == 1e-12
    images = np.random.default_rng(1).uniform(-1, 1, (3, 32, 24, 3)).astype("float32")
    np.testing.assert_allclose(model(images), theirs(images), atol=1e-5)


def test_a_backbone_gives_features():
    theirs = classifier().backbone
    model = checkpoints.load_model(theirs)
    images = np.random.default_rng(1).uniform(-1, 1, (3, 32, 24, 3)).astype("float32")
    np.testing.assert_allclose(model(images), theirs(images)[:, 0], atol=1e-5)


def test_a_preset_is_fine_tuned_and_upcycled(tmp_path):
    classifier(image_shape=(32, 32, 3)).save_to_preset(str(tmp_path / "preset"))
    model = checkpoints.load_model(tmp_path / "preset", image_size=48, num_classes=2)
    assert model.output_shape == (None, 2)
    assert model.input_shape == (None, 48, 48, 3)
    sparse = checkpoints.upcycle(model, 4, capacity_factor=4.0)
    images = np.random.default_rng(1).uniform(-1, 1, (3, 48, 48, 3)).astype("float32")
    np.testing.assert_allclose(sparse(images), model(images), atol=1e-5)


def test_the_command_takes_a_preset(tmp_path, capsys):
    from keras_vmoe.trainers import cli

    theirs = classifier()
    theirs.save_to_preset(str(tmp_path / "preset"))
    words = ["convert", str(tmp_path / "preset"), str(tmp_path / "vit.keras")]
    assert cli.main(words) == 0
    assert "ViT: 186 arrays copied" in capsys.readouterr().out
    images = np.random.default_rng(1).uniform(-1, 1, (3, 32, 24, 3)).astype("float32")
    model = keras.models.load_model(tmp_path / "vit.keras")
    np.testing.assert_allclose(model(images), theirs(images), atol=1e-5)


def test_what_cannot_be_taken_over(tmp_path):
    with pytest.raises(ValueError, match="without biases.*use_mha_bias=False"):
        checkpoints.load_model(classifier(use_mha_bias=False))
    with pytest.raises(ValueError, match="pooling='gap' over a class token"):
        checkpoints.load_model(classifier(pooling="gap"))
    with pytest.raises(ValueError, match="must be a ViTBackbone.*Received: Sequential"):
        checkpoints.load_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="KerasHub cannot load it"):
        checkpoints.load_model(tmp_path)


def test_without_keras_hub(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-vmoe\[hub\]'"):
        hub.load_hub_model("hf://google/vit-base-patch16-224")
