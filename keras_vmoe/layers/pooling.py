"""Pooling tokens into one vector per image."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe.layers.attention import make_attention
from keras_vmoe.layers.transformer import MLP
from keras_vmoe.ops.validation import require, require_choice, require_positive_int


@keras.saving.register_keras_serializable(package="keras_vmoe")
class TokenPooling(keras.layers.Layer):
    """Takes the first token, the last, or the mean or the largest values of all.

    Args:
        kind: `"first"` (a class token, say), `"last"`, `"mean"` or `"max"`.

    Call arguments:
        inputs: `[b, t, d]`.
        token_mask: optional `[b, t]` bool, the tokens that mean and maximum are of; a mean of none
            is 0.

    Returns:
        `[b, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> float(layers.TokenPooling("mean")(np.arange(4.0).reshape(1, 4, 1))[0, 0])
    1.5
    """

    def __init__(self, kind: str = "first", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_choice("kind", kind, ("first", "last", "mean", "max"))
        self.kind = kind
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None  # the tokens are gone

    def call(self, inputs: Any, token_mask: Any = None) -> Any:
        if self.kind in ("first", "last"):
            require(
                token_mask is None,
                f"token_mask is of mean and max. Received: one for a layer of kind {self.kind!r}",
            )
            return inputs[:, 0 if self.kind == "first" else -1]
        if token_mask is None:
            return (kops.mean if self.kind == "mean" else kops.max)(inputs, axis=1)
        mask = kops.expand_dims(token_mask, -1)
        if self.kind == "max":
            return kops.max(kops.where(mask, inputs, kops.cast(-1e30, inputs.dtype)), axis=1)
        weights = kops.cast(mask, inputs.dtype)
        return kops.sum(inputs * weights, axis=1) / kops.maximum(kops.sum(weights, axis=1), 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="keras_vmoe")
class AttentionPooling(keras.layers.Layer):
    """Multi-head attention pooling (MAP): a learned probe attends to the tokens, then an MLP.

    Args:
        num_heads: attention heads.
        mlp_dim: hidden width of the MLP.
        qk_norm: layer norm on queries and keys.
        activation: of the MLP.
        layer_norm_epsilon: of the norm before the MLP.

    Call arguments:
        inputs: `[b, t, d]`.

    Returns:
        `[b, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tuple(layers.AttentionPooling(num_heads=2, mlp_dim=16)(np.ones((3, 5, 8), "float32")).shape)
    (3, 8)

    Reference: Lee et al. 2019, arXiv 1810.00825 (Set Transformer), section 3.2; Zhai et al. 2021,
    arXiv 2106.04560.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        qk_norm: bool = False,
        activation: Any = "gelu_tanh",
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("num_heads", num_heads)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.qk_norm = qk_norm
        self.supports_masking = True
        self.layer_norm_epsilon = layer_norm_epsilon
        self.mlp = MLP(mlp_dim, activation, dtype=self.dtype_policy, name="mlp")
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
        )

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None  # the tokens are gone

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = input_shape[-1]
        self.probe = self.add_weight(
            name="probe", shape=(1, 1, width), initializer="glorot_uniform"
        )
        self.attention = make_attention(
            width, self.num_heads, self.qk_norm, 0.0, self.layer_norm_epsilon, self.dtype_policy
        )
        probe_shape = (None, 1, width)
        self.attention.build(probe_shape, input_shape)
        self.norm.build(probe_shape)
        self.mlp.build(probe_shape)

    def call(self, inputs: Any) -> Any:
        batch, width = kops.shape(inputs)[0], inputs.shape[-1]
        probe = kops.broadcast_to(kops.cast(self.probe, inputs.dtype), (batch, 1, width))
        pooled = self.attention(probe, inputs)
        pooled = pooled + self.mlp(self.norm(pooled))
        return kops.squeeze(pooled, axis=1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "qk_norm": self.qk_norm,
            "activation": self.mlp.get_config()["activation"],
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
