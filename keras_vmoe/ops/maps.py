"""Maps of tokens `[b, rows, columns, d]`: cut into windows, or into patches that may overlap.

Grids may be static or dynamic. One that makes no whole number of windows or strides is padded below
and on the right, so that no token is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops as kops

from keras_vmoe.ops.sizes import ceil_divide, larger, smaller
from keras_vmoe.ops.validation import require, require_rank

Sides = tuple[Any, Any]


class Windows(NamedTuple):
    """Windows of maps, those of an image one after the other, row by row.

    Attributes:
        tokens: `[b * windows, t, d]`.
        mask: `[b * windows, t]` bool, false for padding; `None` where there is none.
    """

    tokens: Any
    mask: Any


def _all_zero(*values: Any) -> bool:
    """Whether all are known to be 0; what a graph does not know may be something else."""
    return all(isinstance(value, int) and value == 0 for value in values)


def window_on(grid: Sides, splits: int, size: Sides | None = None, coarsening: int = 1) -> Sides:
    """Rows and columns of a window on a map, in tokens.

    Args:
        grid: rows and columns of the map.
        splits: windows down, and across, where there is no `size`.
        size: rows and columns of a window on maps that are not coarsened.
        coarsening: how many times fewer tokens the map has down, and across.
    """
    if size is None:
        return tuple(ceil_divide(side, splits) for side in grid)
    return tuple(ceil_divide(side, coarsening) for side in size)


def partition_windows(inputs: Any, window: Sides) -> Windows:
    """Cuts maps into windows that do not overlap.

    Args:
        inputs: `[b, rows, columns, d]`.
        window: rows and columns of a window; one larger than the map is as large as the map.

    Returns:
        The `Windows`. Where windows do not fit a whole number of times, those below and on the
        right are filled up with zeros, which the mask tells of.

    Raises:
        ValueError: inputs that are no maps.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> maps = np.arange(6.0).reshape(1, 2, 3, 1)
    >>> windows = ops.partition_windows(maps, (2, 2))
    >>> np.array(windows.tokens)[..., 0].tolist()
    [[0.0, 1.0, 3.0, 4.0], [2.0, 0.0, 5.0, 0.0]]
    >>> np.array(windows.mask).tolist()
    [[True, True, True, True], [True, False, True, False]]

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.1.
    """
    require_rank("inputs", inputs, 4, "[images, rows, columns, width]")
    batch, rows, columns, width = kops.shape(inputs)
    down, across = smaller(window[0], rows), smaller(window[1], columns)
    counts = (ceil_divide(rows, down), ceil_divide(columns, across))
    missing = (counts[0] * down - rows, counts[1] * across - columns)
    mask = None
    if not _all_zero(*missing):
        inputs = kops.pad(inputs, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        real = [
            kops.arange(count * side) < size
            for count, side, size in zip(counts, (down, across), (rows, columns), strict=True)
        ]
        mask = kops.logical_and(kops.expand_dims(real[0], 1), kops.expand_dims(real[1], 0))
        mask = kops.reshape(mask, (counts[0], down, counts[1], across))
        mask = kops.reshape(kops.transpose(mask, (0, 2, 1, 3)), (-1, down * across))
        mask = kops.tile(mask, (batch, 1))
    tokens = kops.reshape(inputs, (-1, counts[0], down, counts[1], across, width))
    tokens = kops.transpose(tokens, (0, 1, 3, 2, 4, 5))
    return Windows(kops.reshape(tokens, (-1, down * across, width)), mask)


def join_windows(tokens: Any, window: Sides, grid: Sides) -> Any:
    """The maps that `partition_windows` cut, without the padding.

    Args:
        tokens: `[b * windows, t, d]`.
        window: as it was given to `partition_windows`.
        grid: rows and columns of the maps.

    Returns:
        `[b, rows, columns, d]`.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> maps = np.random.rand(2, 5, 7, 3).astype("float32")
    >>> windows = ops.partition_windows(maps, (2, 3))
    >>> bool(np.all(np.array(ops.join_windows(windows.tokens, (2, 3), (5, 7))) == maps))
    True
    """
    rows, columns = grid
    down, across = smaller(window[0], rows), smaller(window[1], columns)
    counts = (ceil_divide(rows, down), ceil_divide(columns, across))
    width = tokens.shape[-1]
    maps = kops.reshape(tokens, (-1, counts[0], counts[1], down, across, width))
    maps = kops.transpose(maps, (0, 1, 3, 2, 4, 5))
    maps = kops.reshape(maps, (-1, counts[0] * down, counts[1] * across, width))
    return maps[:, :rows, :columns]


def patch_padding(size: Any, kernel_size: int, stride: int, dilation: int = 1) -> Sides:
    """Zeros before and behind an axis, so that there are `ceil(size / stride)` patches along it.

    Where the stride divides the size, the kernel's extent, `(kernel_size - 1) * dilation + 1`,
    exceeds the stride by as much as there are zeros; the odd one is behind.

    Args:
        size: pixels or tokens along the axis, an int or an int tensor.
        kernel_size: taps of the kernel along the axis.
        stride: from one patch to the next.
        dilation: from one tap to the next.

    Example:

    >>> from keras_vmoe import ops
    >>> ops.patch_padding(224, kernel_size=7, stride=4), ops.patch_padding(225, 8, 16, 5)
    ((1, 2), (10, 25))
    """
    extent = (kernel_size - 1) * dilation + 1
    before = max(extent - stride, 0) // 2
    last = (ceil_divide(size, stride) - 1) * stride
    return before, larger(last + extent - before - size, 0)


def pad_for_patches(inputs: Any, kernel_size: int, stride: int, dilation: int = 1) -> Any:
    """Maps with the zeros around them that `patch_padding` tells."""
    _, rows, columns, _ = kops.shape(inputs)
    padding = [patch_padding(size, kernel_size, stride, dilation) for size in (rows, columns)]
    if _all_zero(*padding[0], *padding[1]):
        return inputs
    return kops.pad(inputs, ((0, 0), *padding, (0, 0)))


def overlapping_patches(inputs: Any, kernel_size: int, stride: int, dilation: int = 1) -> Any:
    """The patches that a convolution with stride and dilation would multiply with its kernel.

    TensorFlow has no kernel on CPU for a stride and a dilation together; a matrix product of these
    patches is that convolution.

    Args:
        inputs: `[b, height, width, channels]`.
        kernel_size: taps down and across.
        stride: from one patch to the next.
        dilation: from one tap to the next.

    Returns:
        `[b, ceil(height / stride), ceil(width / stride), kernel_size**2 * channels]`; a patch's
        values lie row by row, the channels of a tap together.

    Raises:
        ValueError: inputs that are no maps.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> maps = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> np.array(ops.overlapping_patches(maps, kernel_size=2, stride=2))[0, 0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), sections 3.1 and 4.2.
    """
    require_rank("inputs", inputs, 4, "[images, height, width, channels]")
    _, height, width, _ = kops.shape(inputs)
    grid = ceil_divide(height, stride), ceil_divide(width, stride)
    x = pad_for_patches(inputs, kernel_size, stride, dilation)
    if dilation == 1:
        return _gather_cells(x, grid, kernel_size, stride)
    return _gather_taps(x, grid, kernel_size, stride, dilation)


def _gather_taps(x: Any, grid: Sides, kernel_size: int, stride: int, dilation: int) -> Any:
    """Patches of padded maps: the cells under each tap, along one axis after the other."""
    taps = range(0, kernel_size * dilation, dilation)
    end = (grid[0] - 1) * stride + 1
    x = kops.stack([x[:, tap : tap + end : stride] for tap in taps], axis=3)
    end = (grid[1] - 1) * stride + 1
    x = kops.stack([x[:, :, tap : tap + end : stride] for tap in taps], axis=4)
    return kops.reshape(x, (-1, *grid, kernel_size**2 * x.shape[-1]))


def _gather_cells(x: Any, grid: Sides, kernel_size: int, stride: int) -> Any:
    """The same without dilation, by whole cells of a stride's side: a patch takes some in a row.

    Cells are axes, so nothing is read with a step; and `slice`, unlike indexing, has a gradient
    that only pads. For As-ViT's merging both passes take about a tenth of the time of
    `_gather_taps`.
    """
    batch, height, width, channels = kops.shape(x)
    (rows, columns), cells = grid, ceil_divide(kernel_size, stride)
    whole = (rows + cells - 1) * stride, (columns + cells - 1) * stride
    x = kops.pad(x, ((0, 0), (0, whole[0] - height), (0, whole[1] - width), (0, 0)))
    taps = [min(stride, kernel_size - cell * stride) for cell in range(cells)]

    # At most five axes, since LiteRT slices no more.
    x = kops.reshape(x, (batch, rows + cells - 1, stride, whole[1], channels))
    x = [
        kops.slice(x, (0, cell, 0, 0, 0), (batch, rows, count, whole[1], channels))
        for cell, count in enumerate(taps)
    ]
    lines = batch * rows * kernel_size
    x = kops.reshape(kops.concatenate(x, axis=2), (lines, columns + cells - 1, stride, channels))
    x = [
        kops.slice(x, (0, cell, 0, 0), (lines, columns, count, channels))
        for cell, count in enumerate(taps)
    ]
    x = kops.reshape(
        kops.concatenate(x, axis=2), (batch, rows, kernel_size, columns, kernel_size * channels)
    )
    x = kops.transpose(x, (0, 1, 3, 2, 4))
    return kops.reshape(x, (-1, rows, columns, kernel_size**2 * channels))


def resize_maps(inputs: Any, grid: Sides) -> Any:
    """Resizes maps bilinearly, in float32; cells have areas, so corners are not aligned.

    Args:
        inputs: `[b, rows, columns, d]`, rows and columns known.
        grid: the rows and columns wanted, ints or int tensors.

    Returns:
        `[b, *grid, d]`, of the inputs' dtype; the inputs themselves where they have that grid.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> line = np.arange(8.0, dtype="float32").reshape(1, 8, 1, 1)
    >>> np.array(ops.resize_maps(line, (2, 1)))[0, :, 0, 0].tolist()
    [1.5, 5.5]
    """
    require(
        None not in tuple(inputs.shape[1:3]),
        f"inputs must have known rows and columns. Received: inputs of shape {inputs.shape}",
    )
    rows, columns = inputs.shape[1:3]
    if isinstance(grid[0], int) and isinstance(grid[1], int) and tuple(grid) == (rows, columns):
        return inputs
    maps = kops.cast(inputs, "float32")
    maps = kops.einsum("ir,brcd->bicd", _resizing(rows, grid[0]), maps)
    maps = kops.einsum("jc,bicd->bijd", _resizing(columns, grid[1]), maps)
    return kops.cast(maps, inputs.dtype)


def _resizing(old: int, new: Any) -> Any:
    """`[new, old]`: the share of each old cell in each new one.

    In float32 whatever the maps: in half precision a centre such as 40.3 has no eighths left, and
    the shares of a cell do not sum to 1.
    """
    places = kops.cast(kops.arange(new), "float32")
    centres = (places + 0.5) * (old / kops.cast(new, "float32")) - 0.5
    centres = kops.clip(centres, 0.0, old - 1.0)
    distance = kops.expand_dims(centres, 1) - kops.cast(kops.arange(old), "float32")
    return kops.relu(1.0 - kops.abs(distance))
