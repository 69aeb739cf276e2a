"""Sums over the routing of a whole dataset, kept in memory that does not grow with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_vmoe.analysis.records import RoutingRecord, routing_records
from keras_vmoe.ops.validation import require, require_choice, require_positive_int

# Of the distribution of gates, between 0 and 1.
GATE_BINS = 50
VALUES = ("weight", "frequency")


@dataclasses.dataclass
class LayerStatistics:
    """What one MoE layer did with all images so far; e experts, k choices, t tokens per image.

    "Taken" are the choices that got a slot. Under soft routing every expert takes every token.

    Attributes:
        layer, router: as in `RoutingRecord`.
        images_per_class: `[classes]` int.
        class_weight: `[classes, e]`, combine weight of the taken choices, by the image's label.
        class_count: `[classes, e]` int, number of the taken choices, by the image's label.
        position_weight, position_count: `[t, e]`, the same by the token's place in the image.
        chosen, taken: `[k]` int, all choices and those taken, by rank (top-k: best first).
        taken_tokens: number of tokens of which any choice was taken.
        slots: of each expert, over all routing groups.
        gate_histogram: `[2, bins]` int, tokens by their largest and second largest gate (only one
            row where e = 1); bins of equal width from 0 to 1.
        gate_sum: `[2]`, the sums of those gates.
        experts_per_image: `[e + 1]` int, images by the number of experts that took a token of them.
    """

    layer: str
    router: str
    images_per_class: np.ndarray
    class_weight: np.ndarray
    class_count: np.ndarray
    position_weight: np.ndarray
    position_count: np.ndarray
    chosen: np.ndarray
    taken: np.ndarray
    taken_tokens: int
    slots: int
    gate_histogram: np.ndarray
    gate_sum: np.ndarray
    experts_per_image: np.ndarray

    @property
    def num_experts(self) -> int:
        """Experts of the layer (e)."""
        return self.class_weight.shape[1]

    @property
    def num_images(self) -> int:
        """Images so far."""
        return int(self.images_per_class.sum())

    @property
    def tokens_per_image(self) -> int:
        """Tokens of an image (t)."""
        return len(self.position_weight)

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return self.num_images * self.tokens_per_image

    @property
    def dropped_tokens(self) -> float:
        """Share of the tokens that no expert took."""
        return 1.0 - self.taken_tokens / self.num_tokens

    @property
    def dropped_choices(self) -> float:
        """Share of the choices that got no slot; expert choice: of tokens that nobody took."""
        if self.router == "expert_choice":
            return self.dropped_tokens
        return 1.0 - float(self.taken.sum() / self.chosen.sum())

    @property
    def buffer_use(self) -> np.ndarray:
        """`[e]`, the share of each expert's slots that held a token; NaN where unknown or soft."""
        if self.router == "soft" or not self.slots:
            return np.full(self.num_experts, np.nan)
        return self.position_count.sum(0) / self.slots

    @property
    def mean_gates(self) -> np.ndarray:
        """`[2]`, the means of a token's largest and second largest gate."""
        return self.gate_sum / self.num_tokens

    def by_class(self, value: str = "weight") -> np.ndarray:
        """`[classes, e]`, mean over the tokens of a class; NaN for a class without images.

        Args:
            value: `"weight"`, the combine weight that an expert has in a token's output, or
                `"frequency"`, the share of the tokens that it took.
        """
        sums = self._sums(value, self.class_weight, self.class_count)
        tokens = self.images_per_class[:, None] * float(self.tokens_per_image)
        return np.divide(sums, tokens, out=np.full(sums.shape, np.nan), where=tokens > 0)

    def by_position(self, value: str = "weight") -> np.ndarray:
        """`[t, e]`, mean over the images, of the token at each place.

        Args:
            value: as in `by_class`.
        """
        return self._sums(value, self.position_weight, self.position_count) / self.num_images

    def _sums(self, value: str, weight: np.ndarray, count: np.ndarray) -> np.ndarray:
        require_choice("value", value, VALUES)
        return np.asarray(weight if value == "weight" else count, "float64")

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """Returns the statistics of the images of both.

        Raises:
            ValueError: if the two are not of the same layer, experts, choices and classes.
        """
        self._require_same(other)
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("layer", "router")
        }
        return LayerStatistics(self.layer, self.router, **sums)

    def _require_same(self, other: LayerStatistics) -> None:
        for name in ("class_weight", "position_weight", "chosen"):
            mine, theirs = getattr(self, name).shape, getattr(other, name).shape
            require(
                mine == theirs and (self.layer, self.router) == (other.layer, other.router),
                f"{name} of layer {self.layer!r} ({self.router}) has shape {mine}; only "
                "statistics of the same layer, classes and routing can be added. Received: "
                f"layer {other.layer!r} ({other.router}) with {theirs}",
            )


class RoutingStatistics:
    """Adds up routing records, batch by batch.

    Args:
        num_classes: the number of labels.

    Example:

    >>> from keras_vmoe import analysis
    >>> expert = np.arange(8).reshape(2, 4, 1) % 2
    >>> record = analysis.RoutingRecord(
    ...     layer="moe",
    ...     router="top_k",
    ...     expert=expert,
    ...     weight=np.full((2, 4, 1), 0.75),
    ...     kept=np.ones((2, 4, 1), bool),
    ...     slot=np.zeros((2, 4, 1), int),
    ...     gates=np.where(expert == np.arange(2), 0.75, 0.25),
    ...     slots=4,
    ... )
    >>> statistics = analysis.RoutingStatistics(num_classes=3)
    >>> statistics.update({"moe": record}, labels=[0, 2])
    >>> statistics.layers["moe"].by_class("frequency")[0].tolist()
    [0.5, 0.5]
    """

    def __init__(self, num_classes: int) -> None:
        require_positive_int("num_classes", num_classes)
        self.num_classes = num_classes
        self.layers: dict[str, LayerStatistics] = {}

    def update(self, records: Mapping[str, RoutingRecord], labels: Any) -> None:
        """Adds one batch.

        Args:
            records: what `routing_records` gave for the batch.
            labels: `[b]` ints, the class of each image.

        Raises:
            ValueError: labels that do not fit, or records of other layers than before.
        """
        labels = self._checked(records, labels)
        names = list(self.layers) or list(records)
        require(
            list(records) == names,
            f"records must be of the layers of the batches before, {', '.join(names)}. Received: "
            f"{', '.join(records)}",
        )
        added = {n: _statistics(record, labels, self.num_classes) for n, record in records.items()}
        self._add(added)

    def merge(self, other: RoutingStatistics) -> None:
        """Adds what another object has added up, of other images with the same model.

        Raises:
            ValueError: if it is of other classes or layers.
        """
        require(
            not self.layers or not other.layers or list(self.layers) == list(other.layers),
            f"other must be of the layers {', '.join(self.layers)}. Received: "
            f"{', '.join(other.layers)}",
        )
        require(
            self.num_classes == other.num_classes,
            f"other must be of {self.num_classes} classes. Received: {other.num_classes}",
        )
        self._add(other.layers)

    def _add(self, added: Mapping[str, LayerStatistics]) -> None:
        if self.layers:
            added = {name: self.layers[name].merge(more) for name, more in added.items()}
        self.layers = dict(added) or self.layers

    def _checked(self, records: Mapping[str, RoutingRecord], labels: Any) -> np.ndarray:
        labels = np.asarray(keras.ops.convert_to_numpy(labels))
        require(
            labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
            f"labels must be [images] whole numbers. Received: {labels.dtype} of shape "
            f"{labels.shape}",
        )
        require(
            labels.size > 0 and labels.min() >= 0 and labels.max() < self.num_classes,
            f"labels must be from 0 to {self.num_classes - 1}, at least one. Received: "
            f"{labels[:8].tolist()}",
        )
        for name, record in records.items():
            require(
                len(record.expert) == len(labels),
                f"labels must be one an image; record {name!r} is of {len(record.expert)} images. "
                f"Received: {len(labels)} labels",
            )
        return labels


def collect_statistics(
    model: keras.Model,
    batches: Iterable[Mapping[str, Any]],
    num_classes: int,
    on_batch: Callable[[int], None] | None = None,
) -> RoutingStatistics:
    """Runs a model once over a dataset and adds up how it routed.

    Images are routed with the others of their batch, as in any other use of the model: batches of
    whole routing groups give what an evaluation does.

    Args:
        model: a model that holds MoE layers.
        batches: `{"image": [b, ...], "label": [b]}`; the last batch may be smaller. Images that a
            `"mask"` `[b]` calls false are left out.
        num_classes: the number of labels.
        on_batch: called with the number of images after each batch.

    Returns:
        The statistics.

    Raises:
        ValueError: a model without MoE layers, no batch, or batches that do not fit.

    Example:

    >>> from keras_vmoe import analysis, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_experts=4,
    ... )
    >>> batch = {"image": np.zeros((8, 32, 32, 3), "float32"), "label": np.zeros(8, int)}
    >>> statistics = analysis.collect_statistics(model, [batch, batch], num_classes=10)
    >>> statistics.layers["encoder_block_1_moe"].num_images
    16
    """
    statistics = RoutingStatistics(num_classes)
    for batch in batches:
        images, labels = batch["image"], keras.ops.convert_to_numpy(batch["label"])
        if "mask" in batch:
            real = keras.ops.convert_to_numpy(batch["mask"])
            images, labels = keras.ops.convert_to_numpy(images)[real], labels[real]
        if len(labels):
            statistics.update(routing_records(model, images), labels)
        if on_batch is not None:
            on_batch(len(labels))
    require(bool(statistics.layers), "batches must hold at least one batch. Received: none")
    return statistics


def _statistics(record: RoutingRecord, labels: np.ndarray, classes: int) -> LayerStatistics:
    """The statistics of one batch."""
    images, tokens, choices = record.expert.shape
    taken = np.asarray(record.kept, bool)
    weight = np.where(taken, record.weight, 0.0).astype("float64")

    def sums(row: np.ndarray, rows: int, values: np.ndarray) -> np.ndarray:
        """`[rows, e]`, the values added up by row and expert."""
        index = np.broadcast_to(row, taken.shape) * record.num_experts + record.expert
        flat = np.bincount(index.ravel(), values.ravel(), rows * record.num_experts)
        return flat.reshape(rows, record.num_experts)

    def counts(row: np.ndarray, rows: int) -> np.ndarray:
        return sums(row, rows, taken).round().astype("int64")

    by_class, by_position = labels[:, None, None], np.arange(tokens)[None, :, None]
    by_image = np.arange(images)[:, None, None]
    used = (counts(by_image, images) > 0).sum(-1)
    gates = np.sort(np.asarray(record.gates, "float64"), axis=-1)[..., ::-1][..., :2]
    return LayerStatistics(
        layer=record.layer,
        router=record.router,
        images_per_class=np.bincount(labels, minlength=classes),
        class_weight=sums(by_class, classes, weight),
        class_count=counts(by_class, classes),
        position_weight=sums(by_position, tokens, weight),
        position_count=counts(by_position, tokens),
        chosen=np.full(choices, images * tokens, "int64"),
        taken=taken.sum((0, 1), dtype="int64"),
        taken_tokens=int(taken.any(-1).sum()),
        slots=record.slots,
        gate_histogram=_histogram(gates),
        gate_sum=gates.sum((0, 1)),
        experts_per_image=np.bincount(used, minlength=record.num_experts + 1),
    )


def _histogram(gates: np.ndarray) -> np.ndarray:
    """`[b, t, m]` gates as `[m, bins]` counts; a gate of 1 falls into the last bin."""
    bins = np.clip((gates * GATE_BINS).astype("int64"), 0, GATE_BINS - 1)
    return np.stack(
        [np.bincount(bins[..., i].ravel(), minlength=GATE_BINS) for i in range(bins.shape[-1])]
    )
