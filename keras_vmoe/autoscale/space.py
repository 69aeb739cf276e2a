"""The topologies that a search chooses from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_vmoe.autoscale import network
from keras_vmoe.models import Genotype
from keras_vmoe.ops.validation import require

Choices = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Choices for every gene of an As-ViT; by default those of the paper, 4,556,250 topologies.

    Args:
        kernels: of each stage's patches, four axes.
        splits: of each stage's attention, three axes; the last stage has one window.
        mlp_ratios: of each stage, four axes.
        heads: of the last stage, one axis.

    Raises:
        ValueError: another number of axes, an axis without choices, with one twice, or with one
            that no genotype may have.

    Example:
        >>> space = SearchSpace()
        >>> space.size, round(math.log(space.size), 2)
        (4556250, 15.33)
        >>> str(space.genotype((4, 2, 2, 2, 0, 0, 0, 1, 0, 2, 4, 1)))
        '8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32'

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), table 1.
    """

    kernels: Sequence[Choices] = ((4, 5, 6, 7, 8), (2, 3, 4), (2, 3, 4), (2, 3, 4))
    splits: Sequence[Choices] = ((2, 4, 8), (1, 2, 4), (1, 2))
    mlp_ratios: Sequence[Choices] = ((2, 3, 4, 5, 6),) * 4
    heads: Choices = (16, 32, 64)

    def __post_init__(self) -> None:
        for name, count in (("kernels", 4), ("splits", 3), ("mlp_ratios", 4)):
            axes = getattr(self, name)
            require(
                isinstance(axes, Sequence) and len(axes) == count,
                f"{name} must be {count} lists of choices. Received: {name}={axes!r}",
            )
            for axis in axes:
                _check_axis(name, axis)
            object.__setattr__(self, name, tuple(map(tuple, axes)))
        _check_axis("heads", self.heads)
        object.__setattr__(self, "heads", tuple(self.heads))
        # What a genotype refuses of one gene, it refuses whatever the others are.
        for i, axis in enumerate(self.axes.values()):
            for choice in range(len(axis)):
                Genotype.parse(self.genotype([choice * (i == j) for j in range(len(self.axes))]))

    @property
    def axes(self) -> dict[str, Choices]:
        """The choices of each gene by its name, in the order of an action's numbers."""
        groups = (("kernel", self.kernels), ("splits", self.splits), ("ratio", self.mlp_ratios))
        found = {
            f"{name} {stage + 1}": axis for name, axes in groups for stage, axis in enumerate(axes)
        }
        return found | {"heads": self.heads}

    @property
    def size(self) -> int:
        """The number of topologies."""
        return math.prod(map(len, self.axes.values()))

    def genotype(self, action: Sequence[int], width: int = 32) -> Genotype:
        """The topology of an action, with one block in each stage.

        Args:
            action: the place of the choice on each axis.
            width: of the first stage.
        """
        genes = [axis[i] for axis, i in zip(self.axes.values(), action, strict=True)]
        kernels, splits, ratios = genes[:4], [*genes[4:7], 1], genes[7:11]
        stages = "|".join(f"{k},{s},{e}" for k, s, e in zip(kernels, splits, ratios, strict=True))
        return Genotype.parse(f"{stages}|{genes[11]},{width}")

    def check(self, image_size: int, width: int) -> None:
        """Refuses an image size that not all topologies take, or too few channels.

        Raises:
            ValueError: see `Genotype.parse`; splits that do not divide a stage's grid.
        """
        for i, axis in enumerate(self.axes.values()):
            for choice in range(len(axis)):
                action = [choice * (i == j) for j in range(len(self.axes))]
                network.check(self.genotype(action, width), image_size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSpace:
        """The space that a JSON file spells.

        Args:
            values: any of "kernels", "splits", "mlp_ratios" and "heads"; the others are the
                paper's.

        Raises:
            ValueError: another name, or as the class.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        require(
            isinstance(values, Mapping) and set(values) <= set(known),
            f"a search space must be an object with names among {', '.join(known)}. Received: "
            f"{values!r}",
        )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The space, ready for JSON."""
        lists = {name: [list(axis) for axis in getattr(self, name)] for name in _GROUPS}
        return lists | {"heads": list(self.heads)}


_GROUPS = ("kernels", "splits", "mlp_ratios")


def _check_axis(name: str, axis: Any) -> None:
    ok = isinstance(axis, Sequence) and not isinstance(axis, str) and len(axis) > 0
    require(
        ok and all(isinstance(choice, int) and choice > 0 for choice in axis),
        f"each axis of {name} must be a list of one or more positive integers. Received: {axis!r}; "
        "give a gene that is not searched its one value, such as [4]",
    )
    require(
        len(set(axis)) == len(axis),
        f"each axis of {name} must name a choice once. Received: {list(axis)}",
    )
