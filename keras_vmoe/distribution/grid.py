"""A grid of devices, whatever drives them: one axis for the batch, one for the experts."""

from __future__ import annotations

import abc
from typing import Any, Self

from keras_vmoe.ops.validation import require, require_positive_int

AXES = ("batch", "expert")


class Grid(abc.ABC):
    """What the meshes of all backends have in common: sizes, and what they divide.

    Args:
        batch: devices along the axis of the batch.
        expert: devices that the experts of a layer are split over.

    Raises:
        ValueError: a size that is no whole number above 0.
    """

    def __init__(self, batch: int = 1, expert: int = 1) -> None:
        require_positive_int("batch", batch)
        require_positive_int("expert", expert)
        self.batch, self.expert = batch, expert

    @classmethod
    def parse(cls, text: str, **kwargs: Any) -> Self:
        """A mesh from the words of a command line.

        Args:
            text: `"batch:2,expert:4"`, or one of the two; what is left out is 1.
            **kwargs: further arguments of the class.

        Raises:
            ValueError: anything else.

        Example:

        >>> from keras_vmoe import distribution
        >>> distribution.Mesh.parse("expert:1", device_type="CPU")
        Mesh(batch=1, expert=1)
        """
        return cls(**parse_sizes(text), **kwargs)

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.batch * self.expert

    @property
    def words(self) -> str:
        """The sizes as a command line has them, such as `"batch:2,expert:4"`; see `parse`."""
        return f"batch:{self.batch},expert:{self.expert}"

    @property
    @abc.abstractmethod
    def batch_parts(self) -> int:
        """The number of parts that images are split into."""

    def devices_along(self, axis: str) -> int:
        """The number of devices along an axis of the mesh.

        Args:
            axis: `"batch"` or `"expert"`.
        """
        return {"batch": self.batch, "expert": self.expert}[axis]

    def require_batch(self, count: int, name: str, parts: int | None = None) -> None:
        """Raises a `ValueError` unless a number of images or groups can be split evenly.

        Args:
            count: images or groups.
            name: what they are, for the message.
            parts: of the mesh; `None` takes those of the whole mesh.
        """
        parts = self.batch_parts if parts is None else parts
        require(
            count > 0 and count % parts == 0,
            f"{name} must be a multiple of {parts}, the devices of {self} that images are split "
            f"over. Received: {count}",
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch={self.batch}, expert={self.expert})"


def require_axes(rank: int, axes: tuple[str | None, ...] | list[str | None]) -> None:
    """Raises a `ValueError` unless axes name those of a mesh, and are no more than a rank."""
    require(len(axes) <= rank, f"axes must be at most rank={rank} many. Received: axes={axes!r}")
    for axis in axes:
        require(
            axis is None or axis in AXES,
            f"axes must be 'batch', 'expert' or None. Received: {axis!r} in axes={axes!r}",
        )


def parse_sizes(text: str) -> dict[str, int]:
    """The sizes in `"batch:2,expert:4"`.

    Raises:
        ValueError: an unknown or repeated axis, or a size that is no whole number above 0.

    Example:

    >>> parse_sizes("batch:2,expert:4")
    {'batch': 2, 'expert': 4}
    """
    sizes: dict[str, int] = {}
    for word in text.split(","):
        name, _, size = (part.strip() for part in word.partition(":"))
        require(
            name in AXES and name not in sizes and size.isdecimal() and int(size) > 0,
            "mesh must be sizes of 'batch' and 'expert', such as 'batch:2,expert:4'. "
            f"Received: {word.strip()!r} in mesh={text!r}",
        )
        sizes[name] = int(size)
    return sizes
