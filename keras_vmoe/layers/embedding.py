"""From images to tokens: patches, class token, positions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops as kops

from keras_vmoe.ops.validation import (
    require,
    require_choice,
    require_positive_int,
    require_rank,
)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class PatchEmbedding(keras.layers.Layer):
    """Cuts images into square patches and projects each linearly.

    Rows and columns that fill no whole patch are left out, as a convolution with VALID padding
    leaves them out.

    Args:
        patch_size: side of a patch, pixels, or (height, width).
        width: model width (d).
        kernel_initializer: of the `[p, p, channels, d]` kernel.

    Call arguments:
        inputs: `[b, height, width, channels]`.

    Returns:
        `[b, t, d]`, patches row by row.

    Raises:
        ValueError: images smaller than a patch, or with an unknown number of channels.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> embed = layers.PatchEmbedding(patch_size=8, width=16)
    >>> tuple(embed(np.zeros((1, 32, 32, 3), "float32")).shape)
    (1, 16, 16)

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 1.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int],
        width: int,
        kernel_initializer: Any = "lecun_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sides = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
        require(len(sides) == 2, f"patch_size must be an int or a pair. Received: {patch_size}")
        for side in sides:
            require_positive_int("patch_size", side)
        require_positive_int("width", width)
        self.patch_size = sides
        self.width = width
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        require(
            len(input_shape) == 4 and input_shape[-1] is not None,
            f"inputs must have shape [images, height, width, channels]. Received: {input_shape}",
        )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.patch_size, input_shape[-1], self.width),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.width,), initializer="zeros")

    def grid(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        """Patches down and across for an image of the given size."""
        sizes = []
        for name, size, p in zip(
            ("height", "width"), (height, width), self.patch_size, strict=True
        ):
            require(
                size is None or size >= p,
                f"images must hold at least one patch of {p} pixels. Received: {name}={size}",
            )
            sizes.append(None if size is None else size // p)
        return sizes[0], sizes[1]

    def call(self, inputs: Any) -> Any:
        down, across = self.patch_size
        require(
            inputs.shape[-1] == self.kernel.shape[2],
            f"inputs must have {self.kernel.shape[2]} channels, as built. "
            f"Received: inputs of shape {tuple(inputs.shape)}",
        )
        batch, height, width, channels = kops.shape(inputs)
        self.grid(inputs.shape[1], inputs.shape[2])
        rows, columns = height // down, width // across
        pixels = inputs[:, : rows * down, : columns * across]
        pixels = kops.reshape(pixels, (-1, rows, down, columns, across, channels))
        pixels = kops.transpose(pixels, (0, 1, 3, 2, 4, 5))
        pixels = kops.reshape(pixels, (batch, rows * columns, down * across * channels))
        kernel = kops.reshape(self.kernel, (down * across * channels, self.width))
        return kops.matmul(pixels, kernel) + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        rows, columns = self.grid(input_shape[1], input_shape[2])
        tokens = None if rows is None or columns is None else rows * columns
        return (input_shape[0], tokens, self.width)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "width": self.width,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_vmoe")
class ClassToken(keras.layers.Layer):
    """Puts one learned token, initially zero, before the others.

    Call arguments:
        inputs: `[b, t, d]`.

    Returns:
        `[b, t + 1, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> tuple(layers.ClassToken()(np.ones((2, 4, 8), "float32")).shape)
    (2, 5, 8)
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.token = self.add_weight(
            name="token", shape=(1, 1, input_shape[-1]), initializer="zeros"
        )

    def call(self, inputs: Any) -> Any:
        token = kops.broadcast_to(
            kops.cast(self.token, inputs.dtype), (kops.shape(inputs)[0], 1, inputs.shape[-1])
        )
        return kops.concatenate([token, inputs], axis=1)

    def get_config(self) -> dict[str, Any]:
        # Keras' own needs an override where a layer was given a policy object.
        return super().get_config()


def sincos_2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed sine-cosine embedding of a grid, `[rows * columns, width]` float32.

    Each token holds `[sin x, cos x, sin y, cos y]`, x running along a row.

    Args:
        rows: patches down.
        columns: patches across.
        width: model width, a multiple of 4 and at least 8.
        temperature: largest wavelength over 2 pi.

    Raises:
        ValueError: a width that is not a multiple of 4.

    Example:

    >>> from keras_vmoe import layers
    >>> layers.sincos_2d(2, 2, 8).shape
    (4, 8)

    Reference: Chen et al. 2021, arXiv 2104.02057 (MoCo v3), section 5.
    """
    require(
        width % 4 == 0 and width >= 8,
        f"width must be a multiple of 4 and at least 8 for sincos2d. Received: width={width}",
    )
    y, x = np.mgrid[:rows, :columns]
    omega = 1.0 / temperature ** (np.arange(width // 4) / (width // 4 - 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype("float32")


def resize_position_embedding(
    embedding: Any, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int = 0
) -> np.ndarray:
    """Resizes a learned position embedding on its grid, linearly with aligned corners.

    Args:
        embedding: `[1, prefix + rows * columns, d]`.
        grid: its rows and columns.
        new_grid: the rows and columns wanted.
        num_prefix_tokens: tokens in front (a class token), which are kept as they are.

    Returns:
        `[1, prefix + new rows * new columns, d]`.

    Raises:
        ValueError: an embedding that does not have the tokens of `grid`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> embedding = np.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 4, 1)
    >>> layers.resize_position_embedding(embedding, (2, 2), (3, 3))[0, :, 0].tolist()
    [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0]
    """
    embedding = np.asarray(embedding)
    tokens = num_prefix_tokens + grid[0] * grid[1]
    require(
        embedding.ndim == 3 and embedding.shape[1] == tokens,
        f"embedding must have shape [1, {tokens}, width] for grid={grid} and "
        f"num_prefix_tokens={num_prefix_tokens}. Received: {embedding.shape}",
    )
    prefix, values = np.split(embedding, [num_prefix_tokens], axis=1)
    values = values.reshape(grid[0], grid[1], -1)
    for axis, (old, new) in enumerate(zip(grid, new_grid, strict=True)):
        position = np.linspace(0.0, old - 1.0, new)
        low = np.minimum(np.floor(position).astype(int), max(old - 2, 0))
        high = np.minimum(low + 1, old - 1)
        share = (position - low).reshape([-1 if i == axis else 1 for i in range(3)])
        values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    values = values.reshape(1, new_grid[0] * new_grid[1], -1).astype(embedding.dtype)
    return np.concatenate([prefix, values], axis=1)


@keras.saving.register_keras_serializable(package="keras_vmoe")
class PositionEmbedding(keras.layers.Layer):
    """Adds a position embedding to tokens on a grid.

    Args:
        kind: `"learned"` (normal, 0.02; class token included), `"sincos2d"` (fixed; nothing is
            added to prefix tokens) or `"none"`.
        grid: patches down and across; `None` takes the square that the tokens make.
        temperature: of the sine-cosine embedding.
        num_prefix_tokens: tokens before the grid (a class token).

    Call arguments:
        inputs: `[b, t, d]`.

    Returns:
        As `inputs`.

    Raises:
        ValueError: an unknown kind, or tokens that do not make the grid.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import layers
    >>> positions = layers.PositionEmbedding("learned", num_prefix_tokens=1)
    >>> tuple(positions(np.zeros((2, 17, 8), "float32")).shape)
    (2, 17, 8)

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, eq. 1 and appendix D.4.
    """

    def __init__(
        self,
        kind: str = "learned",
        grid: tuple[int, int] | None = None,
        num_prefix_tokens: int = 0,
        temperature: float = 10_000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_choice("kind", kind, ("learned", "sincos2d", "none"))
        require(num_prefix_tokens >= 0, f"num_prefix_tokens must be >= 0: {num_prefix_tokens}")
        self.kind = kind
        self.grid = None if grid is None else tuple(grid)
        self.num_prefix_tokens = num_prefix_tokens
        self.temperature = temperature
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        tokens, width = input_shape[1:]
        require(
            tokens is not None and width is not None,
            f"inputs must have known tokens and width. Received: {tuple(input_shape)}",
        )
        self._grid = self._grid_of(tokens)
        if self.kind == "learned":
            self.embedding = self.add_weight(
                name="embedding",
                shape=(1, tokens, width),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
        elif self.kind == "sincos2d":
            table = sincos_2d(*self._grid, width, self.temperature)
            self._table = np.pad(table, ((self.num_prefix_tokens, 0), (0, 0)))[None]

    def _grid_of(self, tokens: int) -> tuple[int, int]:
        """The given grid, or the square that the tokens after the prefix make."""
        patches = tokens - self.num_prefix_tokens
        side = round(max(patches, 0) ** 0.5)
        grid = self.grid or (side, side)
        require(
            grid[0] * grid[1] == patches,
            f"grid must hold the {patches} patches of the input. Received: grid={self.grid}",
        )
        return grid

    @property
    def built_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that the layer was built for."""
        return self._grid

    def assign_resized(self, embedding: Any, grid: tuple[int, int] | None = None) -> None:
        """Takes a learned embedding over from another grid; the class token's is kept as it is.

        Args:
            embedding: `[1, t, d]`, with as many prefix tokens as this layer has.
            grid: its rows and columns; `None` takes the square that it makes.

        Raises:
            ValueError: where this layer is not learned or the shapes do not fit.
        """
        require(
            self.kind == "learned", f"kind must be 'learned' to be assigned. It is {self.kind!r}"
        )
        embedding = np.asarray(embedding)
        if grid is None:
            side = round((embedding.shape[1] - self.num_prefix_tokens) ** 0.5)
            grid = (side, side)
        self.embedding.assign(
            resize_position_embedding(embedding, grid, self._grid, self.num_prefix_tokens)
        )

    def call(self, inputs: Any) -> Any:
        require_rank("inputs", inputs, 3, "[images, tokens, width]")
        if self.kind == "none":
            return inputs
        table = self.embedding if self.kind == "learned" else kops.convert_to_tensor(self._table)
        require(
            inputs.shape[1] in (None, table.shape[1]),
            f"inputs must have {table.shape[1]} tokens, as built. Received: inputs of shape "
            f"{tuple(inputs.shape)}",
        )
        return inputs + kops.cast(table, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "grid": self.grid,
            "num_prefix_tokens": self.num_prefix_tokens,
            "temperature": self.temperature,
        }
