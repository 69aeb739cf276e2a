"""What object detection takes from KerasCV, behind one door: anchors, targets, losses, suppression.

The pieces are `AnchorGenerator`, `retinanet.LabelEncoder`, `FocalLoss`, `SmoothL1Loss` and
`MultiClassNonMaxSuppression` of KerasCV 0.9.0, which work on Keras 3 with TensorFlow. Its
`RetinaNet` itself is not used: it has a `compile` and a `train_step` of its own, and it gives a
batch without any object no loss, so that nothing is learned of backgrounds. Nor are its feature
pyramid (levels 3 to 7 of 256 channels, always) and its heads (256 channels); KerasHub has more
general ones, but as private names. Those are built in `models.retinanet`. From targets back to
boxes Keras itself leads, `keras.utils.bounding_boxes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops as kops

from keras_vmoe.ops.validation import is_number, require

#: What box targets are divided by: offsets of the centre, logarithms of height and width.
VARIANCE = (0.1, 0.1, 0.2, 0.2)
BACKGROUND, IGNORED = -1, -2
# Anchors that go into non-maximum suppression, of each image the best.
_MOST_CANDIDATES = 5000
_FORMAT = "xyxy"


class Targets(NamedTuple):
    """What a detector should say of each anchor.

    Attributes:
        boxes: float32 `[b, anchors, 4]`, where the matched object lies from the anchor.
        classes: int32 `[b, anchors]`; -1 of background, -2 of anchors that count neither way.
    """

    boxes: Any
    classes: Any


class Detections(NamedTuple):
    """The objects found in images, the surest first.

    Attributes:
        boxes: float32 `[b, max_detections, 4]`: x_min, y_min, x_max, y_max in pixels.
        scores: float32 `[b, max_detections]`, probabilities; -1 in places without an object.
        classes: int32 `[b, max_detections]`; -1 there.
        count: int32 `[b]`, the objects of each image.
    """

    boxes: Any
    scores: Any
    classes: Any
    count: Any


def keras_cv() -> ModuleType:
    """Returns KerasCV.

    Raises:
        ImportError: if it is not installed; names the extra.
    """
    try:
        import keras_cv
    except ImportError as error:
        raise ImportError(
            "KerasCV is not installed; object detection needs: pip install 'keras_vmoe[detection]'"
        ) from error
    return keras_cv


class Anchors:
    """The anchors of images of one size, and boxes as seen from them.

    Args:
        image_size: height and width in pixels.
        levels: of the feature pyramid; level l has a stride of 2^l pixels.
        size: side of the smallest anchor of a level, in strides.
        scales: sides of the anchors of a place, as factors of `size`.
        ratios: widths over heights.
        positive_iou: overlap from which an anchor belongs to an object.
        negative_iou: overlap below which an anchor is background.

    Attributes:
        boxes: float32 `[anchors, 4]`, x_min, y_min, x_max, y_max in pixels; level after level, in
            each row after row, and at each place scale after scale.
        per_place: anchors of one place.

    Raises:
        ImportError: without KerasCV.
        ValueError: sizes or overlaps that are none.

    Example:

    >>> anchors = Anchors((64, 64), levels=(3, 4), size=2.0, scales=(1.0,), ratios=(1.0,))
    >>> anchors.boxes.shape, anchors.boxes[0].tolist()
    ((80, 4), [-4.0, -4.0, 12.0, 12.0])
    >>> boxes, classes = np.array([[[-4.0, -4.0, 12.0, 12.0]]]), np.array([[7]])
    >>> [int(one) for one in anchors.targets(boxes, classes).classes[0, :2]]
    [7, -1]

    Reference: Lin et al. 2017, arXiv 1708.02002, section 4.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        levels: tuple[int, ...],
        size: float,
        scales: tuple[float, ...],
        ratios: tuple[float, ...],
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
    ) -> None:
        for name, values in (("size", (size,)), ("scales", scales), ("ratios", ratios)):
            require(
                len(values) > 0 and all(is_number(value) and value > 0 for value in values),
                f"{name} must be positive. Received: {name}={values!r}",
            )
        require(
            is_number(negative_iou)
            and is_number(positive_iou)
            and 0 < negative_iou <= positive_iou <= 1,
            "negative_iou and positive_iou must be overlaps, 0 < negative_iou <= positive_iou <= 1."
            f" Received: negative_iou={negative_iou!r}, positive_iou={positive_iou!r}",
        )
        library = keras_cv()
        generator = library.layers.AnchorGenerator(
            bounding_box_format=_FORMAT,
            sizes={level: size * 2.0**level for level in levels},
            strides={level: 2**level for level in levels},
            scales=list(scales),
            aspect_ratios=list(ratios),
            dtype="float32",
        )
        self._shape = (*image_size, 3)
        self._encoder = library.models.retinanet.LabelEncoder(
            bounding_box_format=_FORMAT,
            anchor_generator=generator,
            positive_threshold=positive_iou,
            negative_threshold=negative_iou,
            box_variance=VARIANCE,
            dtype="float32",
        )
        of_levels = generator(image_shape=self._shape).values()
        self.boxes = np.concatenate([kops.convert_to_numpy(one) for one in of_levels])
        self.per_place = len(scales) * len(ratios)

    def targets(self, boxes: Any, classes: Any) -> Targets:
        """Returns what a detector should say; TensorFlow alone.

        One image after the other: the overlaps of all anchors and objects of an image are held in
        memory several times over.

        Args:
            boxes: `[b, objects, 4]`, x_min, y_min, x_max, y_max in pixels.
            classes: ints `[b, objects]`; negative in places without an object. An image may have
                none.
        """
        boxes = kops.cast(boxes, "float32")
        classes = kops.cast(classes, "float32")
        boxes = kops.where(classes[..., None] >= 0, boxes, -1.0)
        # The encoder cannot do with no place at all; one without an object changes nothing.
        boxes = kops.pad(boxes, [[0, 0], [0, 1], [0, 0]], constant_values=-1.0)
        classes = kops.pad(classes, [[0, 0], [0, 1]], constant_values=float(BACKGROUND))
        import tensorflow as tf

        anchors = len(self.boxes)
        one = tf.TensorSpec((anchors, 4)), tf.TensorSpec((anchors,))
        found = tf.map_fn(
            self._encode, (boxes, classes), parallel_iterations=1, fn_output_signature=one
        )
        return Targets(found[0], kops.cast(found[1], "int32"))

    def _encode(self, objects: tuple[Any, Any]) -> tuple[Any, Any]:
        """Offsets and classes of the anchors of one image, float32."""
        boxes, classes = (kops.expand_dims(values, 0) for values in objects)
        image = np.zeros((1, *self._shape), "float32")  # of which the encoder takes the shape
        deltas, found = self._encoder(image, {"boxes": boxes, "classes": classes})
        return deltas[0], kops.reshape(found, (-1,))

    def decode(self, deltas: Any) -> Any:
        """Returns boxes `[b, anchors, 4]` in pixels, within the image.

        Args:
            deltas: `[b, anchors, 4]`, as `targets` has them.
        """
        boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
            self.boxes,
            # e^4 anchors is as large as any box gets: what a fresh model says may overflow.
            kops.clip(kops.cast(deltas, "float32"), -1000.0, 4.0 / VARIANCE[2]),
            anchor_format=_FORMAT,
            box_format=_FORMAT,
            encoded_format="center_yxhw",
            variance=VARIANCE,
        )
        height, width, _ = self._shape
        return kops.clip(boxes, 0.0, np.array([width, height, width, height], "float32"))


def detection_loss(
    targets: Targets,
    boxes: Any,
    classes: Any,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_weight: float = 1.0,
) -> Any:
    """RetinaNet's loss: focal loss of the classes and smooth L1 loss of the boxes.

    Both are summed over the anchors of an image and divided by the number of those that belong to
    an object (by 1 where there is none). The box loss counts those alone, the focal loss all but
    those that are ignored.

    Args:
        targets: what should be said of the anchors.
        boxes: `[b, anchors, 4]`, as `targets.boxes`.
        classes: `[b, anchors, c]`, logits.
        alpha: weight of the class that is there; the others have 1 - alpha.
        gamma: how much sure answers are played down.
        box_weight: of the box loss, which is the mean over the four numbers.

    Returns:
        float32 `[b]`.

    Example:

    >>> targets = Targets(np.zeros((1, 2, 4), "float32"), np.array([[1, -1]]))
    >>> logits = np.array([[[-20.0, 20.0], [-20.0, -20.0]]], "float32")
    >>> boxes = np.ones((1, 2, 4), "float32")
    >>> [round(float(x), 3) for x in detection_loss(targets, boxes, logits)]
    [0.5]

    Reference: Lin et al. 2017, arXiv 1708.02002, equation (5) and section 4.1.
    """
    library = keras_cv()
    focal = library.losses.FocalLoss(alpha, gamma, from_logits=True, reduction="none")
    smooth = library.losses.SmoothL1Loss(l1_cutoff=1.0, reduction="none")
    matched = kops.cast(targets.classes >= 0, "float32")
    counted = kops.cast(targets.classes != IGNORED, "float32")
    wanted = kops.one_hot(targets.classes, classes.shape[-1], dtype="float32")
    class_losses = focal(wanted, kops.cast(classes, "float32")) * counted
    box_losses = smooth(targets.boxes, kops.cast(boxes, "float32")) * matched
    total = kops.sum(class_losses + box_weight * box_losses, axis=-1)
    return total / kops.maximum(kops.sum(matched, axis=-1), 1.0)


def class_hits(targets: Targets, classes: Any) -> Any:
    """Of the anchors that belong to an object, the share that find its class; `[b]`.

    An image without one counts as found.

    Args:
        targets: what should be said of the anchors.
        classes: `[b, anchors, c]`, logits.
    """
    matched = kops.cast(targets.classes >= 0, "float32")
    found = kops.cast(kops.argmax(classes, axis=-1), "int32") == targets.classes
    count = kops.sum(matched, axis=-1)
    hits = kops.sum(matched * kops.cast(found, "float32"), axis=-1)
    return kops.where(count > 0, hits / kops.maximum(count, 1.0), 1.0)


def suppress(
    boxes: Any, classes: Any, score_threshold: float, iou: float, max_detections: int
) -> Detections:
    """Keeps of overlapping boxes of one class the surest.

    Args:
        boxes: `[b, anchors, 4]`, x_min, y_min, x_max, y_max in pixels.
        classes: `[b, anchors, c]`, logits.
        score_threshold: probability below which nothing is said.
        iou: overlap above which two boxes are of one object.
        max_detections: places for the objects of an image.
    """
    classes = kops.cast(classes, "float32")
    if boxes.shape[1] > _MOST_CANDIDATES:
        _, places = kops.top_k(kops.max(classes, axis=-1), _MOST_CANDIDATES)
        boxes = kops.take_along_axis(boxes, places[..., None], axis=1)
        classes = kops.take_along_axis(classes, places[..., None], axis=1)
    suppression = keras_cv().layers.MultiClassNonMaxSuppression(
        bounding_box_format=_FORMAT,
        from_logits=True,
        iou_threshold=iou,
        confidence_threshold=score_threshold,
        max_detections=max_detections,
        max_detections_per_class=max_detections,
        dtype="float32",
    )
    found = suppression(boxes, classes)
    return Detections(
        found["boxes"],
        found["confidence"],
        kops.cast(found["classes"], "int32"),
        kops.cast(found["num_detections"], "int32"),
    )


def boxes_of_original(
    boxes: np.ndarray, scale: np.ndarray, size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes found in a square, in pixels of the image that was fitted into its upper left corner.

    What reaches into the filling beside the image is cut off.

    Args:
        boxes: `[detections, 4]`, x_min, y_min, x_max, y_max in pixels of the square.
        scale: `[2]`, pixels of the square for one of the image, down and across.
        size: height and width of the image.

    Returns:
        The boxes `[detections, 4]`, and which of them have something of the image in them.

    Example:

    >>> boxes = np.array([[10.0, 0.0, 30.0, 40.0], [0.0, 22.0, 8.0, 30.0]])
    >>> found, inside = boxes_of_original(boxes, scale=np.array([2.0, 2.0]), size=(10, 20))
    >>> found[0].tolist(), inside.tolist()
    ([5.0, 0.0, 15.0, 10.0], [True, False])
    """
    height, width = size
    boxes = np.clip(boxes / np.tile(scale[::-1], 2), 0.0, [width, height, width, height])
    return boxes, (boxes[:, :2] < boxes[:, 2:]).all(-1)
