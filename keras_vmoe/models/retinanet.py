"""RetinaNet: an object detector on the feature pyramid of a hierarchical backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops as kops

from keras_vmoe.models.base import FunctionalModel, argument_names, resolve_policy
from keras_vmoe.models.detection_graph import head, on_all_levels, pyramid
from keras_vmoe.models.detection_pieces import (
    Anchors,
    Detections,
    Targets,
    boxes_of_original,
    detection_loss,
    suppress,
)
from keras_vmoe.ops.validation import (
    concrete,
    is_number,
    require,
    require_not_negative,
    require_positive,
    require_positive_int,
)

_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


@keras.saving.register_keras_serializable(package="keras_vmoe")
class RetinaNet(FunctionalModel):
    """Finds objects in images: a feature pyramid network and two heads on a backbone.

    The graph of the backbone goes on in this model's: its sparse layers are found by
    `models.moe_layers`, and their auxiliary losses are among `losses`. Anchors, targets, losses and
    suppression are KerasCV's (`models.detection_pieces` says which, and what is not); box
    arithmetic is in float32 whatever the dtype policy.

    Args:
        backbone: from square images to `{"P3": [b, size / 8, size / 8, c], ...}`, such as
            `models.feature_pyramid(models.AsViT(...))`; level l has a stride of 2^l pixels.
        num_classes: of the objects; there is no class of the background.
        min_level: the first level on which objects are found; the backbone has it.
        max_level: the last one; those above the backbone's are made by convolutions of stride 2.
        width: channels of pyramid and heads.
        head_depth: 3x3 convolutions of a head before its last one.
        anchor_size: side of the smallest anchor of a level, in strides of the level.
        anchor_scales: sides of the anchors of a place, as factors of it.
        anchor_ratios: widths of anchors over their heights.
        positive_iou: overlap from which an anchor belongs to an object.
        negative_iou: overlap below which an anchor is background.
        focal_alpha: weight of the class that is there, in the focal loss.
        focal_gamma: how much the focal loss plays sure answers down.
        box_weight: of the box loss beside the focal loss.
        prior_probability: of any class, that a fresh model says everywhere.
        score_threshold: probability below which `decode` says nothing.
        nms_iou: overlap above which two boxes of a class are one object.
        max_detections: places for the objects of an image.
        class_names: a name per class; or none.
        name, dtype: as of any Keras model; the dtype policy of pyramid and heads.

    Call arguments:
        inputs: images as the backbone takes them.

    Returns:
        `{"boxes": [b, anchors, 4], "classes": [b, anchors, num_classes]}`, float32: offsets from
        the anchors and logits, as `image_losses` and `decode` take them.

    Raises:
        ImportError: without KerasCV, which `pip install 'keras_vmoe[detection]'` brings.
        ValueError: a backbone without the levels, or whose images do not divide by their strides;
            a value out of range.

    Example:

    >>> import keras, numpy as np
    >>> from keras_vmoe import models
    >>> images = keras.Input((64, 64, 3))
    >>> p3 = keras.layers.Conv2D(8, 8, strides=8)(images)
    >>> p4 = keras.layers.Conv2D(8, 2, strides=2)(p3)
    >>> backbone = keras.Model(images, {"P3": p3, "P4": p4})
    >>> detector = models.RetinaNet(backbone, num_classes=5, max_level=5, width=8, head_depth=1)
    >>> outputs = detector(np.zeros((2, 64, 64, 3)))
    >>> outputs["boxes"].shape, outputs["classes"].shape
    (TensorShape([2, 756, 4]), TensorShape([2, 756, 5]))
    >>> boxes, classes = np.array([[[8, 8, 40, 40]], [[0, 0, 0, 0]]]), np.array([[3], [-1]])
    >>> detector.image_losses(outputs, detector.targets(boxes, classes)).shape
    TensorShape([2])
    >>> detector.decode(outputs).boxes.shape
    TensorShape([2, 100, 4])

    Reference: Lin et al. 2017, arXiv 1708.02002 (focal loss, RetinaNet); Lin et al. 2016, arXiv
    1612.03144 (feature pyramid networks).
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        min_level: int = 3,
        max_level: int = 7,
        width: int = 256,
        head_depth: int = 4,
        anchor_size: float = 4.0,
        anchor_scales: Sequence[float] = _OCTAVES,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_weight: float = 1.0,
        prior_probability: float = 0.01,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 100,
        class_names: Sequence[str] = (),
        name: str = "retinanet",
        dtype: Any = None,
    ) -> None:
        arguments = {n: x for n, x in locals().items() if n in argument_names(RetinaNet)}
        _check(arguments)
        levels = tuple(range(min_level, max_level + 1))
        size = _image_size(backbone, levels)
        anchors = Anchors(
            size,
            levels,
            anchor_size,
            tuple(anchor_scales),
            tuple(anchor_ratios),
            positive_iou,
            negative_iou,
        )
        policy = resolve_policy(dtype)
        features = pyramid(_features(backbone), levels, width, policy)
        bias = -math.log((1 - prior_probability) / prior_probability)
        outputs = {}
        for kind, values, start in (("boxes", 4, 0.0), ("classes", num_classes, bias)):
            convolutions = head(kind, width, head_depth, anchors.per_place * values, start, policy)
            outputs[kind] = on_all_levels(kind, features, convolutions, values)
        super().__init__(inputs=backbone.inputs[0], outputs=outputs, name=name)
        self.anchors = anchors
        # Past Keras' tracking: its layers are in this graph, but for levels that nothing looks at,
        # whose weights would get no gradient.
        object.__setattr__(self, "backbone", backbone)
        self.class_names = tuple(str(one) for one in class_names)
        self.arguments = {
            n: x for n, x in arguments.items() if n not in ("backbone", "name", "dtype")
        }
        self._policy = policy
        self.input_range = getattr(backbone, "input_range", None)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.arguments["num_classes"]

    def targets(self, boxes: Any, classes: Any) -> Targets:
        """What the model should say of images with these objects.

        Args:
            boxes: `[b, objects, 4]`, x_min, y_min, x_max, y_max in pixels.
            classes: ints `[b, objects]`; negative in places without an object.

        Raises:
            ValueError: of concrete arrays: a class that the model does not have, or a box that is
                empty or lies outside the images.
        """
        self._require_objects(boxes, classes)
        return self.anchors.targets(boxes, classes)

    def image_losses(self, outputs: Mapping[str, Any], targets: Targets) -> Any:
        """The loss of each image, `[b]`, without the auxiliary losses of sparse layers.

        Args:
            outputs: of the model.
            targets: of the images.
        """
        given = self.arguments
        return detection_loss(
            targets,
            outputs["boxes"],
            outputs["classes"],
            given["focal_alpha"],
            given["focal_gamma"],
            given["box_weight"],
        )

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Called by `fit`, after `compile(optimizer)`, with `y={"boxes": ..., "classes": ...}` as
        `targets` takes them: the mean over the images, and the auxiliary losses of the layers."""
        losses = self.image_losses(y_pred, self.targets(y["boxes"], y["classes"]))
        if sample_weight is not None:
            losses = losses * kops.cast(sample_weight, losses.dtype)
        return kops.mean(losses) + sum(kops.cast(one, losses.dtype) for one in self.losses)

    def decode(self, outputs: Mapping[str, Any]) -> Detections:
        """The objects that the model finds, by non-maximum suppression; TensorFlow alone.

        Args:
            outputs: of the model.
        """
        boxes, given = self.anchors.decode(outputs["boxes"]), self.arguments
        return suppress(
            boxes,
            outputs["classes"],
            given["score_threshold"],
            given["nms_iou"],
            given["max_detections"],
        )

    def detect(self, image: Any) -> list[tuple[str | int, float, tuple[float, ...]]]:
        """The objects of a raw image, the surest first.

        Args:
            image: `[any height, any width, channels]`, 0 to 255.

        Returns:
            For each object its class (the name, where the model has names), its probability, and
            its box in pixels of the image and within it: x_min, y_min, x_max, y_max.

        Raises:
            ValueError: another rank, other channels, or no pixels.
        """
        image = np.asarray(image)
        _, height, width, channels = self.input_shape
        require(
            image.ndim == 3 and image.shape[-1] == channels and image.size,
            f"image must have shape [height, width, {channels}], with pixels. "
            f"Received: image of shape {image.shape}",
        )
        scale = min(height / image.shape[0], width / image.shape[1])
        sides = [max(round(length * scale), 1) for length in image.shape[:2]]
        resized = kops.image.resize(image.astype("float32"), sides, antialias=True)
        low, high = self.input_range or (-1.0, 1.0)
        missing = [[0, height - sides[0]], [0, width - sides[1]], [0, 0]]
        square = kops.pad(resized * ((high - low) / 255.0) + low, missing)
        found = self.decode(self(square[None], training=False))
        boxes, scores, classes = (
            kops.convert_to_numpy(x)[0, : int(found.count[0])] for x in found[:3]
        )
        boxes, inside = boxes_of_original(boxes, np.divide(sides, image.shape[:2]), image.shape[:2])
        names = self.class_names or range(self.num_classes)
        return [
            (names[kind], float(score), tuple(float(x) for x in box))
            for kind, score, box in zip(classes[inside], scores[inside], boxes[inside], strict=True)
        ]

    def _require_objects(self, boxes: Any, classes: Any) -> None:
        known = [concrete(x) for x in (boxes, classes)]
        if any(x is None for x in known):  # within a graph
            return
        boxes, classes = known
        real = classes >= 0
        unknown = classes[real & (classes >= self.num_classes)]
        require(
            len(unknown) == 0,
            f"classes must be below num_classes={self.num_classes}; give RetinaNet the number of "
            f"classes of the data. Received: class {unknown[:1]}",
        )
        _, height, width, _ = self.input_shape
        ordered = (boxes[..., :2] < boxes[..., 2:]).all(-1) & (boxes[..., :2] >= 0).all(-1)
        inside = ordered & (boxes[..., 2] <= width) & (boxes[..., 3] <= height)
        wrong = boxes[real & ~inside]
        require(
            len(wrong) == 0,
            "boxes must be x_min, y_min, x_max, y_max in pixels, within images of "
            f"{width}x{height}; clip them, leave empty ones out. Received: {wrong[:1].tolist()}",
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **self.arguments,
            "backbone": _unbuilt(keras.saving.serialize_keras_object(self.backbone)),
            "dtype": keras.saving.serialize_keras_object(self._policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RetinaNet:
        read = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("backbone", "dtype")
        }
        return cls(**{**config, **read})


def _unbuilt(config: Any) -> Any:
    """A config of layers that are built by being called, not each by itself when it is read.

    Only so do the weights of layers within layers get the names that they have in a fresh model,
    by which `checkpoints.transfer` finds them.
    """
    if isinstance(config, Mapping):
        return {n: _unbuilt(x) for n, x in config.items() if n != "build_config"}
    return [_unbuilt(x) for x in config] if isinstance(config, list) else config


def _check(arguments: Mapping[str, Any]) -> None:
    positive = ("num_classes", "min_level", "max_level", "width", "max_detections")
    for name in positive:
        require_positive_int(name, arguments[name])
    depth, names = arguments["head_depth"], arguments["class_names"]
    require(
        isinstance(depth, int) and depth >= 0,
        f"head_depth must be an integer of at least 0. Received: head_depth={depth!r}",
    )
    for name in ("prior_probability", "score_threshold", "nms_iou", "focal_alpha"):
        value = arguments[name]
        ok = is_number(value) and 0 < value < 1
        require(ok, f"{name} must be between 0 and 1. Received: {name}={value!r}")
    require_positive("anchor_size", arguments["anchor_size"])
    for name in ("anchor_scales", "anchor_ratios"):
        values = arguments[name]
        ok = isinstance(values, Sequence) and len(values) > 0
        require(
            ok and all(is_number(value) and value > 0 for value in values),
            f"{name} must be a sequence of numbers above 0. Received: {name}={values!r}",
        )
    for name in ("focal_gamma", "box_weight"):
        require_not_negative(name, arguments[name])
    require(
        not isinstance(names, str),
        f"class_names must be a sequence of names, not one text. Received: class_names={names!r}",
    )
    require(
        len(names) in (0, arguments["num_classes"]),
        f"class_names must hold one name per class, {arguments['num_classes']}. "
        f"Received: {len(names)} names",
    )


def _features(backbone: keras.Model) -> Mapping[str, Any]:
    """The maps of a backbone by the names of their levels."""
    maps = getattr(backbone, "output", None)
    require(
        isinstance(maps, Mapping) and all(name.startswith("P") for name in maps),
        'backbone must give its maps by their levels, {"P3": ..., "P4": ...}, as '
        "models.feature_pyramid does. Received: outputs "
        f"{list(maps) if isinstance(maps, Mapping) else type(maps).__name__}",
    )
    return maps


def _image_size(backbone: keras.Model, levels: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a backbone's images, whose maps are what their levels say."""
    maps = _features(backbone)
    present = [level for level in levels if f"P{level}" in maps]
    known = ", ".join(maps)
    require(
        bool(present) and present == list(levels[: len(present)]),
        f"min_level and max_level must begin with levels of the backbone, which has {known}, and "
        f"min_level be at most max_level. Received: levels {list(levels)}",
    )
    _, height, width, _ = backbone.input_shape
    stride = 2 ** present[-1]
    require(
        None not in (height, width) and height % stride == width % stride == 0,
        f"backbone must take images of a known size that divides by {stride}, the stride of its "
        f"coarsest level. Received: images of {height}x{width}; take "
        f"{stride * round((height or stride) / stride) or stride}",
    )
    for level in present:
        wanted, found = (height >> level, width >> level), tuple(maps[f"P{level}"].shape[1:3])
        require(
            wanted == found,
            f"backbone must give maps of stride 2^level: P{level} of {wanted}. Received: {found}",
        )
    return height, width
