"""Object detection as a run takes it: images with boxes, a detector, COCO's average precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_vmoe import data, evaluation, models
from keras_vmoe.models.detection_pieces import boxes_of_original, class_hits
from keras_vmoe.trainers import results
from keras_vmoe.trainers.config import MESH, TrainConfig
from keras_vmoe.trainers.fresh_model import fresh_model
from keras_vmoe.trainers.workdir import Workdir

if TYPE_CHECKING:
    from keras_vmoe.trainers.tasks import Batch

OnBatch = Callable[[], None]
# Classes that the table of an evaluation names.
_WORST = 3


class Detection:
    """Images and the boxes of their objects.

    Args:
        config: the run's parameters.
        source: images with boxes.

    Raises:
        ImportError: without the libraries of detection.
        ValueError: a parameter that is of classification, or a missing `train.backbone`.
    """

    examples = "images"
    scores = evaluation.COCO_METRICS[:3]

    def __init__(self, config: TrainConfig, source: data.BoxSource) -> None:
        self._config, self._source = config, source
        self.facts = f"{source.num_classes} classes of objects"
        _check(config, source)
        self.measurements = (AveragePrecision(self, config.eval_batch_size, source),)
        self._model: models.RetinaNet | None = None

    def make_model(self) -> models.RetinaNet:
        """Returns a fresh detector for the images and classes, on a fresh backbone."""
        config, source = self._config, self._source
        backbone = config.backbone(
            image_size=config.image_size,
            channels=config.image_channels(source),
            num_classes=None,
        )
        pyramid = models.feature_pyramid(backbone, config.image_size, level_norms=True)
        self._model = fresh_model(
            config.model,
            models.RetinaNet,
            f"{source.name!r} holds images with boxes",
            "@RetinaNet",
            backbone=pyramid,
            num_classes=source.num_classes,
            class_names=source.class_names,
        )
        return self._model

    def training_batches(
        self, start_step: int = 0, shards: int = 1, shard: int = 0
    ) -> tf.data.Dataset:
        """Returns endless batches of `{"image", "boxes", "classes"}`."""
        config = self._config
        return data.make_boxes(
            self._source.train,
            batch_size=config.batch_size,
            training=True,
            seed=config.seed,
            start_step=start_step,
            jitter=config.crop,
            max_boxes=self._source.max_boxes,
            **self._reading(shards, shard),
        )

    def held_out_batches(self, batch_size: int, shards: int = 1, shard: int = 0) -> tf.data.Dataset:
        """Returns batches of the held-out images, as `make_boxes` makes them."""
        reading = self._reading(shards, shard)
        return held_out_batches(self._source, batch_size, **reading)

    def _reading(self, shards: int, shard: int) -> dict[str, Any]:
        config = self._config
        return {
            "image_size": config.image_size,
            "channels": config.image_channels(self._source),
            "num_shards": shards,
            "shard_index": shard,
            "cache": config.cache,
        }

    def inputs(self, batch: Batch) -> tf.Tensor:
        """Returns the images."""
        return batch["image"]

    def judge(self, batch: Batch, outputs: Any, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of each image, and of its anchors that belong to an object the share
        that find its class."""
        classes = batch["classes"]
        if "crowd" in batch:  # in which anchors are background, as in training
            classes = tf.where(batch["crowd"], data.NO_CLASS, classes)
        targets = self._model.targets(batch["boxes"], classes)
        losses = self._model.image_losses(outputs, targets)
        return losses, class_hits(targets, outputs["classes"])

    def save(self, model: models.RetinaNet, workdir: Workdir) -> None:
        """Writes `model.keras`: the detector with the names of its classes."""
        results.save_model(model, workdir)


def _check(config: TrainConfig, source: data.BoxSource) -> None:
    defaults = {"mix": None, "repeats": 1, "label_smoothing": 0.0, "upcycle": False}
    defaults |= {"loss": "softmax", "augment": None, "eval_crop": None, "retokenization": ()}
    for name, default in defaults.items():
        value = getattr(config, name)
        if value != default:
            raise ValueError(
                f"train.{name}={value!r} is of classification, but {source.name!r} holds images "
                "with boxes: leave it out; train.crop = @ScaleJitter() changes images and boxes"
            )
    if config.backbone is None:
        raise ValueError(
            f"train.backbone is not bound, but {source.name!r} holds images with boxes: a detector "
            "needs one, such as train.backbone = @AsViT"
        )
    if config.distribution == MESH:
        raise ValueError(
            f"train.mesh={config.mesh!r}: object detection does not train on a mesh; leave --mesh "
            "out"
        )


def held_out_batches(
    source: data.BoxSource,
    batch_size: int,
    image_size: int,
    channels: int,
    num_shards: int = 1,
    shard_index: int = 0,
    cache: bool = False,
) -> tf.data.Dataset:
    """Returns batches of the held-out images as detectors are evaluated on them.

    Args:
        source: images with boxes.
        batch_size: of a batch; the last is padded.
        image_size: side of the images, as the model sees them.
        channels: of the images, likewise.
        num_shards, shard_index, cache: as of `data.make_boxes`.
    """
    return data.make_boxes(
        source.eval,
        batch_size,
        image_size,
        channels=channels,
        max_boxes=source.max_boxes,
        pad=True,
        num_shards=num_shards,
        shard_index=shard_index,
        cache=cache,
    )


class Found(NamedTuple):
    """What a held-out image holds and what was found in it, boxes in pixels of the original.

    Attributes:
        image: `[s, s, channels]` in [-1, 1], as the model sees it.
        scale: `[4]`, pixels of `image` for one of the original: across, down, and again.
        boxes: `[objects, 4]`, x_min, y_min, x_max, y_max.
        classes: `[objects]`.
        crowd: `[objects]`.
        found_boxes: `[detections, 4]`, within the image.
        scores: `[detections]`, falling.
        found_classes: `[detections]`.
    """

    image: np.ndarray
    scale: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    found_boxes: np.ndarray
    scores: np.ndarray
    found_classes: np.ndarray


def find_objects(
    model: models.RetinaNet, batches: tf.data.Dataset, on_batch: OnBatch = lambda: None
) -> Iterator[Found]:
    """Yields what a detector finds in each image.

    Args:
        model: a detector.
        batches: of `Detection.held_out_batches`.
        on_batch: called after each batch.
    """

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> models.Detections:
        return model.decode(model(images, training=False))

    for batch in batches:
        found = [value.numpy() for value in step(batch["image"])]
        arrays = {name: value.numpy() for name, value in batch.items()}
        for place in np.flatnonzero(arrays["mask"]):
            yield _of_one({n: x[place] for n, x in arrays.items()}, *(x[place] for x in found))
        on_batch()


def _of_one(
    truth: dict[str, np.ndarray],
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    count: int,
) -> Found:
    real, scale = truth["classes"] >= 0, truth["scale"][[1, 0, 1, 0]]
    found, inside = boxes_of_original(boxes[:count], truth["scale"], truth["original"])
    return Found(
        truth["image"],
        scale,
        truth["boxes"][real] / scale,
        truth["classes"][real],
        truth["crowd"][real],
        found[inside],
        scores[:count][inside],
        classes[:count][inside],
    )


def coco_result(
    model: models.RetinaNet,
    batches: tf.data.Dataset,
    on_batch: OnBatch = lambda: None,
) -> evaluation.CocoResult:
    """Returns COCO's metrics of a detector.

    Args:
        model: a detector.
        batches: of `Detection.held_out_batches`.
        on_batch: called after each batch.
    """
    metrics = evaluation.CocoMetrics(model.num_classes)
    for one in find_objects(model, batches, on_batch):
        metrics.add_image(
            one.boxes, one.classes, one.found_boxes, one.scores, one.found_classes, one.crowd
        )
    return metrics.result()


def table(result: evaluation.CocoResult, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns a table of the other numbers: by size of the objects, and the classes found worst.

    Args:
        result: of `coco_result`.
        class_names: of the data.
    """
    rows = [("objects", "AP")]
    for name in evaluation.COCO_METRICS[3:]:
        if not math.isnan(result.metrics[name]):
            rows.append((name.removeprefix("AP_"), f"{result.metrics[name]:.1%}"))
    known = np.flatnonzero(~np.isnan(result.class_ap))
    for kind in known[np.argsort(result.class_ap[known], kind="stable")][:_WORST]:
        rows.append((f"class {class_names[kind]}", f"{result.class_ap[kind]:.1%}"))
    return rows


def require_same_classes(model: models.RetinaNet, source: data.BoxSource) -> None:
    """Raises a `ValueError` unless a detector tells the classes of these images apart."""
    names = model.class_names or source.class_names
    if model.num_classes != source.num_classes or tuple(names) != tuple(source.class_names):
        raise ValueError(
            f"the detector finds {model.num_classes} classes of objects, "
            f"{', '.join(names[:3])}, …, but {source.name} has {source.num_classes}, "
            f"{', '.join(source.class_names[:3])}, …; give the images that it was trained for"
        )


class AveragePrecision:
    """Measures COCO's average precision on the held-out images, at every evaluation of a run.

    Args:
        task: of the run.
        batch_size: images of one step.
        source: the run's data.
    """

    parameter, command, label = "train.dataset", "evaluate", "objects"

    def __init__(self, task: Detection, batch_size: int, source: data.BoxSource) -> None:
        count = source.eval.num_examples
        self._task, self._size = task, min(batch_size, count)
        self._count = count

    @property
    def passes(self) -> int:
        """The number of batches of one measurement."""
        return math.ceil(self._count / self._size)

    def is_due(self, step: int) -> bool:
        """Always."""
        return True

    def prepare(self, own: data.BoxSource | None = None) -> list[str]:
        """Looks for pycocotools, so that an error comes before training; returns nothing to tell.

        Args:
            own: the data of the run.

        Raises:
            ImportError: without pycocotools.
        """
        evaluation.CocoMetrics(num_classes=1)
        return []

    def measure(
        self,
        model: models.RetinaNet,
        own: data.BoxSource | None = None,
        on_batch: OnBatch = lambda: None,
    ) -> dict[str, float]:
        """COCO's metrics of a model as it is now; those of sizes that no object has are left out.

        Args:
            model: of the run.
            own: the data of the run.
            on_batch: called after each batch of images; what it raises ends the measurement.
        """
        found = coco_result(model, self._task.held_out_batches(self._size), on_batch).metrics
        return {n: found[n] for n in evaluation.COCO_METRICS if not math.isnan(found[n])}
