"""COCO's average precision of detected objects, as pycocotools computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require

#: The numbers of pycocotools' summary, in its order, that are kept.
COCO_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_RECALL = ("AR_1", "AR_10", "AR_100")


@dataclasses.dataclass(frozen=True, eq=False)
class CocoResult:
    """How well objects were found.

    Attributes:
        metrics: average precision by name: "AP", the mean over overlaps from 0.5 to 0.95, "AP50"
            and "AP75" at these, "AP_small", "AP_medium" and "AP_large" by the areas of the objects
            (below 32^2 pixels, up to 96^2, above); and average recall "AR_1", "AR_10" and "AR_100"
            with so many detections an image. Shares; NaN where there are no such objects.
        class_ap: `[classes]`, AP of each; NaN of classes without an object.
    """

    metrics: dict[str, float]
    class_ap: np.ndarray

    def words(self) -> str:
        """The main numbers in one line, see `coco_words`."""
        return coco_words(self.metrics)


def coco_words(metrics: dict[str, float]) -> str:
    """Returns the main numbers in one line.

    Args:
        metrics: average precision by name.

    Example:

    >>> coco_words({"AP": 0.4561, "AP50": 0.81, "AP75": 0.44, "AP_small": 0.1})
    'AP 45.61%  AP50 81.00%  AP75 44.00%'
    """
    return "  ".join(f"{name} {metrics[name]:.2%}" for name in COCO_METRICS[:3] if name in metrics)


class CocoMetrics:
    """Collects the objects of images and what was detected, then measures.

    Areas of objects are those of their boxes, COCO's own annotations have those of their outlines:
    AP by area differs from COCO's server, the other numbers do not. Crowds are COCO's: what lies in
    one is neither right nor wrong.

    Args:
        num_classes: of the objects.

    Raises:
        ImportError: without pycocotools.

    Example:

    >>> metrics = CocoMetrics(num_classes=2)
    >>> box = np.array([[10.0, 10.0, 50.0, 50.0]])
    >>> metrics.add_image(box, np.array([1]), box, np.array([0.9]), np.array([1]))
    >>> metrics.result().words()
    'AP 100.00%  AP50 100.00%  AP75 100.00%'

    Reference: Lin et al. 2014, arXiv 1405.0312; the metrics are those of the COCO detection
    challenge.
    """

    def __init__(self, num_classes: int) -> None:
        try:
            import pycocotools  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "pycocotools is not installed; COCO metrics need: "
                "pip install 'keras_vmoe[detection]'"
            ) from error
        self.num_classes = num_classes
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add_image(
        self,
        boxes: np.ndarray,
        classes: np.ndarray,
        found_boxes: np.ndarray,
        scores: np.ndarray,
        found_classes: np.ndarray,
        crowd: np.ndarray | None = None,
    ) -> None:
        """Adds an image.

        Args:
            boxes: `[objects, 4]`: x_min, y_min, x_max, y_max in pixels.
            classes: ints `[objects]`.
            found_boxes: `[detections, 4]`, likewise.
            scores: `[detections]`.
            found_classes: ints `[detections]`.
            crowd: bool `[objects]`, which of them are crowds; None: none.

        Raises:
            ValueError: boxes without classes, or classes that there are not.
        """
        crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
        _require_rows("classes", classes, boxes, self.num_classes)
        _require_rows("found_classes", found_classes, found_boxes, self.num_classes)
        image = len(self._images) + 1
        self._images.append({"id": image})
        for box, kind, is_crowd in zip(_corner_and_sides(boxes), classes, crowd, strict=True):
            number = len(self._objects) + 1
            own = {"id": number, "area": float(box[2] * box[3]), "iscrowd": int(is_crowd)}
            self._objects.append(own | _row(image, box, kind))
        rows = zip(_corner_and_sides(found_boxes), found_classes, scores, strict=True)
        self._found += [
            _row(image, box, kind) | {"score": float(score)} for box, kind, score in rows
        ]

    def result(self) -> CocoResult:
        """Measures.

        Raises:
            ValueError: without an image.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        require(bool(self._images), "images must be added before they are measured. Received: none")
        truth = COCO()
        truth.dataset = {
            "images": self._images,
            "annotations": self._objects,
            "categories": [{"id": kind + 1} for kind in range(self.num_classes)],
        }
        # It prints what it does.
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": _numbered(self._found)}
            found.createIndex()
            evaluation = COCOeval(truth, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = (*COCO_METRICS, *_RECALL)
        numbers = [float(x) if x >= 0 else float("nan") for x in evaluation.stats[: len(names)]]
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        per_class = np.where(precision < 0, np.nan, precision).reshape(-1, self.num_classes)
        known = ~np.isnan(per_class).all(axis=0)
        class_ap = np.full(self.num_classes, np.nan)
        class_ap[known] = np.nanmean(per_class[:, known], axis=0)
        return CocoResult(dict(zip(names, numbers, strict=True)), class_ap)


def _require_rows(name: str, classes: Sequence[int], boxes: Any, num_classes: int) -> None:
    classes = np.asarray(classes)
    require(
        len(classes) == len(boxes),
        f"{name} must be one a box, {len(boxes)}. Received: {len(classes)}",
    )
    unknown = classes[(classes < 0) | (classes >= num_classes)]
    require(
        len(unknown) == 0,
        f"{name} must be from 0 to num_classes - 1 = {num_classes - 1}; leave padding out. "
        f"Received: {unknown[:1]}",
    )


def _corner_and_sides(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _row(image: int, box: np.ndarray, kind: int) -> dict[str, Any]:
    return {"image_id": image, "bbox": box.tolist(), "category_id": int(kind) + 1}


def _numbered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(found, start=1)
    ]
