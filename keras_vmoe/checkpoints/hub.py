"""ViTs of KerasHub, and so of Hugging Face, as models of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_vmoe.checkpoints.errors import CheckpointError
from keras_vmoe.ops.validation import require

_HUBS = ("hf://", "kaggle://", "modelscope://")
# Names in KerasHub's ViT, and in the reference. In its blocks, which count from 1:
_NORM = {"gamma": "scale", "beta": "bias"}
_DENSE = {"kernel": "kernel", "bias": "bias"}
_IN_BLOCK = {
    "ln_1": ("LayerNorm_0", _NORM),
    "ln_2": ("LayerNorm_1", _NORM),
    "mha/query": ("SelfAttention/query", _DENSE),
    "mha/key": ("SelfAttention/key", _DENSE),
    "mha/value": ("SelfAttention/value", _DENSE),
    "mha/attention_output": ("SelfAttention/out", _DENSE),
    "mlp/dense_1": ("Mlp/Dense_0", _DENSE),
    "mlp/dense_2": ("Mlp/Dense_1", _DENSE),
}
# ... and elsewhere:
_ELSEWHERE = {
    "vit_patching_and_embedding/class_token": "cls",
    "vit_patching_and_embedding/position_embedding/embeddings": (
        "Encoder/posembed_input/pos_embedding"
    ),
    "vit_patching_and_embedding/patch_embedding/kernel": "embedding/kernel",
    "vit_patching_and_embedding/patch_embedding/bias": "embedding/bias",
    "vit_encoder/ln/gamma": "Encoder/encoder_norm/scale",
    "vit_encoder/ln/beta": "Encoder/encoder_norm/bias",
    "pre_logits/kernel": "pre_logits/kernel",
    "pre_logits/bias": "pre_logits/bias",
    "predictions/kernel": "head/kernel",
    "predictions/bias": "head/bias",
}


class HubModel(NamedTuple):
    """What a ViT of KerasHub holds.

    Attributes:
        arrays: by the reference's names.
        arguments: of `ViT`, that the arrays do not tell.
    """

    arrays: dict[str, Any]
    arguments: dict[str, Any]


def read_hub_model(model: keras.Model) -> HubModel:
    """The arrays and arguments of a `keras_hub.models.ViTImageClassifier` or `ViTBackbone`.

    Args:
        model: the KerasHub model.

    Raises:
        ValueError: another kind of model, or one that `ViT` cannot express.
    """
    backbone = getattr(model, "backbone", model)
    require(
        type(backbone).__name__ == "ViTBackbone",
        "the KerasHub model must be a ViTBackbone or an image classifier of one. "
        f"Received: {type(model).__name__} of {type(backbone).__name__}",
    )
    for name in ("use_mha_bias", "use_mlp_bias", "use_patch_bias"):
        require(
            getattr(backbone, name, True),
            f"a ViT without biases cannot be taken over. Received: {name}=False",
        )
    pooling = getattr(model, "pooling", None)
    require(
        pooling != "gap" or not backbone.use_class_token,
        "pooling='gap' over a class token too cannot be taken over",
    )
    arrays = {_reference_name(variable.path): variable for variable in model.weights}
    positions = "Encoder/posembed_input/pos_embedding"
    arrays[positions] = keras.ops.convert_to_numpy(arrays[positions])[None]
    size = tuple(backbone.image_shape[:2])
    # KerasHub's "token" is the first token, be it of a patch.
    first = {"pooling": "first"} if pooling == "token" and not backbone.use_class_token else {}
    return HubModel(
        arrays,
        {
            "image_size": size[0] if size[0] == size[1] else size,
            # KerasHub's GELU is the exact one, as Hugging Face's is; the reference's is not.
            "activation": "gelu",
            "layer_norm_epsilon": backbone.layer_norm_epsilon,
            "dropout_rate": backbone.dropout_rate,
            "attention_dropout_rate": backbone.attention_dropout,
            **first,
        },
    )


def is_hub_preset(source: str) -> bool:
    """Whether a source is a model of a hub: its address, or the folder of a preset.

    Args:
        source: what `load_model` was given.
    """
    return source.startswith(_HUBS) or (Path(source) / "config.json").is_file()


def load_hub_model(preset: str) -> keras.Model:
    """A ViT of KerasHub by its name.

    Args:
        preset: of Hugging Face (`"hf://google/vit-base-patch16-224"`) or Kaggle, or the folder of
            a preset.

    Raises:
        ImportError: without `keras_hub`.
        CheckpointError: a preset that is not there, or not of images.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "models of KerasHub and Hugging Face need keras_hub: pip install 'keras-vmoe[hub]'"
        ) from error
    try:
        return keras_hub.models.ImageClassifier.from_preset(preset)
    except Exception as error:
        # Errors of hubs are of many kinds, and none of ours.
        raise CheckpointError(f"{preset}: KerasHub cannot load it ({error})") from error


def _reference_name(path: str) -> str:
    if path in _ELSEWHERE:
        return _ELSEWHERE[path]
    top, block, *inner, leaf = path.split("/")
    number = block.removeprefix("transformer_block_")
    known = _IN_BLOCK.get("/".join(inner))
    require(
        top == "vit_encoder" and number.isdigit() and known is not None and leaf in known[1],
        f"this version of KerasHub has a variable {path!r} that is not known here",
    )
    return f"Encoder/encoderblock_{int(number) - 1}/{known[0]}/{known[1][leaf]}"
