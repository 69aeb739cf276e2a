"""The grid of `benchmark scaling`, and what arithmetic predicts for it. No TensorFlow here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from keras_vmoe.trainers.benchmark.settings import FORWARD, FORWARD_BACKWARD

LAYER, MODEL = "layer", "model"


class Place(NamedTuple):
    """Where the cost is measured.

    Attributes:
        experts: of a layer (e).
        selected: choices per token (k).
        images_per_group: images routed together.
        capacity_factor: C.
        image_size: pixels.
        batch: images (b).
    """

    experts: int
    selected: int
    images_per_group: int
    capacity_factor: float
    image_size: int
    batch: int


class Curve(NamedTuple):
    """What is measured: the MoE layer or a model of such layers, in one pass."""

    subject: str
    mode: str


# The arguments of a place that are varied, and the settings that list their values.
AXES = {
    "experts": "experts",
    "selected": "selected",
    "images_per_group": "images_per_group",
    "capacity_factor": "capacities",
    "image_size": "image_sizes",
    "batch": "batches",
}
# Along the others a model would only show its layers again, thinned by the rest of its blocks.
_AXES_OF_MODEL = ("experts", "image_size", "batch")

_BASE = Place(8, 1, 8, 1.05, 224, 8)


@dataclass(frozen=True)
class ScalingSettings:
    """The grid: from one place, one thing at a time.

    Args:
        base: the place where all lines meet.
        axes: what is varied, keys of `AXES`.
        experts, selected, images_per_group, capacities, image_sizes, batches: the values.
        subjects: `"layer"`, `"model"`.
        width: d.
        hidden_dim: h.
        patch_size: pixels of a patch's side; an image has `(image_size / patch_size)^2` tokens.
        num_layers: blocks of the model, every other one sparse.
        num_heads: attention heads of the model.
        rounds: interleaved rounds.
        warmup: runs before them.
        seed: of inputs, weights and noise.
    """

    base: Place = _BASE
    axes: tuple[str, ...] = tuple(AXES)
    experts: tuple[int, ...] = (8, 32, 128)
    selected: tuple[int, ...] = (1, 2, 4)
    images_per_group: tuple[int, ...] = (1, 2, 4, 8)
    capacities: tuple[float, ...] = (0.25, 0.5, 1.05, 2.0)
    image_sizes: tuple[int, ...] = (64, 128, 224, 384)
    batches: tuple[int, ...] = (1, 2, 8, 16)
    subjects: tuple[str, ...] = (LAYER, MODEL)
    width: int = 384
    hidden_dim: int = 1536
    patch_size: int = 16
    num_layers: int = 4
    num_heads: int = 6
    rounds: int = 5
    warmup: int = 1
    seed: int = 0


GRIDS = {
    "default": ScalingSettings(),
    "smallest": ScalingSettings(
        base=Place(2, 1, 2, 1.05, 32, 2),
        experts=(2, 4),
        selected=(1, 2),
        images_per_group=(1, 2),
        capacities=(0.5, 1.05),
        image_sizes=(32, 64),
        batches=(2, 4),
        width=16,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        rounds=1,
    ),
}


def curves(settings: ScalingSettings) -> list[Curve]:
    """Returns what is measured, in the order of the table."""
    found = [Curve(LAYER, FORWARD), Curve(LAYER, FORWARD_BACKWARD), Curve(MODEL, FORWARD)]
    return [curve for curve in found if curve.subject in settings.subjects]


def places(settings: ScalingSettings, curve: Curve) -> list[tuple[str, Place]]:
    """Returns what is varied, with the places of its line, in the order of the table.

    Args:
        settings: the grid.
        curve: the layer or the model.

    Example:
        >>> grid = ScalingSettings(axes=("batch",), batches=(1, 8))
        >>> [(axis, place.batch) for axis, place in places(grid, Curve("layer", "forward"))]
        [('batch', 1), ('batch', 8)]
    """
    axes = [a for a in settings.axes if curve.subject == LAYER or a in _AXES_OF_MODEL]
    return [
        (axis, settings.base._replace(**{axis: value}))
        for axis in axes
        for value in getattr(settings, AXES[axis])
    ]


def tokens_per_image(settings: ScalingSettings, place: Place) -> int:
    """Returns the tokens of an image (t)."""
    return (place.image_size // settings.patch_size) ** 2


def dense_flops(settings: ScalingSettings, rows: int) -> int:
    """Returns the FLOPs of a dense MLP's forward pass: `4 d h` a row.

    Args:
        settings: the grid.
        rows: tokens.
    """
    return 4 * settings.width * settings.hidden_dim * rows


def layer_flops(settings: ScalingSettings, place: Place, kept: int) -> int:
    """Returns the FLOPs of a MoE layer's forward pass.

    `4 d h` for each (token, choice) pair that is kept, in the experts; `2 d e` for each token, in
    the router; `2 d` for each pair that is kept, in the weighted sum. A backward pass is two
    matrix products for each of the forward pass, so both passes are three times that.

    The way to the experts and back multiplies nothing. What a measurement has above this is that
    way: the sorting of tokens, the gathers, and the reading of more weights than a dense MLP has.

    Args:
        settings: the grid.
        place: where.
        kept: the pairs that found a slot.
    """
    tokens = place.batch * tokens_per_image(settings, place)
    router = 2 * settings.width * place.experts * tokens
    return dense_flops(settings, kept) + router + 2 * settings.width * kept
