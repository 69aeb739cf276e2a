"""Runs on images with boxes: training, what they leave, and the commands that read it."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data, models
from keras_vmoe.data import box_scenes
from keras_vmoe.trainers import cli, configurables, detection, gin_config, stopping, trained
from keras_vmoe.trainers.initialize import initialize
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.tasks import make_task
from tests.data.test_box_catalog import mock_coco
from tests.trainers.tiny import train

GENOTYPE = "4,2,1|2,1,1|2,1,1|2,1,1|8,8"
TINY = (
    f"AsViT.genotype='{GENOTYPE}'",
    "RetinaNet.width=8",
    "RetinaNet.head_depth=0",
    "RetinaNet.min_level=3",
    "RetinaNet.score_threshold=0.005",
    "train.image_size=32",
    "train.batch_size=4",
    "train.eval_batch_size=3",
    "train.steps=4",
    "train.log_every=2",
    "train.eval_every=2",
    "train.checkpoint_every=2",
)
GIN = {"gin_file": "runs/asvit/digit_scenes.gin", "tiny": TINY}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(box_scenes, "NUM_TRAIN", 8)
    monkeypatch.setattr(box_scenes, "NUM_VALIDATION", 5)


@pytest.fixture(scope="module")
def detection_run(tmp_path_factory):
    """The workdir of a tiny detector after 4 steps; not to be written to."""
    workdir = tmp_path_factory.mktemp("detection") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_scenes, "NUM_TRAIN", 8)
        patch.setattr(box_scenes, "NUM_VALIDATION", 5)
        assert train(workdir, **GIN) == 0
    return workdir


def rows(workdir, split="eval"):
    return [row for row in MetricsLog(workdir / "metrics.jsonl").rows() if row["split"] == split]


def ap_words(row):
    return "  ".join(f"{name} {row[name]:.2%}" for name in ("AP", "AP50", "AP75"))


def test_rows_hold_average_precision(detection_run):
    evaluations = rows(detection_run)
    assert [row["step"] for row in evaluations] == [2, 4]
    for row in evaluations:
        assert 0 <= row["AP"] <= row["AP50"] <= 1
        assert 0 <= row["AP75"] <= row["AP50"]
        assert np.isfinite(row["loss"])
    assert (detection_run / "checkpoints" / "best").is_dir()


def test_the_model_file_is_a_detector_with_names(detection_run):
    model = keras.saving.load_model(detection_run / "model.keras")
    assert isinstance(model, models.RetinaNet)
    assert model.class_names == tuple("0123456789")
    assert isinstance(model.detect(np.zeros((40, 50, 1), "uint8")), list)


class Oracle:
    """A detector that says the boxes that it is given."""

    num_classes = 3

    def __init__(self, boxes, classes):
        self._boxes, self._classes = boxes, classes

    def __call__(self, images, training):
        return images

    def decode(self, images):
        kinds = self._classes
        scores = np.where(kinds >= 0, 0.9, -1.0)
        return models.Detections(
            *(tf.constant(x) for x in (self._boxes, scores, kinds, (kinds >= 0).sum(-1)))
        )


def test_what_is_there_is_found_in_pixels_of_the_original():
    """Images of 20x50 pixels in a square of 32."""
    shares = [[[0.2, 0.1, 1.0, 0.4], [0.0, 0.5, 0.5, 0.9]], [[0.1, 0.3, 0.8, 1.0]]]
    split = data.box_arrays(np.zeros((2, 20, 50, 1), "uint8"), shares, [[0, 2], [1]], 3)
    batches = data.make_boxes(split, 2, image_size=32, max_boxes=2, pad=True)
    (batch,) = [{n: x.numpy() for n, x in batch.items()} for batch in batches]
    into_filling = batch["boxes"].copy()
    into_filling[0, 0, 3] = 32.0
    model = Oracle(into_filling, batch["classes"])
    first, second = detection.find_objects(model, batches)
    wanted = np.array([[5, 4, 20, 20], [25, 0, 45, 10]])
    np.testing.assert_allclose(first.found_boxes, wanted, atol=1e-4)
    np.testing.assert_allclose(first.boxes, wanted, atol=1e-4)
    np.testing.assert_allclose(second.found_boxes, [[15, 2, 50, 16]], atol=1e-4)
    assert detection.coco_result(model, batches).metrics["AP"] == pytest.approx(1.0)


def test_evaluate_prints_what_the_run_measured(detection_run, capsys):
    assert cli.main(["evaluate", f"--workdir={detection_run}"]) == 0
    printed = capsys.readouterr().out
    assert "digit_scenes: 5 held-out images, 10 classes" in printed
    assert f"result   {ap_words(rows(detection_run)[-1])}" in printed


@pytest.mark.slow
def test_a_checkpoint_is_read_as_its_model(detection_run, tmp_path):
    copied = shutil.copytree(detection_run, tmp_path / "run")
    (copied / "model.keras").unlink()
    found = trained.load(copied, boxes=True)
    whole = trained.load(detection_run, boxes=None)
    assert found.detects
    assert found.class_names == whole.class_names
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    np.testing.assert_allclose(
        found.model(images)["classes"], whole.model(images)["classes"], atol=1e-6
    )


def test_figures_draw_detections_alone(detection_run, tmp_path, capsys):
    words = [f"--workdir={detection_run}", f"--out={tmp_path}"]
    assert cli.main(["figures", *words]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"detections.png", "detections.csv"}
    assert "is a detector of objects" in capsys.readouterr().out
    assert cli.main(["figures", *words, "--only=expert_class"]) == 1
    assert "needs a classifier" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fewshot"], "is a detector of objects"),
        (["evaluate", "--dataset=digits"], "--dataset is of classifiers"),
        (["evaluate", "--sweep"], "--sweep is of classifiers"),
        (["evaluate", "--gin_file=data/digits.gin"], "digits is no data for"),
    ],
)
def test_commands_of_classifiers_refuse_a_detector(detection_run, words, message, capsys):
    assert cli.main([words[0], f"--workdir={detection_run}", *words[1:]]) != 0
    assert message in capsys.readouterr().err


def test_a_detector_starts_from_a_classifier(detection_run, tmp_path):
    classifier = models.AsViT(GENOTYPE, num_classes=4, image_size=32, channels=1)
    models.Classifier(classifier, list("abcd")).save(tmp_path / "model.keras")
    model = keras.saving.load_model(detection_run / "model.keras")
    done = initialize(model, str(tmp_path / "model.keras"), keep_head=False)
    mine = {variable.path: variable for variable in model.variables}
    theirs = {variable.path: variable for variable in classifier.variables}
    assert set(done.copied) == set(mine) & set(theirs)
    assert len(done.copied) > 20
    for name in done.copied:
        np.testing.assert_array_equal(mine[name], theirs[name])
    assert {name.split("_")[0] for name in done.fresh} == {
        "P3",
        "P4",
        "P5",
        "fpn",
        "boxes",
        "classes",
    }
    again = initialize(model, str(detection_run / "model.keras"), keep_head=True)
    assert not again.fresh


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("train.backbone=None", "train.backbone is not bound"),
        ("train.model=@ViT", "take @RetinaNet"),
        ("train.label_smoothing=0.1", "train.label_smoothing=0.1 is of classification"),
        ("train.augment=@Flip()", "is of classification"),
        ("train.crop=@InceptionCrop()", "take ScaleJitter"),
        ("train.image_size=40", "divides by 32"),
        ("RetinaNet.num_classes=3", "num_classes"),
    ],
)
def test_bindings_of_others_are_refused(tmp_path, binding, message, capsys):
    if binding == "RetinaNet.num_classes=3":
        # What the data says wins: a run cannot have another number of classes.
        gin_config.parse(["runs/asvit/digit_scenes.gin"], [*TINY, binding])
        config = configurables.train_config()
        assert make_task(config, config.dataset()).make_model().num_classes == 10
        return
    assert train(tmp_path, binding, **GIN) == 1
    assert message in capsys.readouterr().err


def test_a_backbone_is_of_detectors_alone(tmp_path, capsys):
    options = {"gin_file": "runs/quickstart.gin", "tiny": ()}
    assert train(tmp_path, "train.backbone=@AsViT", **options) == 1
    assert "train.backbone is of object detection" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(detection_run, tmp_path, monkeypatch):
    checks = iter(range(100))

    def check(self):
        if next(checks) == 3:
            raise stopping.StopRequested(2)

    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "check", check)
        assert train(tmp_path, **GIN) == 130
    assert train(tmp_path, **GIN) == 0
    for left, right in zip(rows(detection_run), rows(tmp_path), strict=True):
        assert left["step"] == right["step"]
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["AP"] == pytest.approx(right["AP"], abs=1e-6)


COCO = (
    f"from_variant.genotype='{GENOTYPE}'",
    "from_variant.pretrain_size=32",
    "RetinaNet.width=8",
    "RetinaNet.head_depth=1",
    "train.image_size=64",
    "train.batch_size=4",
    "train.eval_batch_size=4",
    "train.steps=2",
    "train.checkpoint_every=None",
    "train.eval_every=None",
)


@pytest.mark.slow
def test_coco_takes_two_steps(tmp_path):
    with mock_coco(6):
        assert train(tmp_path, gin_file="runs/asvit/coco.gin", tiny=COCO) == 0
    (row,) = rows(tmp_path)
    assert row["step"] == 2
    assert np.isfinite(row["loss"])
    assert 0 <= row["AP"] <= 1


def test_the_settings_of_coco_arrive():
    gin_config.parse(["runs/asvit/coco.gin"], ())
    config = configurables.train_config()
    assert config.crop == data.ScaleJitter((0.1, 2.0))
    assert (config.image_size, config.batch_size) == (1024, 256)
    gin = gin_config.load()
    assert gin.query_parameter("from_variant.name") == "asvit_l"
    assert gin.query_parameter("from_variant.windows") == "size"
