"""As-ViT: the reference's numbers, any size of image, and the same weights in other graphs."""

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from tests.support import golden

FILES = ("forward_k6_h32_c9_d1111_64", "forward_s842_h16_c8_d1111_96")


def reference(name, **overrides):
    """A golden file, and the model with its weights."""
    file = golden.load(f"asvit/{name}")
    config = file.config
    genotype = f"{config['genotype']},{config['hidden']}"
    arguments = {"num_classes": config["num_classes"], "image_size": config["image_size"]}
    model = models.AsViT(genotype, **{**arguments, **overrides})
    checkpoints.assign_as_vit_params(model, file.under("params"))
    return file, model


@pytest.mark.parametrize("norm", ["layer", "identity"])
@pytest.mark.parametrize("name", FILES)
def test_logits_and_features_are_those_of_the_reference(name, norm):
    file, model = reference(name, norm=norm)
    wanted = file.under({"layer": "ln64", "identity": "id64"}[norm])
    images = file["x_NCHW"].transpose(0, 2, 3, 1)
    features = models.pooled_features(model)(images)
    assert golden.max_error(model(images), wanted["logits"]) < 1e-5
    assert golden.max_error(features["post_norm"], wanted["feat_post"]) < 1e-5
    assert golden.max_error(features["pre_norm"], wanted["feat_pre"]) < 1e-5
    if norm == "layer":
        assert model.count_params() == file.config["n_params"]


@pytest.mark.parametrize("norm", ["layer", "identity"])
def test_each_stage_is_that_of_the_reference(norm):
    file, model = reference(FILES[0], norm=norm)
    stages = file.under({"layer": "ln/stages", "identity": "id/stages"}[norm])
    names = {"patch_embed": "embedding_norm"}
    for i in range(4):
        names[f"layers.{i}.blocks.0"] = f"encoder_block_{i}"
        if i < 3:
            names[f"layers.{i}.downsample"] = f"merging_{i + 1}"
    maps = keras.Model(model.input, {n: model.get_layer(n).output for n in names.values()})
    found = maps(file["x_NCHW"].transpose(0, 2, 3, 1)[:1])
    for theirs, ours in names.items():
        tokens = np.asarray(found[ours]).reshape(stages[theirs].shape)
        assert golden.max_error(tokens, stages[theirs]) < 1e-5, theirs
