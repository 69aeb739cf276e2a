"""Multi-head attention that can normalise queries and keys."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_vmoe.ops import on_mesh
from keras_vmoe.ops.validation import require


@keras.saving.register_keras_serializable(package="keras_vmoe")
class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """Keras' multi-head attention with optional layer norm on queries and keys.

    Masks that Keras attaches to tensors are of routing here (which tokens take slots), so attention
    does not take them up; `attention_mask` is what it looks at.

    Args:
        num_heads: heads.
        key_dim: width of a head.
        qk_norm: normalise queries and keys, each over its head, with a learned scale.
        layer_norm_epsilon: of those norms.

    The remaining arguments, the call arguments and the output are those of
    `keras.layers.MultiHeadAttention`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> attention = layers.MultiHeadAttention(num_heads=2, key_dim=4, qk_norm=True)
    >>> x = np.ones((1, 3, 8), "float32")
    >>> tuple(attention(x, x).shape)
    (1, 3, 8)

    Reference: Dehghani et al. 2023, arXiv 2302.05442 (ViT-22B), section 2.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        qk_norm: bool = False,
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, key_dim, **kwargs)
        self.qk_norm = qk_norm
        self.layer_norm_epsilon = layer_norm_epsilon
        self.query_norm = self._make_norm("query_norm") if qk_norm else None
        self.key_norm = self._make_norm("key_norm") if qk_norm else None

    def _make_norm(self, name: str) -> keras.layers.LayerNormalization:
        return keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, center=False, dtype=self.dtype_policy, name=name
        )

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        super().build(query_shape, value_shape, key_shape)
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                norm.build((None, None, self.num_heads, self.key_dim))

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        if use_causal_mask or not self._is_plain():
            return super().call(
                query,
                value,
                key,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                training=training,
                use_causal_mask=use_causal_mask,
            )
        key = value if key is None else key
        attention_mask = self._compute_attention_mask(query, value, attention_mask=attention_mask)
        outputs, scores = self._compute_attention(
            _project(self._query_dense, query),
            _project(self._key_dense, key),
            _project(self._value_dense, value),
            attention_mask,
            training,
            return_attention_scores,
        )
        outputs = _project(self._output_dense, outputs, axes=2)
        return (outputs, scores) if return_attention_scores else outputs

    def _is_plain(self) -> bool:
        """Whether the projections and the scores are mere products, to be computed otherwise.

        They are not where they are changed (LoRA, quantisation, sublayers of other classes or
        dtypes), watched (an activity regularizer), gated, split over a mesh, or asked for in one
        kernel (flash attention), and only TensorFlow gains by it. In half precision Keras adds up
        the gradients of biases more precisely, and attends in float32. The names that begin with
        an underscore here and in `_attend` are those of Keras 3.15.
        """
        return (
            keras.backend.backend() == "tensorflow"
            and not on_mesh()
            and not self._use_gate
            and not self._flash_attention
            and self.compute_dtype == "float32"
            and self._activity_regularizer is None
            and all(
                type(part) is keras.layers.EinsumDense
                and part.activation is keras.activations.linear
                and part.compute_dtype == self.compute_dtype
                and not part.lora_enabled
                and not part.quantization_mode
                for part in (
                    self._query_dense,
                    self._key_dense,
                    self._value_dense,
                    self._output_dense,
                )
            )
        )

    def _compute_attention_mask(self, query: Any, value: Any, **masks: Any) -> Any:
        for name in ("query_mask", "value_mask", "key_mask"):
            masks[name] = None
        return super()._compute_attention_mask(query, value, **masks)

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
    ) -> tuple[Any, Any]:
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        # Keras attends along other axes of larger inputs, and knows what a query gets that may see
        # nothing.
        if self._is_plain() and attention_mask is None and len(query.shape) == 4:
            return self._attend(query, key, value, training)
        return super()._compute_attention(
            query, key, value, attention_mask, training, return_attention_scores
        )

    def _attend(self, query: Any, key: Any, value: Any, training: bool | None) -> tuple[Any, Any]:
        """Attention of `[b, t, heads, d]`, the heads moved beside the images once."""
        query = ops.transpose(query * self._inverse_sqrt_key_dim, (0, 2, 1, 3))
        scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 3, 1))))
        weights = self._dropout_layer(scores, training=training) if self._dropout else scores
        outputs = ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3)))
        return ops.transpose(outputs, (0, 2, 1, 3)), scores

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "qk_norm": self.qk_norm,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


def _project(dense: keras.layers.EinsumDense, inputs: Any, axes: int = 1) -> Any:
    """A projection of the last axes, as one product of two matrices.

    TensorFlow makes Keras' einsum a batched matmul, whose gradient holds one kernel for each image.
    """
    kernel = ops.convert_to_tensor(dense.kernel)
    inner, outer = kernel.shape[:axes], kernel.shape[axes:]
    shape = (*ops.shape(inputs)[:-axes], *outer)
    outputs = ops.matmul(
        ops.reshape(inputs, (-1, math.prod(inner))),
        ops.reshape(kernel, (math.prod(inner), math.prod(outer))),
    )
    if dense.bias is not None:
        outputs = outputs + ops.reshape(dense.bias, (-1,))
    return ops.reshape(outputs, shape)


def make_attention(
    width: int, num_heads: int, qk_norm: bool, dropout_rate: float, epsilon: float, dtype: Any
) -> MultiHeadAttention:
    """Self-attention of a ViT: heads share the width, xavier-uniform on the `[d, d]` kernels."""
    require(
        width % num_heads == 0,
        f"num_heads must divide the width. Received: num_heads={num_heads}, width={width}",
    )
    # Keras counts the fans of the [d, heads, head] kernels otherwise than those of [d, d].
    limit = math.sqrt(6.0 / (2 * width))
    return MultiHeadAttention(
        num_heads,
        width // num_heads,
        qk_norm=qk_norm,
        layer_norm_epsilon=epsilon,
        dropout=dropout_rate,
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        dtype=dtype,
        name="attention",
    )
