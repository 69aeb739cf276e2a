"""Where a tensor lies on a mesh of devices: one hook, which does nothing without a mesh."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

LayOut = Callable[[Any, tuple[str | None, ...]], Any]


class _State(threading.local):
    def __init__(self) -> None:
        self.lay_out: LayOut | None = None


_state = _State()


def lay_out(tensor: Any, *axes: str | None) -> Any:
    """The tensor, split over devices along some of its axes; as it is where there is no mesh.

    Args:
        tensor: any tensor.
        axes: for each leading axis of the tensor what it is split by: `"batch"` (images, groups),
            `"expert"` or `None` (not split). Axes that are left out are not split.

    Returns:
        A tensor of the same shape and values.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> ops.lay_out(np.ones((2, 3)), "batch").shape
    (2, 3)
    """
    return tensor if _state.lay_out is None else _state.lay_out(tensor, axes)


@contextlib.contextmanager
def laid_out_by(function: LayOut) -> Iterator[None]:
    """Has `lay_out` call `function(tensor, axes)` within a `with` block.

    A mesh of `keras_vmoe.distribution` installs itself so.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> with ops.laid_out_by(lambda tensor, axes: print(axes)):
    ...     ops.lay_out(np.ones((2, 3)), "expert", "batch")
    ('expert', 'batch')
    """
    previous, _state.lay_out = _state.lay_out, function
    try:
        yield
    finally:
        _state.lay_out = previous


def on_mesh() -> bool:
    """Whether a `laid_out_by` is open."""
    return _state.lay_out is not None
