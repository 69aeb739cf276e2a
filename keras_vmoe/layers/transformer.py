"""The pre-norm transformer block, with a dense or a sparse MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_vmoe import ops
from keras_vmoe.layers import effects
from keras_vmoe.layers.attention import make_attention
from keras_vmoe.layers.experts import fresh_initializer, serialized_initializer
from keras_vmoe.layers.image_moe_mlp import ImageMoEMLP
from keras_vmoe.layers.moe_mlp import MoEMLP, token_mask
from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_fraction,
    require_positive_int,
)

NORMS = ("layer", "identity")


def make_norm(kind: str, epsilon: float, dtype: Any, name: str) -> keras.layers.Layer:
    """A layer norm, or what stands in for one in a network without norms."""
    if kind == "identity":
        return keras.layers.Identity(dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class MLP(keras.layers.Layer):
    """The dense MLP of a transformer block: Dense, GELU, Dense, each with dropout behind it.

    Args:
        hidden_dim: hidden width.
        activation: a name that `keras.activations` knows, or `"gelu_tanh"`.
        dropout_rate: dropout after each layer.
        kernel_initializer: of both kernels.
        bias_initializer: of both biases; `None`: normal, 1e-6.

    Call arguments:
        inputs: `[..., d]`.
        training: switches dropout on.

    Returns:
        As `inputs`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tuple(layers.MLP(hidden_dim=8)(np.ones((2, 3, 4), "float32")).shape)
    (2, 3, 4)

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1.
    """

    def __init__(
        self,
        hidden_dim: int,
        activation: Any = "gelu_tanh",
        dropout_rate: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("hidden_dim", hidden_dim)
        require_fraction("dropout_rate", dropout_rate)
        self.hidden_dim = hidden_dim
        self.activation = ops.get_activation(activation)
        self.dropout_rate = dropout_rate
        # As they are given: each layer resolves them for itself, with a seed of its own.
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.hidden = keras.layers.Dense(
            hidden_dim,
            activation=self.activation,
            bias_initializer=self._bias_initializer(),
            kernel_initializer=fresh_initializer(kernel_initializer),
            dtype=self.dtype_policy,
            name="hidden",
        )
        self.dropouts = [
            keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy)
            for _ in range(2)
            if dropout_rate
        ]
        self.supports_masking = True

    def _bias_initializer(self) -> Any:
        if self.bias_initializer is None:
            return keras.initializers.RandomNormal(stddev=1e-6)
        return fresh_initializer(self.bias_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.output_dense = keras.layers.Dense(
            input_shape[-1],
            bias_initializer=self._bias_initializer(),
            kernel_initializer=fresh_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name="output",
        )
        self.hidden.build(input_shape)
        self.output_dense.build((*input_shape[:-1], self.hidden_dim))

    def call(self, inputs: Any, training: bool = False) -> Any:
        hidden = self.hidden(inputs)
        if not self.dropouts:
            return self.output_dense(hidden)
        hidden = self.dropouts[0](hidden, training=training)
        return self.dropouts[1](self.output_dense(hidden), training=training)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], *args: Any, **kwargs: Any
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": ops.serialize_activation(self.activation),
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": serialized_initializer(self.kernel_initializer),
            "bias_initializer": serialized_initializer(self.bias_initializer),
        }


# The length of each segment, and which of its tokens may be attended to.
Segments = tuple[tuple[int | None, Any], ...]


def _segments(inputs: Any, lengths: Sequence[int] | None, masks: Sequence[Any] | None) -> Segments:
    tokens = inputs.shape[1]
    lengths = (tokens,) if lengths is None else tuple(lengths)
    require(
        tokens is None or sum(lengths) == tokens,
        f"segments must sum to the {tokens} tokens of inputs. Received: segments={lengths}",
    )
    masks = (None,) * len(lengths) if masks is None else tuple(masks)
    require(
        len(masks) == len(lengths),
        f"attention_masks must hold one mask, or None, for each of the {len(lengths)} segments. "
        f"Received: {len(masks)}",
    )
    return tuple(zip(lengths, masks, strict=True))


@keras.saving.register_keras_serializable(package="keras_vmoe")
class EncoderBlock(keras.layers.Layer):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Several sequences can go through side by side: each attends within itself, while the MLP, and
    the routing of a sparse one, takes the tokens of all.

    Args:
        num_heads: attention heads; must divide the width.
        mlp: the block's MLP: `MLP`, `MoEMLP`, `ImageMoEMLP`, any layer from `[b, t, d]` to
            `[b, t, d]`, or its config.
        qk_norm: layer norm on queries and keys.
        dropout_rate: dropout behind the attention.
        attention_dropout_rate: dropout on attention weights.
        stochastic_depth_rate: probability of leaving a residual branch out, per image.
        layer_norm_epsilon: of the layer norms.
        norm: `"layer"`, or `"identity"`, which leaves the norms of the branches out.
        remat: recompute the block in the backward pass instead of keeping its activations.

    Call arguments:
        inputs: `[b, t, d]`.
        mask: optional `[b]` or `[b, t]` bool for the routing of a sparse MLP; attention does not
            look at it.
        segments: lengths of the sequences side by side, which sum to t; `None`: one of all tokens.
        attention_masks: for each segment `[b, its length]` bool, the tokens that may be attended
            to, or `None`; `None` for all.
        modality: `[b, t]` ints for a sparse MLP with a `ModalityRouter`.
        plan: of an `ImageRouter`, for an `ImageMoEMLP`, and for that alone.
        training: switches dropout and router noise on.
        num_selected, capacity_factor, batch_priority: passed to a sparse MLP.

    Returns:
        `[b, t, d]`.

    Raises:
        ValueError: `num_heads` that does not divide the width, or values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> block = layers.EncoderBlock(num_heads=2, mlp=layers.MLP(hidden_dim=16))
    >>> tuple(block(np.ones((2, 5, 8), "float32")).shape)
    (2, 5, 8)

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 2-3; stochastic depth: Huang et al.
    2016, arXiv 1603.09382.
    """

    def __init__(
        self,
        num_heads: int,
        mlp: Any,
        qk_norm: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        remat: bool = False,
        norm: str = "layer",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("num_heads", num_heads)
        require_choice("norm", norm, NORMS)
        require_fraction("dropout_rate", dropout_rate)
        require_fraction("attention_dropout_rate", attention_dropout_rate)
        require_fraction("stochastic_depth_rate", stochastic_depth_rate)
        self.num_heads = num_heads
        self.mlp = keras.saving.deserialize_keras_object(mlp) if isinstance(mlp, dict) else mlp
        require(
            isinstance(self.mlp, keras.layers.Layer),
            f"mlp must be a layer or a layer's config. Received: mlp={mlp!r}",
        )
        self.qk_norm = qk_norm
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.stochastic_depth_rate = stochastic_depth_rate
        self.layer_norm_epsilon = layer_norm_epsilon
        self.remat = remat
        self.norm = norm
        self.supports_masking = True
        self.attention_norm = self._make_norm("attention_norm")
        self.mlp_norm = self._make_norm("mlp_norm")
        self.dropout = (
            keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy) if dropout_rate else None
        )
        depth = stochastic_depth_rate
        self.branch_drops = [
            keras.layers.Dropout(depth, noise_shape=(None, 1, 1), dtype=self.dtype_policy)
            for _ in range(2)
            if depth
        ]

    def _make_norm(self, name: str) -> keras.layers.Layer:
        return make_norm(self.norm, self.layer_norm_epsilon, self.dtype_policy, name)

    @property
    def is_sparse(self) -> bool:
        """Whether the MLP is a mixture of experts."""
        return isinstance(self.mlp, MoEMLP)

    @property
    def routes_images(self) -> bool:
        """Whether the MLP is a mixture of experts that whole images go to."""
        return isinstance(self.mlp, ImageMoEMLP)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            len(input_shape) == 3 and input_shape[-1] is not None,
            f"inputs must have shape [images, tokens, width]. Received: {tuple(input_shape)}",
        )
        self.attention = make_attention(
            input_shape[-1],
            self.num_heads,
            self.qk_norm,
            self.attention_dropout_rate,
            self.layer_norm_epsilon,
            self.dtype_policy,
        )
        self.attention.build(input_shape, input_shape)
        self.attention_norm.build(input_shape)
        self.mlp_norm.build(input_shape)
        if not self.mlp.built:
            self.mlp.build(input_shape)

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        segments: Sequence[int] | None = None,
        attention_masks: Sequence[Any] | None = None,
        modality: Any = None,
        plan: ops.ImagePlan | None = None,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> Any:
        routing = (num_selected, capacity_factor, batch_priority)
        arguments = self._mlp_arguments(training, mask, modality, *routing)
        require(
            (plan is not None) == self.routes_images,
            f"plan must be that of an ImageRouter for the ImageMoEMLP of {self.name!r}. Received: "
            "plan=None"
            if self.routes_images
            else f"plan is of a block with an ImageMoEMLP; {self.name!r} has a "
            f"{type(self.mlp).__name__}. Leave it out",
        )
        segments = _segments(inputs, segments, attention_masks)

        def attend(x: Any) -> Any:
            return self._attend(x, segments, training)

        # Its weights have gradients.
        weight = () if plan is None else (ops.ImagePlan(*plan).weight,)

        def forward(x: Any, *weight: Any) -> Any:
            own = {"plan": ops.ImagePlan(*plan)._replace(weight=weight[0])} if weight else {}
            return self._forward(x, attend, {**arguments, **own})

        return self._run(forward, inputs, *weight, training=training)

    def _mlp_arguments(
        self,
        training: bool,
        mask: Any,
        modality: Any,
        num_selected: int | None,
        capacity_factor: float | None,
        batch_priority: bool | None,
    ) -> dict[str, Any]:
        """What the MLP is called with: routing, if it is sparse, and else none."""
        routing = {
            "num_selected": num_selected,
            "capacity_factor": capacity_factor,
            "batch_priority": batch_priority,
        }
        arguments: dict[str, Any] = {"training": training}
        if self.is_sparse:
            arguments.update(routing, mask=mask, modality=modality)
        for name, value in routing.items():
            require(
                self.is_sparse or value is None,
                f"{name} cannot be changed on a block with a dense MLP. "
                f"Received: {name}={value!r} for layer {self.name!r}",
            )
        require(
            self.is_sparse or modality is None,
            f"modality is of a block with a sparse MLP; that of {self.name!r} is dense. "
            "Leave it out",
        )
        return arguments

    def _run(self, forward: Callable[..., Any], *inputs: Any, training: bool) -> Any:
        """Calls `forward`, which the backward pass may call once more."""
        if self.remat and training and not effects.noise_is_handed():
            return effects.rematerialize(self, forward, *inputs)
        return forward(*inputs)

    def _forward(self, x: Any, attend: Callable[[Any], Any], arguments: dict[str, Any]) -> Any:
        training = arguments["training"]
        y = attend(self.attention_norm(x))
        if self.dropout is not None:
            y = self.dropout(y, training=training)
        x = x + self._drop_branch(0, y, training)
        # The MLP is handed in, perhaps with another dtype policy.
        y = keras.ops.cast(self.mlp(self.mlp_norm(x), **arguments), x.dtype)
        return x + self._drop_branch(1, y, training)

    def _attend(self, x: Any, segments: Segments, training: bool) -> Any:
        """Self-attention within each segment."""
        outputs, begin = [], 0
        for length, mask in segments:
            part = x if len(segments) == 1 else x[:, begin : begin + length]
            if mask is not None:
                mask = keras.ops.expand_dims(keras.ops.cast(mask, "bool"), 1)
            outputs.append(self.attention(part, part, attention_mask=mask, training=training))
            begin += length or 0
        return outputs[0] if len(outputs) == 1 else keras.ops.concatenate(outputs, axis=1)

    def _drop_branch(self, index: int, y: Any, training: bool) -> Any:
        if not self.branch_drops:
            return y
        return self.branch_drops[index](y, training=training)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return token_mask(previous_mask)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...], *args: Any, **kwargs: Any
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp": keras.saving.serialize_keras_object(self.mlp),
            "qk_norm": self.qk_norm,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "stochastic_depth_rate": self.stochastic_depth_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "remat": self.remat,
            "norm": self.norm,
        }
