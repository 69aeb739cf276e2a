"""RetinaNet on a small pyramid: shapes, targets, losses, objects found, saving, what is refused."""

import itertools
import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import layers, models
from keras_vmoe.models import detection_pieces as pieces

SIZE = 64
ASVIT = {"genotype": "4,2,2|2,1,2|2,1,2|2,1,2|16,8", "image_size": SIZE, "channels": 1}


def convolutional(size=SIZE):
    images = keras.Input((size, size, 1))
    p3 = keras.layers.Conv2D(4, 8, strides=8)(images)
    p4 = keras.layers.Conv2D(6, 2, strides=2)(p3)
    return keras.Model(images, {"P3": p3, "P4": p4})


def detector(backbone=None, **options):
    small = {"width": 8, "head_depth": 1, "max_level": 5, "anchor_scales": (1.0,)}
    return models.RetinaNet(backbone or convolutional(), **{"num_classes": 3, **small, **options})


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return detector(class_names=("cat", "dog", "cow"))


def images(count=2, size=SIZE):
    return np.random.default_rng(0).normal(size=(count, size, size, 1)).astype("float32")


def oracle_anchors(levels, size, scales, ratios):
    found = []
    for level in levels:
        stride = 2**level
        places = [(i + 0.5) * stride for i in range(math.ceil(SIZE / stride))]
        for y, x in itertools.product(places, places):
            for scale, ratio in itertools.product(scales, ratios):
                side = size * stride * scale
                height, width = side / math.sqrt(ratio), side * math.sqrt(ratio)
                found.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(found)


def overlap(a, b):
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(across, 0) * max(down, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return inner / (sum(areas) - inner)


def oracle_targets(anchors, boxes, classes):
    """Loops over anchors: the class (-1 background, -2 ignored) and the offsets of each."""
    labels, offsets = [], []
    for anchor in anchors:
        overlaps = [overlap(anchor, box) for box in boxes]
        best = int(np.argmax(overlaps)) if boxes else None
        if best is None or overlaps[best] < 0.4:
            labels.append(-1)
        else:
            labels.append(classes[best] if overlaps[best] >= 0.5 else -2)
        if labels[-1] < 0:
            offsets.append([0.0] * 4)
            continue
        box = boxes[best]
        width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
        centre = [(box[i] + box[i + 2] - anchor[i] - anchor[i + 2]) / 2 for i in (1, 0)]
        offsets.append(
            [
                centre[0] / height / 0.1,
                centre[1] / width / 0.1,
                math.log((box[3] - box[1]) / height) / 0.2,
                math.log((box[2] - box[0]) / width) / 0.2,
            ]
        )
    return np.array(labels), np.array(offsets)


ANCHORS = {"levels": (3, 4, 5), "size": 2.0, "scales": (1.0, 1.5), "ratios": (0.5, 1.0)}
BOXES = [[[4, 4, 22, 20], [30, 8, 60, 62]], []]
CLASSES = [[2, 0], []]


def padded(places=3):
    boxes, classes = np.zeros((2, places, 4), "float32"), np.full((2, places), -1)
    for image, (own, kinds) in enumerate(zip(BOXES, CLASSES, strict=True)):
        boxes[image, : len(own)], classes[image, : len(own)] = np.reshape(own, (-1, 4)), kinds
    return boxes, classes


@pytest.fixture(scope="module")
def anchors():
    return pieces.Anchors((SIZE, SIZE), **ANCHORS)


def test_anchors_are_those_of_a_loop(anchors):
    np.testing.assert_allclose(anchors.boxes, oracle_anchors(**ANCHORS), rtol=1e-5)
    assert anchors.boxes.dtype == np.float32
    assert anchors.per_place == 4


def test_targets_are_those_of_a_loop(anchors):
    found = anchors.targets(*padded())
    for image in range(2):
        labels, offsets = oracle_targets(anchors.boxes, BOXES[image], CLASSES[image])
        np.testing.assert_array_equal(found.classes[image], labels)
        matched = labels >= 0
        assert matched.any() == bool(CLASSES[image])
        np.testing.assert_allclose(
            np.asarray(found.boxes[image])[matched], offsets[matched], atol=1e-4
        )
    assert np.isfinite(found.boxes).all()
    assert (found.classes[0] == -2).numpy().any()


def test_a_graph_makes_the_targets_of_any_number_of_images_one_by_one(anchors):
    seen = []
    encode = anchors._encode

    def counted(objects):
        seen.append(tuple(objects[0].shape))
        return encode(objects)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "_encode", counted)
        boxes, classes = padded()
        signature = [tf.TensorSpec((None, 3, 4)), tf.TensorSpec((None, 3), tf.int64)]
        graph = tf.function(anchors.targets, input_signature=signature)
        for count in (0, 1, 2):
            found = graph(boxes[:count], classes[:count])
            for value, wanted in zip(found, anchors.targets(boxes, classes), strict=True):
                np.testing.assert_allclose(value, wanted[:count], rtol=1e-5, atol=1e-5)
    assert set(seen) == {(4, 4)}


def test_offsets_lead_back_to_the_boxes(anchors):
    found = anchors.targets(*padded())
    matched = np.asarray(found.classes[0]) == 0
    boxes = np.asarray(anchors.decode(found.boxes))[0, matched]
    np.testing.assert_allclose(boxes, np.repeat([BOXES[0][1]], len(boxes), axis=0), atol=1e-3)
    wild = anchors.decode(np.full_like(found.boxes, 1e9))
    assert np.isfinite(wild).all()
    assert np.max(wild) <= SIZE


def test_no_place_for_objects_is_an_image_without_one(anchors):
    none = anchors.targets(np.zeros((1, 0, 4)), np.zeros((1, 0), int))
    assert (np.asarray(none.classes) == -1).all()


def oracle_loss(targets, boxes, logits, alpha, gamma, box_weight):
    losses = []
    for image in range(len(logits)):
        total, matched = 0.0, 0
        for anchor, label in enumerate(targets.classes[image]):
            if label == -2:
                continue
            for kind, logit in enumerate(logits[image, anchor]):
                p = 1 / (1 + math.exp(-logit))
                right, weight = (p, alpha) if kind == label else (1 - p, 1 - alpha)
                total -= weight * (1 - right) ** gamma * math.log(right)
            if label >= 0:
                matched += 1
                away = np.abs(boxes[image, anchor] - targets.boxes[image, anchor])
                total += box_weight * np.where(away < 1, away**2 / 2, away - 0.5).mean()
        losses.append(total / max(matched, 1))
    return losses


def test_the_loss_is_that_of_a_loop():
    random = np.random.default_rng(1)
    labels = np.array([[2, -1, -2, 0], [-1, -1, -2, -1]])
    targets = pieces.Targets(random.normal(size=(2, 4, 4)).astype("float32"), labels)
    boxes = random.normal(size=(2, 4, 4)).astype("float32") * 2
    logits = random.normal(size=(2, 4, 3)).astype("float32") * 2
    settings = (0.3, 1.5, 0.7)
    found = pieces.detection_loss(targets, boxes, logits, *settings)
    np.testing.assert_allclose(found, oracle_loss(targets, boxes, logits, *settings), rtol=1e-5)


def test_class_hits():
    targets = pieces.Targets(None, np.array([[2, -1, 0], [-1, -2, -1]]))
    logits = np.zeros((2, 3, 3), "float32")
    logits[0, 0, 2] = logits[0, 2, 1] = 1.0
    np.testing.assert_array_equal(pieces.class_hits(targets, logits), [0.5, 1.0])


def test_a_fresh_model_says_its_prior_everywhere(model):
    outputs = model(images())
    assert outputs["boxes"].shape == (2, 252, 4)
    assert outputs["classes"].shape == (2, 252, 3)
    probabilities = keras.ops.sigmoid(outputs["classes"])
    np.testing.assert_allclose(probabilities, 0.01, atol=0.004)


def perfect_outputs(model, boxes, classes):
    targets = model.targets(boxes, classes)
    labels = np.asarray(targets.classes)
    logits = np.full((*labels.shape, model.num_classes), -9.0, "float32")
    for image, anchor in np.argwhere(labels >= 0):
        logits[image, anchor, labels[image, anchor]] = 9.0 - 1e-3 * anchor
    return {"boxes": targets.boxes, "classes": logits}


def test_what_the_targets_say_is_found(model):
    boxes = np.array([[[2, 4, 34, 36], [36, 30, 62, 58]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    classes = np.array([[2, 0], [-1, -1]])
    found = model.decode(perfect_outputs(model, boxes, classes))
    assert found.count.numpy().tolist() == [2, 0]
    order = np.argsort(found.classes[0, :2])[::-1]
    assert np.asarray(found.classes)[0, order].tolist() == [2, 0]
    np.testing.assert_allclose(np.asarray(found.boxes)[0, order], boxes[0], atol=1e-3)
    assert (np.asarray(found.scores)[:, 2:] == -1).all()
    assert (np.asarray(found.classes)[:, 2:] == -1).all()


def test_boxes_of_other_classes_do_not_suppress_one_another():
    boxes = np.array(
        [[[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 11, 10], [20, 20, 30, 30]]], "float32"
    )
    logits = np.full((1, 4, 2), -9.0, "float32")
    logits[0, [0, 1, 2, 3], [0, 0, 1, 0]] = [3.0, 2.0, 1.0, 0.0]
    found = pieces.suppress(boxes, logits, score_threshold=0.2, iou=0.5, max_detections=5)
    assert found.count.numpy().tolist() == [3]
    np.testing.assert_array_equal(found.boxes[0, :3], boxes[0, [0, 2, 3]])
    assert found.classes[0, :3].numpy().tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores[0, :2], 1 / (1 + np.exp([-3.0, -1.0])), rtol=1e-5)


def test_the_surest_anchors_alone_go_into_suppression(monkeypatch):
    monkeypatch.setattr(pieces, "_MOST_CANDIDATES", 2)
    corners = np.arange(5, dtype="float32")[:, None] * [20, 0, 20, 0]
    boxes = (corners + np.array([0, 0, 10, 10], "float32"))[None]
    logits = np.array([[[0.0], [2.0], [1.0], [3.0], [-1.0]]], "float32")
    found = pieces.suppress(boxes, logits, 0.05, 0.5, 4)
    assert found.count.numpy().tolist() == [2]
    np.testing.assert_array_equal(found.boxes[0, :2], boxes[0, [3, 1]])


def test_raw_images_of_any_shape(model, monkeypatch):
    # The object fills the right half of what the model sees of the image, its upper half, and
    # reaches into the filling below; another one lies there alone.
    boxes = np.array([[[32, 0, 64, 40], [0, 34, 30, 64]]])
    outputs = perfect_outputs(model, boxes, np.array([[1, 1]]))
    monkeypatch.setattr(models.RetinaNet, "__call__", lambda self, x, training: outputs)
    (name, score, box), *others = model.detect(np.zeros((100, 200, 1), "uint8"))
    assert (name, others) == ("dog", [])
    assert score > 0.99
    np.testing.assert_allclose(box, [100, 0, 200, 100], atol=0.01)
    with pytest.raises(ValueError, match=r"\[height, width, 1\]"):
        model.detect(np.zeros((10, 10, 3)))
    with pytest.raises(ValueError, match="with pixels"):
        model.detect(np.zeros((0, 0, 1)))


def test_saving(model, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.class_names == ("cat", "dog", "cow")
    for name, outputs in model(images()).items():
        np.testing.assert_array_equal(again(images())[name], outputs)


@pytest.fixture(scope="module")
def sparse():
    """On an As-ViT with experts in its last block."""
    keras.utils.set_random_seed(0)
    backbone = models.AsViT(**ASVIT, num_classes=None, placement=(3,), num_experts=2)
    pyramid = models.feature_pyramid(backbone, SIZE, level_norms=True)
    return detector(pyramid, anchor_size=2.0)


def test_a_sparse_as_vit_is_found_saved_and_masked(sparse, tmp_path):
    assert len(models.moe_layers(sparse)) == 1
    # Level 2 of the pyramid is not looked at: no weight of it goes without gradient.
    assert not [v.path for v in sparse.trainable_variables if v.path.startswith("P2")]
    sparse.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    outputs = sparse(images())
    np.testing.assert_allclose(again(images())["classes"], outputs["classes"], atol=1e-6)
    masked = models.with_image_mask(sparse)({"images": images(), "mask": np.array([True, True])})
    np.testing.assert_allclose(masked["boxes"], outputs["boxes"], atol=1e-6)


def test_fitting_counts_the_auxiliary_losses_and_learns(sparse):
    boxes, classes = padded()
    truth = {"boxes": boxes, "classes": classes}
    sparse.compile(optimizer=keras.optimizers.Adam(3e-3), run_eagerly=True)
    with layers.routing_metrics(False):
        outputs = sparse(images(), training=True)
    auxiliary = sum(float(one) for one in sparse.losses)
    assert auxiliary > 0
    alone = float(np.mean(sparse.image_losses(outputs, sparse.targets(boxes, classes))))
    total = float(sparse.compute_loss(images(), truth, outputs))
    assert total == pytest.approx(alone + auxiliary, rel=1e-5)
    history = sparse.fit(images(), truth, batch_size=2, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]


def test_images_without_objects_train():
    model = detector()
    empty = {"boxes": np.zeros((2, 1, 4)), "classes": np.full((2, 1), -1)}
    model.compile(optimizer=keras.optimizers.Adam(1e-2), run_eagerly=True)
    losses = model.fit(images(), empty, batch_size=2, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert 0 < losses[-1] < losses[0]
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("max_level", [3, 5])
def test_box_arithmetic_stays_in_float32(max_level):
    with_policy = detector(dtype="mixed_bfloat16", max_level=max_level)
    outputs = with_policy(images())
    assert {keras.backend.standardize_dtype(x.dtype) for x in outputs.values()} == {"float32"}
    for values in outputs.values():  # not numbers of half precision in float32
        rounded = keras.ops.cast(keras.ops.cast(values, "bfloat16"), "float32")
        assert np.mean(np.asarray(rounded) != np.asarray(values)) > 0.5
    assert with_policy.get_layer("fpn_output_3").compute_dtype == "bfloat16"
    assert with_policy.targets(*padded()).boxes.numpy().dtype == np.float32
    assert with_policy.decode(outputs).boxes.numpy().dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": convolutional(72)}, "divides by 16.*72x72; take 64"),
        ({"min_level": 2}, "min_level and max_level must begin with levels of the backbone"),
        ({"min_level": 4, "max_level": 3}, "at most max_level"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"class_names": ("a",)}, "one name per class, 3"),
        ({"positive_iou": 0.3}, "negative_iou <= positive_iou"),
        ({"anchor_scales": ()}, "anchor_scales must be a sequence of numbers above 0"),
        ({"anchor_ratios": (1.0, -1.0)}, "anchor_ratios must be a sequence of numbers above 0"),
        ({"anchor_size": "a"}, "anchor_size must be .* above 0.*anchor_size='a'"),
        ({"focal_gamma": -3}, "focal_gamma must be .* at least 0.*-3"),
        ({"box_weight": -1}, "box_weight must be .* at least 0"),
        ({"class_names": "abc"}, "class_names must be a sequence of names"),
        ({"nms_iou": "half"}, "nms_iou must be between"),
        ({"prior_probability": 0.0}, "prior_probability must be between"),
        ({"head_depth": -1}, "head_depth"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        detector(**options)


def test_a_backbone_without_levels_is_refused():
    inputs = keras.Input((SIZE, SIZE, 1))
    with pytest.raises(ValueError, match="maps by their levels"):
        detector(keras.Model(inputs, keras.layers.Conv2D(2, 8, strides=8)(inputs)))
    with pytest.raises(ValueError, match="stride 2"):
        detector(keras.Model(inputs, {"P3": keras.layers.Conv2D(2, 4, strides=4)(inputs)}))


@pytest.mark.parametrize(
    ("box", "kind", "message"),
    [
        ([0, 0, 70, 10], 0, "within images of 64x64"),
        ([-1, 0, 7, 10], 0, "boxes must be"),
        ([5, 5, 5, 10], 0, "boxes must be"),
        ([0, 0, 10, 10], 3, "below num_classes=3"),
    ],
)
def test_objects_that_are_none_are_refused(model, box, kind, message):
    with pytest.raises(ValueError, match=message):
        model.targets(np.array([[box]], "float32"), np.array([[kind]]))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_vmoe\[detection\]'"):
        detector()
