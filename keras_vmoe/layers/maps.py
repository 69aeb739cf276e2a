"""Between the stages of a hierarchical model: maps of tokens made, joined and given positions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops as kops

from keras_vmoe import ops
from keras_vmoe.layers.experts import fresh_initializer, serialized_initializer
from keras_vmoe.layers.transformer import make_norm
from keras_vmoe.ops.sizes import ceil_divide
from keras_vmoe.ops.validation import require, require_choice, require_positive_int

Shape = tuple[int | None, ...]


def _require_maps(shape: Shape) -> None:
    require(
        len(shape) == 4 and shape[-1] is not None,
        f"inputs must have shape [images, height, width, channels]. Received: {tuple(shape)}",
    )


def _fewer(shape: Shape, stride: int) -> list[int | None]:
    """Height and width, over a stride."""
    return [None if side is None else ceil_divide(side, stride) for side in shape[1:3]]


@keras.saving.register_keras_serializable(package="keras_vmoe")
class OverlappingPatchEmbedding(keras.layers.Layer):
    """Projects patches that overlap where they are larger than the stride: a convolution.

    Zeros around the image make a patch for each whole or broken stride. Stride and dilation can be
    changed for one call: the same kernel then makes fewer tokens (progressive re-tokenization).

    Args:
        kernel_size: side of a patch, pixels.
        width: model width (d).
        stride: from one patch to the next, pixels.
        kernel_initializer: of the `[kernel_size, kernel_size, channels, d]` kernel.
        bias_initializer: of the bias.

    Call arguments:
        inputs: `[b, height, width, channels]`; height and width may be dynamic.
        stride: of this call; `None`: the layer's own.
        dilation: of this call: from one tap of the kernel to the next, pixels.

    Returns:
        `[b, ceil(height / stride), ceil(width / stride), d]`.

    Raises:
        ValueError: inputs that are no images, or values out of range.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> embed = layers.OverlappingPatchEmbedding(kernel_size=8, width=16)
    >>> images = np.zeros((1, 32, 32, 3), "float32")
    >>> tuple(embed(images).shape), tuple(embed(images, stride=16, dilation=5).shape)
    ((1, 8, 8, 16), (1, 2, 2, 16))

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), sections 3.1 and 4.2.
    """

    def __init__(
        self,
        kernel_size: int,
        width: int,
        stride: int = 4,
        kernel_initializer: Any = "lecun_normal",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("kernel_size", kernel_size)
        require_positive_int("width", width)
        require_positive_int("stride", stride)
        self.kernel_size = kernel_size
        self.width = width
        self.stride = stride
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape: Shape) -> None:
        _require_maps(input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.width),
            initializer=fresh_initializer(self.kernel_initializer),
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.width,), initializer=fresh_initializer(self.bias_initializer)
        )

    def call(self, inputs: Any, stride: int | None = None, dilation: int = 1) -> Any:
        stride = stride or self.stride
        require_positive_int("stride", stride)
        require_positive_int("dilation", dilation)
        require(
            inputs.shape[-1] == self.kernel.shape[2],
            f"inputs must have {self.kernel.shape[2]} channels, as built. "
            f"Received: inputs of shape {tuple(inputs.shape)}",
        )
        if dilation == 1:
            padded = ops.pad_for_patches(inputs, self.kernel_size, stride)
            return kops.conv(padded, self.kernel, stride, "valid", "channels_last") + self.bias
        patches = ops.overlapping_patches(inputs, self.kernel_size, stride, dilation)
        return kops.matmul(patches, kops.reshape(self.kernel, (-1, self.width))) + self.bias

    def compute_output_spec(
        self, inputs: Any, stride: int | None = None, dilation: int = 1
    ) -> keras.KerasTensor:
        grid = _fewer(inputs.shape, stride or self.stride)
        return keras.KerasTensor((inputs.shape[0], *grid, self.width), dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *_fewer(input_shape, self.stride), self.width)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "width": self.width,
            "stride": self.stride,
            "kernel_initializer": serialized_initializer(self.kernel_initializer),
            "bias_initializer": serialized_initializer(self.bias_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_vmoe")
class PatchMerging(keras.layers.Layer):
    """Halves a map: joins the tokens of patches, which may overlap, and projects them, biasless.

    Args:
        kernel_size: side of a patch, tokens.
        width: of the output (d).
        norm: layer norm `"pre"`, over all the values of a patch, the zeros around the map among
            them; or `"post"`, over the output; or `"none"`.
        layer_norm_epsilon: of the norm.
        kernel_initializer: of the `[kernel_size**2 * inputs' width, d]` kernel.

    Call arguments:
        inputs: `[b, rows, columns, width]`; rows and columns may be dynamic.

    Returns:
        `[b, ceil(rows / 2), ceil(columns / 2), d]`.

    Raises:
        ValueError: inputs that are no maps, values out of range, an unknown word.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> merge = layers.PatchMerging(kernel_size=3, width=16)
    >>> tuple(merge(np.zeros((2, 7, 8, 6), "float32")).shape)
    (2, 4, 4, 16)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.1.
    """

    stride = 2

    def __init__(
        self,
        kernel_size: int,
        width: int,
        norm: str = "pre",
        layer_norm_epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_positive_int("kernel_size", kernel_size)
        require(
            kernel_size >= 2,
            "kernel_size must be at least 2, the stride: a smaller one leaves tokens out. "
            f"Received: kernel_size={kernel_size}",
        )
        require_positive_int("width", width)
        require_choice("norm", norm, ("pre", "post", "none"))
        self.kernel_size = kernel_size
        self.width = width
        self.norm = norm
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = kernel_initializer
        kind = "identity" if norm == "none" else "layer"
        self.layer_norm = make_norm(kind, layer_norm_epsilon, self.dtype_policy, "norm")
        self.projection = keras.layers.Dense(
            width,
            use_bias=False,
            kernel_initializer=fresh_initializer(kernel_initializer),
            dtype=self.dtype_policy,
            name="projection",
        )

    def build(self, input_shape: Shape) -> None:
        _require_maps(input_shape)
        patches = (*input_shape[:3], self.kernel_size**2 * input_shape[-1])
        self.layer_norm.build((*patches[:3], self.width) if self.norm == "post" else patches)
        self.projection.build(patches)

    def call(self, inputs: Any) -> Any:
        patches = ops.overlapping_patches(inputs, self.kernel_size, self.stride)
        if self.norm == "post":
            return self.layer_norm(self.projection(patches))
        return self.projection(self.layer_norm(patches))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], *_fewer(input_shape, self.stride), self.width)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "width": self.width,
            "norm": self.norm,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": serialized_initializer(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_vmoe")
class MapPositionEmbedding(keras.layers.Layer):
    """Adds a learned table to maps; for a map of another grid the table is resized bilinearly.

    Args:
        grid: rows and columns of the table.

    Call arguments:
        inputs: `[b, rows, columns, d]`; rows and columns may be dynamic.

    Returns:
        As `inputs`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> positions = layers.MapPositionEmbedding((8, 8))
    >>> tuple(positions(np.zeros((1, 2, 3, 4), "float32")).shape)
    (1, 2, 3, 4)

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 4.2.
    """

    def __init__(self, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for side in grid:
            require_positive_int("grid", side)
        require(len(grid) == 2, f"grid must be (rows, columns). Received: grid={grid}")
        self.grid = tuple(grid)

    def build(self, input_shape: Shape) -> None:
        _require_maps(input_shape)
        self.embedding = self.add_weight(
            name="embedding",
            shape=(1, *self.grid, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,  # resized as it is, then rounded
        )

    def call(self, inputs: Any) -> Any:
        grid = kops.shape(inputs)[1:3]
        return inputs + kops.cast(ops.resize_maps(self.embedding, grid), inputs.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid": self.grid}
