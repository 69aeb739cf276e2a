"""Which weight of a model is which array of the reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_vmoe import layers, models
from keras_vmoe.ops.validation import require


def _norm(prefix: str, norm: Any) -> dict[str, Any]:
    found = {f"{prefix}/scale": norm.gamma}
    if norm.beta is not None:
        found[f"{prefix}/bias"] = norm.beta
    return found


def _attention(prefix: str, attention: layers.MultiHeadAttention) -> dict[str, Any]:
    found = {}
    for name in ("query", "key", "value", "output"):
        dense = getattr(attention, f"{name}_dense")
        their = "out" if name == "output" else name
        found[f"{prefix}/{their}/kernel"] = dense.kernel
        found[f"{prefix}/{their}/bias"] = dense.bias
    if attention.qk_norm:
        found.update(_norm(f"{prefix}/query_ln", attention.query_norm))
        found.update(_norm(f"{prefix}/key_ln", attention.key_norm))
    return found


def _dense(prefix: str, dense: keras.layers.Dense) -> dict[str, Any]:
    return {f"{prefix}/kernel": dense.kernel, f"{prefix}/bias": dense.bias}


def _mlp(prefix: str, mlp: layers.MLP) -> dict[str, Any]:
    return {
        **_dense(f"{prefix}/Dense_0", mlp.hidden),
        **_dense(f"{prefix}/Dense_1", mlp.output_dense),
    }


def _moe(prefix: str, moe: layers.MoEMLP) -> dict[str, Any]:
    experts, router = moe.experts, moe.router
    found = {
        f"{prefix}/Mlp/Dense_0/kernel": experts.hidden_kernel,
        f"{prefix}/Mlp/Dense_0/bias": experts.hidden_bias,
        f"{prefix}/Mlp/Dense_1/kernel": experts.output_kernel,
        f"{prefix}/Mlp/Dense_1/bias": experts.output_bias,
    }
    if isinstance(router, layers.SoftRouter):
        found[f"{prefix}/Router/mu"] = router.kernel
        found[f"{prefix}/Router/scale"] = router.scale
    else:
        found[f"{prefix}/Router/dense/kernel"] = router.kernel
    return found


def _block(prefix: str, block: layers.EncoderBlock) -> dict[str, Any]:
    return {
        **_norm(f"{prefix}/LayerNorm_0", block.attention_norm),
        **_attention(f"{prefix}/SelfAttention", block.attention),
        **_norm(f"{prefix}/LayerNorm_1", block.mlp_norm),
        **(
            _moe(f"{prefix}/Moe", block.mlp)
            if block.is_sparse
            else _mlp(f"{prefix}/Mlp", block.mlp)
        ),
    }


def _pooling(pooling: layers.AttentionPooling) -> dict[str, Any]:
    return {
        "MapHead/probe": pooling.probe,
        **_attention("MapHead/MultiHeadDotProductAttention", pooling.attention),
        **_norm("MapHead/LayerNorm", pooling.norm),
        **_mlp("MapHead/Mlp", pooling.mlp),
    }


def reference_variables(model: keras.Model) -> dict[str, Any]:
    """The variables of a model under the reference's names.

    Args:
        model: a `ViT`, `VMoE`, `EfficientEnsemble`, `TextTransformer` or `TwoTower`.

    Returns:
        `{"Encoder/encoderblock_0/LayerNorm_0/scale": variable, ...}`; shapes are the reference's.

    Raises:
        ValueError: a `LIMoE`, which the reference does not have.

    Example:

    >>> from keras_vmoe import checkpoints, models
    >>> model = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=1,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ... )
    >>> tuple(checkpoints.reference_variables(model)["head/kernel"].shape)
    (16, 10)
    """
    require(
        not isinstance(model, models.LIMoE),
        f"model {model.name!r} is a LIMoE, which the reference implementation does not have; save "
        "it as .keras",
    )
    if isinstance(model, models.TwoTower):
        return _two_towers(model)
    found: dict[str, Any] = {}
    blocks = 0
    for layer in model.layers:
        if isinstance(layer, layers.PatchEmbedding):
            found.update(_dense("embedding", layer))
        elif isinstance(layer, layers.TextEmbedding):
            found["Embed_0/embedding"] = layer.embedding
        elif isinstance(layer, layers.ClassToken):
            found["cls"] = layer.token
        elif isinstance(layer, layers.PositionEmbedding) and layer.kind == "learned":
            found["Encoder/posembed_input/pos_embedding"] = layer.embedding
        elif isinstance(layer, layers.EncoderBlock):
            found.update(_block(f"Encoder/encoderblock_{blocks}", layer))
            blocks += 1
        elif isinstance(layer, keras.layers.LayerNormalization):
            found.update(_norm("Encoder/encoder_norm", layer))
        elif isinstance(layer, layers.AttentionPooling):
            found.update(_pooling(layer))
        elif isinstance(layer, keras.layers.Dense):
            found.update(_dense(layer.name.removeprefix("text_"), layer))
    return found


def _two_towers(model: models.TwoTower) -> dict[str, Any]:
    found = {}
    for prefix, tower in (("img", model.image_tower), ("txt", model.text_tower)):
        found |= {f"{prefix}/{name}": x for name, x in reference_variables(tower).items()}
    scale = model.get_layer("logit_scale")
    found["s"] = scale.log_scale
    if scale.bias_init is not None:
        found["b"] = scale.bias
    return found


def assign_reference_params(model: keras.Model, params: Mapping[str, Any]) -> None:
    """Fills a model with the reference's parameters. All or nothing.

    Args:
        model: a `ViT`, `VMoE` or `EfficientEnsemble`, such as `models.from_reference_config`
            builds.
        params: arrays by name, as flattened from the reference's tree
            (`"Encoder/encoderblock_0/LayerNorm_0/scale"`).

    Raises:
        ValueError: listing every name that is missing, left over or of the wrong shape. The model
            is then as it was.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import checkpoints, models
    >>> model = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=1,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ... )
    >>> names = checkpoints.reference_variables(model)
    >>> params = {name: np.zeros(variable.shape) for name, variable in names.items()}
    >>> checkpoints.assign_reference_params(model, params)
    """
    variables = reference_variables(model)
    problems = [f"missing: {name}" for name in variables if name not in params]
    problems += [f"left over: {name}" for name in params if name not in variables]
    for name in variables.keys() & params.keys():
        wanted, given = tuple(variables[name].shape), tuple(np.shape(params[name]))
        if wanted != given:
            problems.append(f"wrong shape: {name} is {given}, the model needs {wanted}")
    require(
        not problems,
        f"params do not fit model {model.name!r}:\n  " + "\n  ".join(sorted(problems)),
    )
    for name, variable in variables.items():
        variable.assign(np.asarray(params[name]))
