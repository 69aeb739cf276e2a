"""The transformer block of a hierarchical model: attention within the windows of a map."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers.attention import MultiHeadAttention
from keras_vmoe.layers.experts import fresh_initializer, serialized_initializer
from keras_vmoe.layers.moe_mlp import token_mask
from keras_vmoe.layers.transformer import EncoderBlock
from keras_vmoe.ops.maps import Sides, window_on
from keras_vmoe.ops.validation import require, require_positive_int, require_rank


@keras.saving.register_keras_serializable(package="keras_vmoe")
class WindowEncoderBlock(EncoderBlock):
    """Pre-norm transformer block on maps, whose attention stays within windows.

    Windows do not overlap and are not shifted. Those that reach beyond the map are filled up, and
    what fills them is attended to by none. The MLP, and the routing of a sparse one, takes the
    tokens of the whole map. Heads need not share the width out: each has `width // num_heads`.

    Args:
        num_heads: attention heads, at most the width.
        mlp: the block's MLP, as of `EncoderBlock`.
        splits: windows down, and across, of any map; for a `window_size` of `None`.
        window_size: rows and columns of a window, in tokens, whatever the map; one larger than the
            map is as large as the map.
        dropout_rate, attention_dropout_rate, stochastic_depth_rate, layer_norm_epsilon, remat,
            norm: as of `EncoderBlock`.
        kernel_initializer: of the attention's kernels.

    Call arguments:
        inputs: `[b, rows, columns, d]`; rows and columns may be dynamic.
        mask: optional `[b]`, or `[b, rows * columns]`, bool for the routing of a sparse MLP.
        coarsening: how many times fewer tokens the map has down, and across, than the maps that
            `window_size` is of: windows have as many fewer, rounded up.
        training, num_selected, capacity_factor, batch_priority: as of `EncoderBlock`.

    Returns:
        As `inputs`.

    Raises:
        ValueError: more heads than the width has places, or values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> block = layers.WindowEncoderBlock(num_heads=2, mlp=layers.MLP(hidden_dim=16), splits=2)
    >>> tuple(block(np.ones((2, 6, 7, 8), "float32")).shape)
    (2, 6, 7, 8)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.1.
    """

    def __init__(
        self,
        num_heads: int,
        mlp: Any,
        splits: int = 1,
        window_size: tuple[int, int] | None = None,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-5,
        remat: bool = False,
        norm: str = "layer",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_heads,
            mlp,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            stochastic_depth_rate=stochastic_depth_rate,
            layer_norm_epsilon=layer_norm_epsilon,
            remat=remat,
            norm=norm,
            **kwargs,
        )
        require_positive_int("splits", splits)
        for side in window_size or ():
            require_positive_int("window_size", side)
        require(
            window_size is None or len(window_size) == 2,
            f"window_size must be (rows, columns) or None. Received: window_size={window_size}",
        )
        self.splits = splits
        self.window_size = None if window_size is None else tuple(window_size)
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            len(input_shape) == 4 and input_shape[-1] is not None,
            "inputs must have shape [images, rows, columns, width]. "
            f"Received: {tuple(input_shape)}",
        )
        width = input_shape[-1]
        require(
            self.num_heads <= width,
            f"num_heads must be at most the width, {width}. Received: num_heads={self.num_heads}",
        )
        tokens = (None, None, width)
        self.attention = MultiHeadAttention(
            self.num_heads,
            width // self.num_heads,
            dropout=self.attention_dropout_rate,
            kernel_initializer=keras.initializers.get(fresh_initializer(self.kernel_initializer)),
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention.build(tokens, tokens)
        self.attention_norm.build(tokens)
        self.mlp_norm.build(tokens)
        if not self.mlp.built:
            rows, columns = input_shape[1:3]
            known = rows is not None and columns is not None
            self.mlp.build((input_shape[0], rows * columns if known else None, width))

    def window(self, grid: Sides, coarsening: int = 1) -> Sides:
        """Rows and columns of a window on a map with these."""
        return window_on(grid, self.splits, self.window_size, coarsening)

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        coarsening: int = 1,
        training: bool = False,
        num_selected: int | None = None,
        capacity_factor: float | None = None,
        batch_priority: bool | None = None,
    ) -> Any:
        require_rank("inputs", inputs, 4, "[images, rows, columns, width]")
        arguments = self._mlp_arguments(
            training, mask, None, num_selected, capacity_factor, batch_priority
        )
        _, rows, columns, width = kops.shape(inputs)
        window = self.window((rows, columns), coarsening)

        def attend(x: Any) -> Any:
            maps = kops.reshape(x, (-1, rows, columns, width))
            parts, real = ops.partition_windows(maps, window)
            real = None if real is None else kops.expand_dims(real, 1)
            parts = self.attention(parts, parts, attention_mask=real, training=training)
            maps = ops.join_windows(parts, window, (rows, columns))
            return kops.reshape(maps, (-1, rows * columns, width))

        def forward(x: Any) -> Any:
            return self._forward(x, attend, arguments)

        tokens = kops.reshape(inputs, (-1, rows * columns, width))
        tokens = self._run(forward, tokens, training=training)
        return kops.reshape(tokens, (-1, rows, columns, width))

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return token_mask(previous_mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["qk_norm"]
        return {
            **config,
            "splits": self.splits,
            "window_size": self.window_size,
            "kernel_initializer": serialized_initializer(self.kernel_initializer),
        }
