"""The weights of an As-ViT by the names that they have in the official implementation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_vmoe import models
from keras_vmoe.models.as_vit_graph import blocks
from keras_vmoe.ops.validation import require

Arrays = Mapping[str, np.ndarray]

_OF_LAYERS = re.compile(r"(patch_embed|layers|norm|head)\.")
_OF_NORMS = re.compile(r"(^|\.)(norm1?|mlps\.0\.0)\.")


def assign_as_vit_params(model: models.AsViT, arrays: Arrays) -> None:
    """Gives a model the weights of the official As-ViT, whose layouts are PyTorch's.

    Args:
        model: a dense `AsViT` of the same genotype, without a position table. One of
            `norm="identity"` leaves the norms' arrays out, one without a head the head's.
        arrays: `{"patch_embed.proj.weight": ..., "layers.0.blocks.0.attn.qkv.weight": ...}`.

    Raises:
        ValueError: a sparse model, or one with other options than the official code has; an array
            that is missing, of another shape than the model's, or of a layer that the model lacks.

    Example:

    >>> from keras_vmoe import checkpoints, models
    >>> model = models.AsViT("4,2,2|2,1,2|2,1,2|2,1,2|16,8", num_classes=10, image_size=32)
    >>> checkpoints.assign_as_vit_params(model, {})
    Traceback (most recent call last):
    ...
    ValueError: arrays must hold 'patch_embed.proj.weight', which is missing. It holds 0 arrays

    Reference: Chen et al. 2022, arXiv 2202.11921; the official code is VITA-Group/AsViT.
    """
    arguments = model.arguments
    require(
        not models.is_sparse(model)
        and arguments["pos_emb"] is None
        and (arguments["norm"] == "identity" or arguments["merge_norm"] == "pre")
        and arguments["head"] == "tanh_mlp",
        "model must be dense, with pos_emb=None, merge_norm='pre' and head='tanh_mlp', as the "
        f"official code builds it. Received: {model.name!r}",
    )
    read_names: set[str] = set()
    take = _reader(arrays, read_names)
    values = [(weight, read(take)) for weight, read in _weights(model)]
    _require_all_read(model, arrays, read_names)
    for weight, value in values:
        require(
            tuple(value.shape) == tuple(weight.shape),
            f"the array of {weight.path!r} must have the shape {tuple(weight.shape)}. Received: "
            f"{tuple(value.shape)}; is it of another genotype?",
        )
    for weight, value in values:
        weight.assign(value)


Take = Callable[[str], np.ndarray]
Weights = list[tuple[keras.Variable, Callable[[Take], np.ndarray]]]


def _reader(arrays: Arrays, read_names: set[str]) -> Take:
    def take(name: str) -> np.ndarray:
        read_names.add(name)
        require(
            name in arrays,
            f"arrays must hold {name!r}, which is missing. It holds {len(arrays)} arrays",
        )
        return np.asarray(arrays[name])

    return take


def _require_all_read(model: models.AsViT, arrays: Arrays, read_names: set[str]) -> None:
    """Refuses arrays of layers that the model lacks, but for those it is built to leave out."""
    arguments = model.arguments
    left = [
        name
        for name in arrays
        if name not in read_names
        and _OF_LAYERS.match(name)
        and not (arguments["norm"] == "identity" and _OF_NORMS.search(name))
        and not (arguments["num_classes"] is None and name.startswith("head."))
    ]
    require(
        not left,
        f"arrays must be of the model's genotype, {arguments['genotype']!r}, which lacks the "
        f"layers of {len(left)} arrays. Received: {', '.join(map(repr, left[:3]))}",
    )


def _weights(model: models.AsViT) -> Weights:
    """The model's weights, and how the value of each is read."""
    embedding = model.get_layer("embedding")
    found: Weights = [
        (embedding.kernel, lambda take: take("patch_embed.proj.weight").transpose(2, 3, 1, 0)),
        (embedding.bias, lambda take: take("patch_embed.proj.bias")),
        *_norm(model.get_layer("embedding_norm"), "patch_embed.norm"),
    ]
    first = 0
    for block in blocks(model.genotype):
        if block.index == sum(model.genotype.depths[: block.stage]):
            first = block.index
        name = f"layers.{block.stage}.blocks.{block.index - first}"
        found += _block(model.get_layer(block.name), name)
    for stage in (1, 2, 3):
        found += _merging(model.get_layer(f"merging_{stage}"), f"layers.{stage - 1}.downsample")
    found += _norm(model.get_layer("encoder_norm"), "norm")
    if model.arguments["num_classes"] is not None:
        found += _dense(model.get_layer("pre_logits"), "head.0")
        found += _dense(model.get_layer("head"), "head.2")
    return found


def _norm(norm: keras.layers.Layer, name: str) -> Weights:
    if not norm.weights:
        return []
    return [
        (norm.gamma, lambda take: take(f"{name}.weight")),
        (norm.beta, lambda take: take(f"{name}.bias")),
    ]


def _dense(dense: keras.layers.Dense, name: str) -> Weights:
    return [
        (dense.kernel, lambda take: take(f"{name}.weight").T),
        (dense.bias, lambda take: take(f"{name}.bias")),
    ]


def _block(block: Any, name: str) -> Weights:
    found = _norm(block.attention_norm, f"{name}.norm1")
    attention = block.attention
    for i, dense in enumerate((attention.query_dense, attention.key_dense, attention.value_dense)):
        found += [
            (dense.kernel, _part(f"{name}.attn.qkv.weight", i, dense.kernel.shape, True)),
            (dense.bias, _part(f"{name}.attn.qkv.bias", i, dense.bias.shape, False)),
        ]
    out = attention.output_dense
    shape = tuple(out.kernel.shape)
    found += [
        (out.kernel, lambda take: take(f"{name}.attn.proj.weight").T.reshape(shape)),
        (out.bias, lambda take: take(f"{name}.attn.proj.bias")),
        *_norm(block.mlp_norm, f"{name}.mlps.0.0"),
        *_dense(block.mlp.hidden, f"{name}.mlps.0.1.fc1"),
        *_dense(block.mlp.output_dense, f"{name}.mlps.0.1.fc2"),
    ]
    return found


def _part(name: str, index: int, shape: Any, is_kernel: bool) -> Callable[[Take], np.ndarray]:
    """Queries, keys or values of one array of all three, heads first."""

    def read(take: Take) -> np.ndarray:
        part = np.split(take(name), 3)[index]
        return (part.T if is_kernel else part).reshape(tuple(shape))

    return read


def _merging(layer: Any, name: str) -> Weights:
    """Theirs has the values of a patch channel by channel, ours tap by tap."""
    taps = layer.kernel_size**2

    def by_tap(value: np.ndarray) -> np.ndarray:
        channels = value.shape[0] // taps
        return value.reshape(channels, taps, -1).swapaxes(0, 1).reshape(value.shape)

    kernel = layer.projection.kernel
    found: Weights = [(kernel, lambda take: by_tap(take(f"{name}.reduction.weight").T))]
    if layer.layer_norm.weights:
        norm = layer.layer_norm
        found += [
            (norm.gamma, lambda take: by_tap(take(f"{name}.norm.weight"))),
            (norm.beta, lambda take: by_tap(take(f"{name}.norm.bias"))),
        ]
    return found
