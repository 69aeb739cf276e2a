"""What an As-ViT is made of, in one line of text."""

from __future__ import annotations

import re
from typing import NamedTuple

from keras_vmoe.ops.sizes import ceil_divide
from keras_vmoe.ops.validation import require

STRIDES = (4, 2, 2, 2)
MAX_WIDTH = 1024
_EXAMPLE = "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180"


class StageGenes(NamedTuple):
    """One stage.

    Attributes:
        kernel_size: of the patches that its tokens are made of (K).
        splits: windows of its attention, down and across (S).
        mlp_ratio: hidden width of its MLPs over its width (E).
        depth: its blocks (L).
    """

    kernel_size: int
    splits: int
    mlp_ratio: int
    depth: int = 1


class Genotype(NamedTuple):
    """An architecture of As-ViT: four stages, of strides 4, 2, 2 and 2.

    Attributes:
        stages: the `StageGenes` of each.
        heads: attention heads of the last stage (H); the others have H/8, H/4 and H/2.
        width: of the first stage (C); the others have 2C, 4C and 8C, but 1024 at most.

    Example:

    >>> from keras_vmoe.models import Genotype
    >>> genotype = Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")
    >>> str(genotype)
    '8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32'
    >>> genotype.widths, genotype.num_heads, genotype.grids((224, 224))
    ((32, 64, 128, 256), (4, 8, 16, 32), ((56, 56), (28, 28), (14, 14), (7, 7)))

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), table 1.
    """

    stages: tuple[StageGenes, ...]
    heads: int
    width: int = 32

    @classmethod
    def parse(cls, text: str | Genotype) -> Genotype:
        """The genotype that `K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|H[,C]` spells.

        Args:
            text: the four stages and the heads; L is 1 and C is 32 where they are left out. A
                genotype is checked and given back.

        Raises:
            ValueError: text that does not read so; the message shows the part that is wrong.
        """
        if isinstance(text, Genotype):
            text = str(text)
        require(isinstance(text, str), f"genotype must be text. Received: genotype={text!r}")
        *stages, final = parts = text.split("|")
        require(
            len(parts) == 5,
            f"genotype must have four stages and the heads, 5 parts with | between them, such as "
            f"{_EXAMPLE!r}. Received: {len(parts)} in genotype={text!r}",
        )
        genes = tuple(
            StageGenes(*_numbers(part, (3, 4), f"stage {i + 1}, kernel,splits,ratio[,depth]", text))
            for i, part in enumerate(stages)
        )
        found = cls(genes, *_numbers(final, (1, 2), "the last part, heads[,width]", text))
        found._check(text)
        return found

    def _check(self, text: str) -> None:
        for i, (genes, stride) in enumerate(zip(self.stages, STRIDES, strict=True)):
            require(
                genes.kernel_size >= stride,
                f"the kernel of stage {i + 1} must be at least its stride, {stride}. Received: "
                f"{genes.kernel_size} in genotype={text!r}",
            )
        require(
            self.heads % 8 == 0,
            "the heads of the last stage must be a multiple of 8: the first has an eighth of them. "
            f"Received: {self.heads} in genotype={text!r}",
        )
        for i, (heads, width) in enumerate(zip(self.num_heads, self.widths, strict=True)):
            require(
                heads <= width,
                f"stage {i + 1} must have a width for each head. Received: {heads} heads and a "
                f"width of {width} in genotype={text!r}",
            )

    def __str__(self) -> str:
        stages = (",".join(map(str, genes)) for genes in self.stages)
        return "|".join([*stages, f"{self.heads},{self.width}"])

    @property
    def widths(self) -> tuple[int, ...]:
        """The model width of each stage."""
        return tuple(min(self.width * 2**i, MAX_WIDTH) for i in range(4))

    @property
    def num_heads(self) -> tuple[int, ...]:
        """The attention heads of each stage."""
        return tuple(self.heads // 2 ** (3 - i) for i in range(4))

    @property
    def depths(self) -> tuple[int, ...]:
        """The blocks of each stage."""
        return tuple(genes.depth for genes in self.stages)

    def grids(
        self, image: tuple[int, int], stride: int = STRIDES[0]
    ) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each stage's tokens, for an image of this height and width.

        Args:
            image: height and width, pixels.
            stride: of the first stage.
        """
        found = [tuple(ceil_divide(side, stride) for side in image)]
        for step in STRIDES[1:]:
            found.append(tuple(ceil_divide(side, step) for side in found[-1]))
        return tuple(found)


def _numbers(part: str, counts: tuple[int, int], what: str, text: str) -> list[int]:
    fields = part.split(",")
    ok = len(fields) in counts and all(re.fullmatch(r"[1-9]\d*", field) for field in fields)
    require(
        ok,
        f"{what}, must be {counts[0]} or {counts[1]} positive integers with commas between them, "
        f"as in {_EXAMPLE!r}. Received: {part!r} in genotype={text!r}",
    )
    return [int(field) for field in fields]
