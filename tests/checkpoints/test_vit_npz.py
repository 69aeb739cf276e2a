"""Archives of ViTs with the names of google-research/vision_transformer."""

import numpy as np
import pytest

from keras_vmoe import checkpoints
from keras_vmoe.checkpoints.vit_npz import vit_name
from tests.models import tiny

# Of google-research/vision_transformer's table of names, written out.
VIT_NAMES = {
    "cls": "cls",
    "embedding/kernel": "embedding/kernel",
    "Transformer/posembed_input/pos_embedding": "Encoder/posembed_input/pos_embedding",
    "Transformer/encoderblock_11/LayerNorm_0/scale": "Encoder/encoderblock_11/LayerNorm_0/scale",
    "Transformer/encoderblock_11/LayerNorm_2/scale": "Encoder/encoderblock_11/LayerNorm_1/scale",
    "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel": (
        "Encoder/encoderblock_1/SelfAttention/query/kernel"
    ),
    "Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias": "Encoder/encoderblock_1/Mlp/Dense_1/bias",
    "Transformer/encoder_norm/bias": "Encoder/encoder_norm/bias",
    "pre_logits/kernel": "pre_logits/kernel",
    "head/bias": "head/bias",
}


def test_names_of_vision_transformer(tmp_path):
    path = tmp_path / "vit.npz"
    np.savez(path, **{name: np.full(2, i) for i, name in enumerate(VIT_NAMES)})
    found = checkpoints.open_arrays(path)
    assert list(found) == list(VIT_NAMES.values())
    assert [int(a[0]) for a in found.values()] == list(range(len(VIT_NAMES)))
    assert [vit_name(name) for name in found] == list(VIT_NAMES)


def test_a_vit_goes_to_an_archive_and_back(tmp_path):
    model = tiny.vit(representation_size=6)
    tiny.spread(model)
    checkpoints.save_vit_npz(model, tmp_path / "vit.npz")
    with np.load(tmp_path / "vit.npz") as file:
        assert "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel" in file.files
    again = checkpoints.load_model(tmp_path / "vit.npz")
    images = tiny.images(2)
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)


def test_an_archive_of_a_vit_needs_a_vit(tmp_path):
    with pytest.raises(ValueError, match="sparse blocks.*save_vmoe"):
        checkpoints.save_vit_npz(tiny.vmoe(), tmp_path / "vit.npz")
    checkpoints.save_vit_npz(tiny.vit(), tmp_path / "vit.npz")
    with pytest.raises(ValueError, match="exists"):
        checkpoints.save_vit_npz(tiny.vit(), tmp_path / "vit.npz")


@pytest.mark.parametrize(
    "argument",
    [
        {"activation": "gelu"},
        {"layer_norm_epsilon": 1e-12},
        {"qk_norm": True},
        {"position_embedding": "sincos2d"},
        {"pooling": "map"},
    ],
)
def test_what_a_reader_would_not_know_of_is_refused(tmp_path, argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} must be .* Received"):
        checkpoints.save_vit_npz(tiny.vit(**argument), tmp_path / "vit.npz")
    assert not list(tmp_path.iterdir())


def test_half_precision_weights_are_written_in_full(tmp_path):
    checkpoints.save_vit_npz(tiny.vit(dtype="bfloat16"), tmp_path / "vit.npz")
    assert {array.dtype for array in checkpoints.open_arrays(tmp_path / "vit.npz").values()} == {
        np.dtype("float32")
    }
