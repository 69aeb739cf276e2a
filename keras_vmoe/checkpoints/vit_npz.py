"""Archives of ViTs, with the names of google-research/vision_transformer."""

from __future__ import annotations

import os
import re
from pathlib import Path

import keras
import numpy as np

from keras_vmoe.checkpoints.drafts import draft
from keras_vmoe.checkpoints.reference import reference_variables
from keras_vmoe.ops.validation import require

# What the V-MoE reference calls parts of a block, and what vision_transformer calls them.
_IN_BLOCK = {
    "SelfAttention": "MultiHeadDotProductAttention_1",
    "LayerNorm_0": "LayerNorm_0",
    "LayerNorm_1": "LayerNorm_2",
    "Mlp": "MlpBlock_3",
}
_FROM_VIT = {theirs: ours for ours, theirs in _IN_BLOCK.items()}


def vit_name(name: str) -> str:
    """google-research/vision_transformer's name of an array that the reference has.

    Args:
        name: such as `"Encoder/encoderblock_0/Mlp/Dense_0/kernel"`.

    Example:

    >>> from keras_vmoe.checkpoints.vit_npz import vit_name
    >>> vit_name("Encoder/encoderblock_0/Mlp/Dense_0/kernel")
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'
    """
    return _renamed(name, "Encoder", "Transformer", _IN_BLOCK)


def reference_name(name: str) -> str:
    """The reverse of `vit_name`; any other name stays as it is.

    Args:
        name: such as `"Transformer/encoder_norm/scale"`.
    """
    return _renamed(name, "Transformer", "Encoder", _FROM_VIT)


def _renamed(name: str, old_top: str, new_top: str, in_block: dict[str, str]) -> str:
    match = re.fullmatch(rf"{old_top}/(encoderblock_\d+)/(\w+)/(.*)", name)
    if match and match[2] in in_block:
        return f"{new_top}/{match[1]}/{in_block[match[2]]}/{match[3]}"
    return re.sub(rf"^{old_top}/(?=posembed_input/|encoder_norm/)", f"{new_top}/", name)


def save_vit_npz(model: keras.Model, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a dense ViT as google-research/vision_transformer and big_vision read it.

    Args:
        model: a `ViT` whose pooling is a class token or the mean.
        path: of the `.npz` file.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: a model with sparse blocks, or anything else that the format does not hold
            (another activation than the reference's GELU, another epsilon, positions that are not
            learned, ...), or a file that is there already.

    Example:

    >>> import tempfile
    >>> from keras_vmoe import checkpoints, models
    >>> path = tempfile.mkdtemp() + "/vit.npz"
    >>> checkpoints.save_vit_npz(models.from_variant("vit_ti16", num_layers=1), path)
    >>> checkpoints.load_model(path).output_shape
    (None, 1000)
    """
    path = Path(path)
    require(path.suffix == ".npz", f"path must end in .npz. Received: path={str(path)!r}")
    require(overwrite or not path.exists(), f"{path} exists; give another, or overwrite=True")
    variables = reference_variables(model)
    require(
        not any("/Moe/" in name for name in variables),
        f"model {model.name!r} has sparse blocks; write it with save_vmoe",
    )
    _require_plain(model)
    arrays = {
        vit_name(name): keras.ops.convert_to_numpy(variable).astype("float32")
        for name, variable in variables.items()
    }
    with draft(path) as file:
        np.savez(file, **arrays)


def _require_plain(model: keras.Model) -> None:
    """Refuses what a reader of the file would not know of."""
    config = model.get_config()
    for name, known in (
        ("pooling", ("token", "gap")),
        ("activation", ("gelu_tanh",)),
        ("layer_norm_epsilon", (1e-6,)),
        ("qk_norm", (False,)),
        ("position_embedding", ("learned",)),
    ):
        require(
            config.get(name) in known,
            f"{name} must be {' or '.join(map(repr, known))}, which readers of the format take for "
            f"granted. Received: {name}={config.get(name)!r} of model {model.name!r}",
        )
