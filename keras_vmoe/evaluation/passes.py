"""One pass over labelled images: features, or logits with what the MoE layers did meanwhile."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops as kops

from keras_vmoe import layers, models, ops
from keras_vmoe.evaluation.uncertainty import Calibration, RunningCalibration
from keras_vmoe.layers.effects import RoutingCall
from keras_vmoe.ops.validation import require

#: One batch: "image" `[b, height, width, channels]`, "label" `[b]` ints or `[b, classes]`, and,
#: where there is padding, "mask" `[b]` bool, false for images that do not count.
Batch = Mapping[str, Any]
#: From labels and logits to one number an image.
Loss = Callable[[Any, Any], Any]


class LayerRouting(NamedTuple):
    """How one MoE layer routed the images of an evaluation; e experts.

    Attributes:
        dropped: share of the choices that got no slot; expert choice: of the tokens that nobody
            took; soft routing: `None`.
        choices: per image; expert choice: tokens; soft: `None`.
        rows: that experts worked on to some use, per image: kept choices, under soft routing slots.
        slots: per image in full groups, filled or not.
        group_tokens: that are routed together in full groups (s).
        expert_shares: `[e]`, of all kept choices.
        row_macs: multiply-accumulates of one row through an expert.
    """

    dropped: float | None
    choices: float | None
    rows: float
    slots: float
    group_tokens: int
    expert_shares: np.ndarray
    row_macs: int

    @property
    def capacity(self) -> float | None:
        """Slots for each choice: the capacity factor after rounding to whole slots."""
        return None if self.choices is None else self.slots / self.choices


class Evaluation(NamedTuple):
    """What a classifier did on a set of images.

    Attributes:
        images: how many there were.
        accuracy: share that was classified rightly.
        loss: mean over the images, without auxiliary losses.
        calibration: negative log-likelihood, Brier score and calibration error, of the softmax,
            whatever the loss: of logits that were trained with sigmoids they say little.
        layers: name of each MoE layer of tokens to its routing, in the order of the calls.
    """

    images: int
    accuracy: float
    loss: float
    calibration: Calibration
    layers: dict[str, LayerRouting]

    @property
    def dropped(self) -> float | None:
        """Share of the choices of all layers that got no slot; `None` without MoE layers."""
        counted = [layer for layer in self.layers.values() if layer.dropped is not None]
        if not counted:
            return None
        choices = sum(layer.choices for layer in counted)
        return sum(layer.dropped * layer.choices for layer in counted) / choices

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers, ready for JSON."""
        rows = {}
        for name, layer in self.layers.items():
            rows[name] = {
                "dropped": layer.dropped,
                "capacity": layer.capacity,
                "rows_per_image": layer.rows,
                "slots_per_image": layer.slots,
                "expert_shares": layer.expert_shares.tolist(),
            }
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "loss": self.loss,
            **self.calibration._asdict(),
            "dropped": self.dropped,
            "layers": rows,
        }


def softmax_loss(labels: Any, logits: Any) -> Any:
    """The cross entropy of each image, `[b]`, from class ids `[b]` or probabilities."""
    if len(labels.shape) == 1:
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return keras.losses.categorical_crossentropy(labels, logits, from_logits=True)


def evaluate(
    model: keras.Model,
    batches: Iterable[Batch],
    loss: Loss = softmax_loss,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Accuracy, loss, calibration and routing of a classifier on labelled images.

    The model runs as in inference; its metrics are left alone. Images that a batch masks out do
    not reach it.

    Args:
        model: from images to logits, any built Keras model; of an ensemble, whose logits are
            `[b, m, classes]`, the mean softmax of the members is evaluated.
        batches: of `{"image", "label"}`, and "mask" where there is padding.
        loss: from labels and logits to one number an image; softmax cross entropy by default.
        on_batch: called after each batch.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: no images, or images that do not fit the model.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ...     capacity_factor=4.0,
    ... )
    >>> batch = {"image": np.zeros((3, 32, 32, 3), "float32"), "label": np.array([0, 0, 1])}
    >>> result = evaluation.evaluate(model, [batch])
    >>> result.images, round(result.loss, 3), result.layers["encoder_block_1_moe"].dropped
    (3, 2.303, 0.0)
    """
    evaluator = Evaluator(model, loss)
    for batch in batches:
        evaluator.add(batch)
        on_batch()
    return evaluator.result()


def collect_features(
    model: keras.Model,
    batches: Iterable[Batch],
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of a model for all images of some batches, and their labels.

    Args:
        model: any built Keras model of one output, such as `models.feature_extractor` gives; its
            metrics are left alone.
        batches: as for `evaluate`.
        on_batch: called after each batch.

    Returns:
        Features `[n, d]`, float32, and labels `[n]`.

    Raises:
        ValueError: no images, or images that do not fit the model.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation, models
    >>> vit = models.ViT(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=1,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ... )
    >>> batch = {"image": np.zeros((3, 32, 32, 3), "float32"), "label": np.array([0, 0, 1])}
    >>> features, labels = evaluation.collect_features(models.feature_extractor(vit), [batch] * 2)
    >>> features.shape, labels.tolist()
    ((6, 16), [0, 0, 1, 0, 0, 1])
    """
    features, labels = [], []
    for batch in batches:
        images, ids = real_images(batch, model)
        if len(images):
            with layers.routing_metrics(False):
                features.append(np.asarray(model.predict_on_batch(images), "float32"))
            labels.append(ids)
        on_batch()
    require(bool(features), "batches must hold at least one image. Received: none")
    return np.concatenate(features), np.concatenate(labels)


def real_images(batch: Batch, model: keras.Model) -> tuple[Any, np.ndarray]:
    """The images and labels of a batch that are not padding, checked against the model."""
    require(
        isinstance(batch, Mapping) and "image" in batch and "label" in batch,
        "batches must hold dicts with 'image' and 'label'. "
        f"Received: {sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__}",
    )
    images, labels = batch["image"], np.asarray(kops.convert_to_numpy(batch["label"]))
    wanted = model.input_shape[1:]
    fits = len(images.shape) == len(wanted) + 1 and all(
        side in (None, given) for side, given in zip(wanted, images.shape[1:], strict=True)
    )
    require(
        fits,
        f"images must have shape {('images', *wanted)} for model {model.name!r}. "
        f"Received: {tuple(images.shape)}",
    )
    mask = batch.get("mask")
    if mask is None:
        return images, labels
    mask = np.asarray(kops.convert_to_numpy(mask), bool)
    if mask.all():
        return images, labels
    return np.asarray(kops.convert_to_numpy(images))[mask], labels[mask]


class Evaluator:
    """Evaluates a classifier batch by batch, so that several can take turns.

    Args:
        model: from images to logits.
        loss: as for `evaluate`.
        exact_capacity: compile the model with as many slots as the capacity factor says, up to the
            next whole one, in place of a multiple of the routers' `capacity_multiple_of`.
    """

    def __init__(
        self, model: keras.Model, loss: Loss = softmax_loss, exact_capacity: bool = False
    ) -> None:
        if len(getattr(model, "output_shape", None) or ()) == 3:
            model = models.averaged_prediction(model)
        self._model, self._loss, self._exact = model, loss, exact_capacity
        self._recorded, self._plain = _Recorded(model), _Plain(model)
        self._images, self._hits, self._total_loss = 0, 0, 0.0
        self._calibration = RunningCalibration()
        self._routing: dict[str, dict[str, Any]] = {}

    def add(self, batch: Batch) -> None:
        """Evaluates one more batch."""
        images, labels = real_images(batch, self._model)
        if not len(images):
            return
        outputs = self._run(self._recorded, images)
        logits = np.asarray(outputs["logits"], "float32")
        classes = labels if labels.ndim == 1 else labels.argmax(-1)
        self._hits += int(np.sum(logits.argmax(-1) == classes))
        self._total_loss += float(np.sum(kops.convert_to_numpy(self._loss(labels, logits))))
        self._calibration.add(logits, labels)
        self._images += len(logits)
        for name, numbers in outputs["routing"].items():
            sums = self._routing.setdefault(
                name, {key: float(numbers[key]) for key in _OF_FULL_GROUPS}
            )
            for key in ("rows", "choices", "dropped", "tokens", "experts"):
                if key in numbers:
                    sums[key] = sums.get(key, 0.0) + np.asarray(numbers[key], "float64")

    def seconds(self, batch: Batch) -> float:
        """How long the model takes for the logits of a batch; they count in nothing.

        The first call with images of a shape compiles the model.
        """
        images, _ = real_images(batch, self._model)
        began = time.perf_counter()
        self._run(self._plain, images)
        return time.perf_counter() - began

    def _run(self, model: keras.Model, images: Any) -> Any:
        exact = models.exact_capacity(self._model) if self._exact else contextlib.nullcontext()
        with layers.routing_metrics(False), exact:
            return model.predict_on_batch(images)

    def result(self) -> Evaluation:
        """What was found so far.

        Raises:
            ValueError: if there was no image.
        """
        require(self._images > 0, "batches must hold at least one image. Received: none")
        macs = {
            layer.name: 2 * math.prod(layer.experts.hidden_kernel.shape[1:])
            for layer in models.moe_layers(self._model)
        }
        # A router of whole images is no MoE layer: `image_routing` measures it.
        found = {
            name: self._layer(sums, macs[layer])
            for name, sums in self._routing.items()
            if (layer := name.partition(_AGAIN)[0]) in macs
        }
        n = self._images
        calibration = self._calibration.result()
        return Evaluation(n, self._hits / n, self._total_loss / n, calibration, found)

    def _layer(self, sums: dict[str, Any], row_macs: int) -> LayerRouting:
        n, choices = self._images, sums.get("choices")
        slots_per_token = sums["group_slots"] / sums["group_tokens"]
        return LayerRouting(
            dropped=None if choices is None else float(sums["dropped"] / choices),
            choices=None if choices is None else float(choices / n),
            rows=float(sums["rows"] / n),
            slots=float(slots_per_token * sums["tokens"] / n),
            group_tokens=int(sums["group_tokens"]),
            expert_shares=sums["experts"] / max(sums["experts"].sum(), 1e-30),
            row_macs=row_macs,
        )


# What the first batch tells; the groups of the others may not be full.
_OF_FULL_GROUPS = ("group_slots", "group_tokens")
# Between the name of a layer that is called several times, and the number of the call.
_AGAIN = " call "


class _Recorded(keras.Model):
    """Calls a model as in inference; gives its logits and what its MoE layers did."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name=f"{model.name}_recorded")
        self.model = model

    def call(self, images: Any) -> dict[str, Any]:
        with layers.record_routing() as calls:
            logits = self.model(images, training=False)
        routing: dict[str, dict[str, Any]] = {}
        for call in calls:
            again = sum(name.partition(_AGAIN)[0] == call.layer for name in routing)
            name = f"{call.layer}{_AGAIN}{again + 1}" if again else call.layer
            routing[name] = _numbers(call)
        return {"logits": logits, "routing": routing}


class _Plain(keras.Model):
    """Calls a model as in inference; a graph of its own, which may have another capacity."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name=f"{model.name}_plain")
        self.model = model

    def call(self, images: Any) -> Any:
        return self.model(images, training=False)


def _numbers(call: RoutingCall) -> dict[str, Any]:
    """Sums over one call of a MoE layer, as tensors."""
    plan, tokens = call.plan, _float(call.batch) * _float(call.tokens_per_image)
    soft = isinstance(plan, ops.SoftPlan)
    groups, group_tokens, experts = kops.shape(plan.dispatch if soft else plan.gates)[:3]
    slots = _float(experts) * _float(plan.dispatch.shape[-1] if soft else call.capacity)
    shares = kops.cast(ops.expert_shares(plan), "float32")
    rows = _float(groups) * slots if soft else kops.sum(kops.cast(plan.kept, "float32"))
    numbers = {
        "rows": rows,
        "tokens": tokens,
        "group_slots": slots,
        "group_tokens": _float(group_tokens),
        "experts": shares * (tokens if soft else rows),
    }
    if soft:
        return numbers
    if isinstance(plan, ops.TokenChoicePlan):
        choices = tokens * plan.expert.shape[-1]
        return {**numbers, "choices": choices, "dropped": choices - rows}
    # Tokens that fill up the last group are taken by nobody.
    padding = _float(groups * group_tokens) - tokens
    dropped = ops.dropped_share(plan) * _float(groups * group_tokens) - padding
    return {**numbers, "choices": tokens, "dropped": dropped}


def _float(value: Any) -> Any:
    return kops.cast(value, "float32")
