"""Profiles of built models, layer by layer."""

import keras
import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import analysis, layers, models

D, H, T = 8, 12, 5
MLP_PARAMS, MLP_MACS = 2 * D * H + D + H, 2 * T * D * H


def moe(**overrides):
    arguments = {"num_experts": 4, "num_selected": 2, "capacity_factor": 1.0, **overrides}
    return layers.MoEMLP(layers.TopKRouter(**arguments), hidden_dim=H, name="moe")


def test_a_functional_model_of_ones_own():
    tokens = keras.Input((T, D))
    x = keras.layers.LayerNormalization(name="norm")(tokens)
    x = tokens + moe()(x)
    x = keras.layers.Dense(3, name="dense")(layers.TokenPooling("mean")(x))
    model = keras.Model(tokens, x)
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    assert [row.name for row in profile.layers] == ["norm", "moe", "dense"]
    assert profile.layers[1].macs == 2 * MLP_MACS + T * D * 4
    assert profile.layers[1].activated_params == 2 * MLP_PARAMS + D * 4
    assert profile.layers[2].macs == D * 3
    assert profile.notes == ()


def tiny(**overrides):
    arguments = {
        "image_size": 16,
        "patch_size": 4,
        "num_layers": 2,
        "width": D,
        "mlp_dim": H,
        "num_heads": 2,
        "num_classes": 3,
        "num_experts": 4,
        "name": "tiny",
    }
    return models.VMoE(**{**arguments, **overrides})


def test_a_call_with_other_routing_costs_otherwise():
    model = tiny()
    for changes in ({"num_selected": 1}, {"capacity_factor": 0.5}, {"num_selected": 3}):
        changed = analysis.profile(keras_vmoe.with_routing(model, **changes))
        assert changed.layers == analysis.profile(model, **changes).layers
    once = keras_vmoe.with_routing(models.Classifier(model, list("abc")), num_selected=1)
    assert analysis.profile(once).macs == analysis.profile(model, num_selected=1).macs


def test_expert_choice_and_soft_routing_are_read_off_the_layer():
    for router in ("expert_choice", "soft"):
        model = tiny(router=router)
        again = keras.Model(model.inputs, model.outputs)
        assert analysis.profile(again).layers == analysis.profile(model).layers
    cheap = keras_vmoe.with_routing(tiny(router="expert_choice"), capacity_factor=0.5)
    wanted = analysis.profile(tiny(router="expert_choice", capacity_factor=0.5))
    assert analysis.profile(cheap).layers == wanted.layers


def test_a_model_in_a_model_stands_in_line():
    model = tiny()
    classifier = models.Classifier(model, list("abc"))
    profile = analysis.profile(classifier)
    assert profile.params == classifier.count_params()
    assert profile.macs == analysis.profile(model).macs
    assert profile.layers[0].name == "tiny/embedding"


def test_an_image_mask_changes_nothing():
    model = tiny()
    assert analysis.profile(models.with_image_mask(model)).layers == analysis.profile(model).layers


def test_shared_weights_count_once_and_work_every_time():
    dense, shared, images = keras.layers.Dense(D), tiny(num_classes=None), keras.Input((16, 16, 3))
    x = dense(dense(keras.layers.Add()([shared(images), shared(images)])))
    twin = keras.Model(images, x)
    profile = analysis.profile(twin)
    assert profile.params == twin.count_params()
    assert profile.macs == 2 * analysis.profile(shared).macs + 2 * D * D


def test_sequential_models():
    model = keras.Sequential([keras.Input((T, D)), moe(), keras.layers.Dense(2)])
    assert analysis.profile(model).params == model.count_params()
    assert analysis.profile(model).macs == 2 * MLP_MACS + T * D * 4 + T * D * 2
    late = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="must be built"):
        analysis.profile(late)


class Residual(keras.layers.Layer):
    """A user's layer with known layers and a weight of its own inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = moe()
        self.dense = keras.layers.Dense(D)

    def build(self, shape):
        self.scale = self.add_weight(shape=(D,), name="scale")
        self.inner.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x + self.scale * self.inner(x))

    def compute_output_shape(self, shape):
        return shape


def test_a_layer_that_is_not_known_is_what_it_holds():
    tokens = keras.Input((T, D))
    model = keras.Model(tokens, Residual(name="mine")(tokens))
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    assert profile.params - profile.activated_params == 2 * MLP_PARAMS
    assert profile.macs == 2 * MLP_MACS + T * D * 4 + T * D * D
    assert profile.notes[0].startswith("mine: Residual is not known: each layer inside counts once")
    assert "Note: mine" in str(profile)


def test_a_block_with_a_layer_that_is_not_known():
    tokens = keras.Input((T, D))
    model = keras.Model(tokens, layers.EncoderBlock(2, Residual())(tokens))
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    attention = 4 * T * D * D + 2 * T * T * D
    assert profile.macs == attention + 2 * MLP_MACS + T * D * 4 + T * D * D


def test_a_subclassed_model_is_the_layers_it_holds():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = tiny(num_classes=None)
            self.top = keras.layers.Dense(2)

        def call(self, x):
            return self.top(self.body(x))

    model = Mine()
    with pytest.raises(ValueError, match="must be built"):
        analysis.profile(model)
    model(np.zeros((1, 16, 16, 3), "float32"))
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    assert profile.macs == analysis.profile(model.body).macs + D * 2
    assert len(profile.notes) == 1
    with pytest.raises(ValueError, match="can be overridden for an id"):
        analysis.profile(model, num_experts=2)


def test_unknown_lengths_and_operations_are_noted():
    tokens = keras.Input((None, D))
    model = keras.Model(tokens, moe()(tokens))
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    assert profile.activated_params == 2 * MLP_PARAMS + D * 4
    assert profile.macs == 0
    assert "shape of its input is not known" in profile.notes[0]
    x = keras.Input((3, 3))
    (note,) = analysis.profile(keras.Model(x, keras.ops.matmul(x, x))).notes
    assert "operation Matmul" in note


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (keras.layers.Dense(4), (5, 3), 5 * 3 * 4),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4)), (5, 3), 5 * 3 * 8),
        (keras.layers.EinsumDense("abc,bcd->ad", 4), (5, 3), 5 * 3 * 4),
        (keras.layers.EinsumDense("...x,xy->...y", 4), (5, 3), 5 * 3 * 4),
        (keras.layers.Conv2D(4, 3, padding="same"), (6, 6, 2), 36 * 9 * 2 * 4),
        (keras.layers.Conv2D(4, 3, strides=2, groups=2), (7, 7, 2), 9 * 9 * 1 * 4),
        (keras.layers.Conv1D(4, 2), (5, 3), 4 * 2 * 3 * 4),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 4), 9 * 9 * 4 * 2),
        (keras.layers.SeparableConv2D(6, 3), (5, 5, 4), 9 * (9 * 4 + 4 * 6)),
        (keras.layers.Conv2DTranspose(6, 2, strides=2), (5, 5, 4), 25 * 4 * 4 * 6),
        (keras.layers.BatchNormalization(), (5, 5, 4), 0),
        (keras.layers.Embedding(10, 4), (5,), 0),
        (keras.layers.Flatten(), (5, 5), 0),
    ],
)
def test_keras_layers_by_hand(layer, shape, macs):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    profile = analysis.profile(model)
    assert profile.params == model.count_params()
    assert profile.macs == macs
    assert profile.notes == ()
    for row in profile.layers:
        assert (None, *row.output_shape) == model.output_shape


def test_attention_by_hand():
    query, value = keras.Input((3, 8)), keras.Input((5, 6))
    layer = keras.layers.MultiHeadAttention(2, 4, value_dim=3)
    model = keras.Model([query, value], layer(query, value))
    macs = 3 * 8 * 8 + 5 * 6 * 8 + 5 * 6 * 6 + 3 * 6 * 8 + 2 * 3 * 5 * (4 + 3)
    profile = analysis.profile(model)
    assert (profile.params, profile.macs) == (model.count_params(), macs)
    layer = keras.layers.GroupQueryAttention(4, 4, 2)
    grouped = analysis.profile(keras.Model(query, layer(query, query)))
    assert grouped.macs == 2 * 3 * 8 * 16 + 2 * 3 * 8 * 8 + 2 * 4 * 3 * 3 * 4
    own = layers.MultiHeadAttention(2, 4)
    model = keras.Model(query, own(query, query))
    assert analysis.profile(model).macs == 4 * 3 * 64 + 2 * 9 * 8
