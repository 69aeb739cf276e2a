"""What `profile` returns: a row per layer, and their sum.

An image stands for what one row of the inputs is: of a model of images and texts, a pair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from keras_vmoe.tables import aligned


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """Parameters and multiply-accumulates of one layer, for one image.

    Attributes:
        name: the layer's name.
        output_shape: of one image: the batch axis is left out; empty where it is not known.
        params: all parameters.
        idle_params: those that a token does not use, on average: experts it is not sent to.
        macs: multiply-accumulates of one image.
        parts: rows of the layers inside, which the numbers above are the sum of.
        note: what the numbers leave out, if anything.
        pointwise: operations of one image that multiply no matrices, as `flops_paper` counts them.
    """

    name: str
    output_shape: tuple[int | None, ...] = ()
    params: int = 0
    idle_params: int = 0
    macs: int = 0
    parts: tuple[LayerProfile, ...] = ()
    note: str = ""
    pointwise: int = 0

    @property
    def activated_params(self) -> int:
        """Parameters that one token uses."""
        return self.params - self.idle_params

    @property
    def flops(self) -> int:
        """Floating point operations of one image, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def flops_paper(self) -> int:
        """As `Profile.flops_paper`."""
        return self.flops + self.pointwise

    @classmethod
    def whole(
        cls,
        name: str,
        output_shape: Sequence[int | None],
        parts: Sequence[LayerProfile],
        note: str = "",
    ) -> LayerProfile:
        """The row of a layer that is nothing but its parts; those that count nothing are left out.

        Args:
            name: the layer's name.
            output_shape: of one image.
            parts: the rows inside it.
            note: what the numbers leave out.
        """
        return cls(
            name,
            tuple(output_shape),
            sum(part.params for part in parts),
            sum(part.idle_params for part in parts),
            sum(part.macs for part in parts),
            tuple(part for part in parts if part.counts),
            note,
            sum(part.pointwise for part in parts),
        )

    @property
    def counts(self) -> bool:
        """Whether there is anything to say of this row."""
        return bool(self.params or self.macs or self.note)

    def without_params(self) -> LayerProfile:
        """The same work with weights that another row has counted already."""
        parts = tuple(part.without_params() for part in self.parts)
        return dataclasses.replace(self, params=0, idle_params=0, parts=parts)

    def times(self, copies: int) -> LayerProfile:
        """The same weights, used for so many copies of an image."""
        parts = tuple(part.times(copies) for part in self.parts)
        macs, pointwise = copies * self.macs, copies * self.pointwise
        return dataclasses.replace(self, macs=macs, pointwise=pointwise, parts=parts)

    def without_macs(self, note: str) -> LayerProfile:
        """The same weights with work that cannot be counted, for the reason that `note` gives."""
        parts = tuple(part.without_macs("") for part in self.parts)
        return dataclasses.replace(
            self, output_shape=(), macs=0, pointwise=0, parts=parts, note=note
        )

    def to_dict(self, depth: int | None = None) -> dict[str, Any]:
        """Names and numbers, ready for JSON.

        Args:
            depth: how many levels of parts are given; `None` gives all.
        """
        values = {
            "name": self.name,
            "output_shape": list(self.output_shape),
            "params": self.params,
            "activated_params": self.activated_params,
            "macs": self.macs,
            "flops": self.flops,
        }
        if self.note:
            values["note"] = self.note
        if self.parts and depth != 0:
            below = None if depth is None else depth - 1
            values["parts"] = [part.to_dict(below) for part in self.parts]
        return values


@dataclasses.dataclass(frozen=True)
class Profile:
    """Parameters and multiply-accumulates of a model, for one image. `print` shows a table.

    Attributes:
        name: the model's name.
        layers: a row per layer, in the order of the computation; `.parts` of a row go deeper.
        unit: what is counted: an `"image"`, a `"text"`, or a `"pair"` of both.

    Example:

    >>> from keras_vmoe import analysis
    >>> small = analysis.profile("vit_ti16", num_layers=1, num_classes=10)
    >>> [layer.name for layer in small.layers][-2:]
    ['encoder_norm', 'head']
    >>> small.flops == 2 * sum(layer.macs for layer in small.layers)
    True
    """

    name: str
    layers: tuple[LayerProfile, ...]
    unit: str = "image"

    @property
    def params(self) -> int:
        """All parameters, as `count_params()` counts them."""
        return sum(layer.params for layer in self.layers)

    @property
    def activated_params(self) -> int:
        """Parameters that one token uses: k of the e experts, and all that is not an expert."""
        return sum(layer.activated_params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating point operations of one image, two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def flops_paper(self) -> int:
        """`flops` and what multiplies no matrices, by a rule that published counts follow.

        The rule adds, with t tokens, width d, n heads and hidden width h: `6td + 4t^2n` for the
        attention of a block with its norms, biases and residuals, `10th` for its MLP, `5td` for the
        norm behind the blocks. It was found from the counts that Daxberger et al. 2023, arXiv
        2309.04354, print for Mobile V-MoE and its dense twins, and gives all 17 of them to the
        MFLOP. It is of `ViT` and `MobileVMoE`; what other parts do beside is not counted.
        """
        return self.flops + sum(layer.pointwise for layer in self.layers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers leave out, a line per layer that says so."""
        rows = _walk(self.layers, depth=None)
        return tuple(f"{row.name}: {row.note}" for _, row in rows if row.note)

    def table(self, depth: int = 1) -> str:
        """The profile as text.

        Args:
            depth: 0 shows the model alone, 1 its layers, 2 their parts, and so on.
        """
        total = LayerProfile.whole(self.name, (), self.layers)
        rows = [("  " * level + row.name, row) for level, row in _walk(self.layers, depth)]
        lines = _lines([*rows, (self.name, total)], self.macs)
        rule = "-" * len(lines[0])
        lines = [lines[0], rule, *lines[1:-1], *([rule] if rows else []), lines[-1]]
        share = self.activated_params / max(self.params, 1)
        lines.append(
            f"{_short(self.flops)}FLOPs per {self.unit} (2 per MAC), "
            f"{_short(self.flops_paper)} with norms, GELU and softmax; one token uses "
            f"{_short(self.activated_params)} of {_short(self.params)} parameters ({share:.1%})"
        )
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def to_dict(self, depth: int | None = None) -> dict[str, Any]:
        """Names and numbers, ready for JSON.

        Args:
            depth: 0 gives the model alone, 1 its layers and so on, as in `table`; `None` gives all.
        """
        values: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "params": self.params,
            "activated_params": self.activated_params,
            "macs": self.macs,
            "flops": self.flops,
            "flops_paper": self.flops_paper,
        }
        if depth != 0:
            below = None if depth is None else depth - 1
            values["layers"] = [layer.to_dict(below) for layer in self.layers]
        return values

    def __str__(self) -> str:
        return self.table()


def _walk(
    rows: Sequence[LayerProfile], depth: int | None, level: int = 0
) -> Iterator[tuple[int, LayerProfile]]:
    """Rows with their level, parts behind their whole, down to `depth` levels."""
    if depth is not None and level >= depth:
        return
    for row in rows:
        yield level, row
        yield from _walk(row.parts, depth, level + 1)


_HEAD = ("layer", "output", "parameters", "activated", "MACs", "% MACs")


def _lines(rows: Sequence[tuple[str, LayerProfile]], all_macs: int) -> list[str]:
    cells = [_HEAD]
    for name, row in rows:
        output = " x ".join("?" if side is None else str(side) for side in row.output_shape)
        numbers = (f"{n:,}" for n in (row.params, row.activated_params, row.macs))
        cells.append((name, output, *numbers, f"{100 * row.macs / max(all_macs, 1):.1f}"))
    return aligned(cells, num_left=2)


def _short(value: int) -> str:
    """Four digits and a letter: 226.8 G."""
    if value < 1000:
        return f"{value} "
    letter = min(int(math.log10(value)) // 3, 5)
    return f"{value / 1000**letter:.4g} {' kMGTP'[letter]}"
