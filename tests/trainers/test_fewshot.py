"""Few-shot transfer of trained models: the features, the command, and between training steps."""

import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data, evaluation, models
from keras_vmoe.trainers import cli, few_shot_evaluation
from keras_vmoe.trainers.few_shot_evaluation import FewShot
from tests.models import tiny

DIGITS = data.load("digits")


@pytest.fixture(scope="module")
def model():
    return tiny.vit(channels=1, num_classes=10, num_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of eight small pictures, dark and light, and as many held out."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, level in (("dark", 30), ("light", 180)):
            place = root / split / label
            place.mkdir(parents=True)
            for number in range(8):
                # Of several sizes: they stay in their files.
                pixels = random.integers(level, level + 60, (16 + number % 2, 16, 3), "uint8")
                (place / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return root


def batches(split, size=16, channels=1):
    return data.make_dataset(split, batch_size=256, image_size=size, channels=channels)


def whole(model, source, shots, seeds, channels=1):
    """The same with the features of all images."""
    extractor = models.feature_extractor(model)
    train, test = (
        evaluation.collect_features(extractor, batches(split, channels=channels))
        for split in (source.train, source.eval)
    )
    return evaluation.few_shot_accuracy(*train, *test, shots=shots, seeds=seeds)


def as_stream(split):
    """The same images, of which nothing is known before they are read."""
    images = [tf.io.encode_png(image).numpy() for image in split.images]
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": split.labels})
    return data.StreamSplit(split.num_examples, lambda part: dataset, channels=1)


# The features.


def test_only_drawn_images_go_through_the_model(model):
    extractor, seen = models.feature_extractor(model), []

    def counted(split):
        seen.append(split.num_examples)
        return batches(split)

    drawn = few_shot_evaluation.draw(DIGITS, (1, 3), (0, 1))
    found = drawn.features(extractor, counted)
    assert seen == [len(found.rows), 360]
    assert 30 < len(found.rows) <= 60
    assert len(found.labels) == 1437
    every, _ = evaluation.collect_features(extractor, batches(DIGITS.train))
    np.testing.assert_allclose(found.features, every[found.rows], atol=1e-5)
    assert drawn.passes(batch_size=100) == 1 + 4
    result = evaluation.few_shot_transfer({"digits": found}, (1, 3), (0, 1))["digits"]
    wanted = whole(model, DIGITS, (1, 3), (0, 1))
    np.testing.assert_allclose(result.accuracies, wanted.accuracies, atol=1.01 / 360)


def test_of_files_too(folder):
    model = tiny.vit(num_layers=1)
    source = data.load(f"image_folder:{folder}")
    extractor = models.feature_extractor(model)
    coloured = functools.partial(batches, channels=3)
    found = few_shot_evaluation.draw(source, (2,), (0,)).features(extractor, coloured)
    assert isinstance(source.train, data.FileSplit)
    assert len(found.rows) == 4
    every, labels = evaluation.collect_features(extractor, batches(source.train, channels=3))
    np.testing.assert_allclose(found.features, every[found.rows], atol=1e-5)
    assert found.labels.tolist() == labels.tolist()
    result = evaluation.few_shot_transfer({"": found}, (2,), (0,))[""]
    wanted = whole(model, source, (2,), (0,), channels=3)
    np.testing.assert_allclose(result.accuracies, wanted.accuracies, atol=1.01 / 16)


def test_of_streams_too(model, monkeypatch):
    part = data.ArraySplit.of(DIGITS.train.images[:200], DIGITS.train.labels[:200])
    held = dataclasses.replace(DIGITS, splits={"train": part, "test": part})
    stream = dataclasses.replace(DIGITS, splits={"train": as_stream(part), "test": part})
    drawn = few_shot_evaluation.draw(stream, (2,), (0,))
    assert drawn.labels.tolist() == part.labels.tolist()
    assert drawn.split.num_examples == len(drawn.rows) == 20
    extractor = models.feature_extractor(model)
    found = drawn.features(extractor, batches)
    wanted = few_shot_evaluation.draw(held, (2,), (0,)).features(extractor, batches)
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_allclose(found.features, wanted.features, atol=1e-5)


def test_sources_that_leave_damaged_images_out_are_read_as_a_whole(model):
    part = data.ArraySplit.of(DIGITS.train.images[:200], DIGITS.train.labels[:200])
    lenient = dataclasses.replace(as_stream(part), corrupt=data.CorruptImages(1))
    source = dataclasses.replace(DIGITS, splits={"train": lenient, "test": part})
    drawn = few_shot_evaluation.draw(source, (2,), (0,))
    assert drawn.rows is None
    assert drawn.passes(batch_size=100) == 4
    found = drawn.features(models.feature_extractor(model), batches)
    assert found.rows is None
    assert found.labels.tolist() == part.labels.tolist()
    np.testing.assert_allclose(found.features, found.test_features, atol=1e-5)


def test_small_classes_are_told():
    few = np.concatenate([np.arange(10), np.repeat(np.arange(9), 30)])
    images = np.zeros((len(few), 8, 8, 1), np.uint8)
    source = dataclasses.replace(
        DIGITS, splits={"train": data.ArraySplit.of(images, few), "test": DIGITS.eval}
    )
    (notice,) = FewShot(shots=(1, 5)).prepare(source)
    assert notice == (
        "few-shot transfer to digits: 1 of 10 classes have fewer than 5 training images, the "
        "smallest 1; all of theirs are taken"
    )
    assert FewShot(shots=(1,)).prepare(source) == []


# Between training steps.


def test_it_measures_the_model_as_it_is(model):
    few_shot = FewShot(shots=(1, 5), seeds=2)
    first = few_shot.measure(model, DIGITS)
    assert list(first) == ["fewshot/1shot", "fewshot/5shot"]
    wanted = whole(model, DIGITS, (1, 5), (0, 1)).mean
    assert list(first.values()) == pytest.approx(list(wanted.values()), abs=2 / 360)
    kernel = model.get_layer("encoder_norm").gamma
    kept = np.array(kernel.value)
    kernel.assign(np.zeros_like(kept))
    changed = few_shot.measure(model, DIGITS)
    assert changed["fewshot/5shot"] < first["fewshot/5shot"]
    kernel.assign(kept)
    assert few_shot.measure(model, DIGITS) == first
    other = tiny.vit(channels=1, num_classes=10, num_layers=1, width=4)
    assert few_shot.measure(other, DIGITS) == FewShot(shots=(1, 5), seeds=2).measure(other, DIGITS)
    assert few_shot.measure(other, DIGITS) != first


@pytest.mark.slow
def test_metrics_and_weights_of_a_sparse_model_are_left_alone():
    model = tiny.vmoe(channels=1, num_classes=10, num_layers=1, placement=(0,))
    model(tiny.images(3)[..., :1], training=True)
    before = [np.array(v.value) for v in model.variables]
    values = [float(metric.result()) for metric in model.metrics]
    assert 0 <= FewShot("digits", shots=(1,), seeds=1).measure(model)["fewshot/1shot"] <= 1
    for variable, kept in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, kept)
    assert [float(metric.result()) for metric in model.metrics] == values
    assert max(values) > 0


def test_several_datasets_are_told_apart(folder, model):
    few_shot = FewShot([f"image_folder:{folder}", lambda: DIGITS], shots=(1, 2), seeds=1)
    found = few_shot.measure(model)
    names = [key.rpartition("/") for key in found]
    assert [shot for *_, shot in names] == ["1shot", "2shot"] * 2
    assert len({name for name, *_ in names}) == 2
    assert "fewshot/digits/2shot" in found


def test_it_is_due_at_its_own_steps():
    assert all(FewShot().is_due(step) for step in (1, 10))
    assert [FewShot(every=4).is_due(step) for step in (4, 6, 8)] == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": ()}, "shots must hold"),
        ({"shots": (0,)}, "shots must hold"),
        ({"seeds": 0}, "FewShot.seeds=0 must be a positive whole number"),
        ({"seeds": (0, 1)}, r"FewShot.seeds=\(0, 1\)"),
        ({"every": 0}, "FewShot.every=0"),
        ({"batch_size": 0}, "FewShot.batch_size=0"),
        ({"dataset": 3}, "FewShot.dataset=3 must be names or references"),
        ({"dataset": ()}, r"FewShot.dataset=\(\)"),
        ({"dataset": ""}, "FewShot.dataset=''"),
    ],
)
def test_wrong_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        FewShot(**arguments)


def test_data_that_does_not_do_is_told_before_training():
    with pytest.raises(ValueError, match="no run to take it of"):
        FewShot().prepare()
    empty = dataclasses.replace(DIGITS, class_names=(*DIGITS.class_names, "ten"))
    message = r"few-shot transfer to digits: every class .* none of class 10 \(ten\)"
    with pytest.raises(ValueError, match=message):
        FewShot().prepare(empty)
    with pytest.raises(ValueError, match="two datasets of the name 'digits'"):
        FewShot(["digits", lambda: DIGITS]).prepare()


# The command.


def test_the_command(finished_run, tmp_path, capsys):
    words = ["--shots=1,5,300", "--seeds=2", f"--out={tmp_path / 'new'}"]
    assert cli.main(["fewshot", f"--workdir={finished_run}", *words]) == 0
    out = capsys.readouterr().out
    assert "1-shot" in out
    assert "digits: 1,437 images to draw from, 360 held out, 10 classes" in out
    content = json.loads((tmp_path / "new" / "fewshot.json").read_text())
    rows = content["datasets"]["digits"]["rows"]
    assert [row["shots"] for row in rows] == [1, 5, 300]
    assert "note     few-shot transfer to digits: 10 of 10 classes have fewer than 300" in out
    assert f"{100 * rows[1]['mean']:.1f} ± {100 * rows[1]['std']:.1f} %" in out
    assert not (finished_run / "fewshot.json").exists()


@pytest.mark.slow
def test_the_command_on_a_file_and_other_datasets(finished_run, folder, tmp_path, capsys):
    file = tmp_path / "model.keras"
    file.write_bytes((finished_run / "model.keras").read_bytes())
    words = [f"--dataset=image_folder:{folder}", "--dataset=digits,test,train", "--shots=2"]
    assert cli.main(["fewshot", f"--model={file}", *words, "--seeds=1"]) == 0
    out = capsys.readouterr().out
    assert "digits: 360 images to draw from, 1,437 held out" in out
    content = json.loads((tmp_path / "fewshot.json").read_text())
    assert len(content["datasets"]) == 2
    penalties = {rows["rows"][0]["l2_reg"] for rows in content["datasets"].values()}
    assert len(penalties) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give either --workdir=DIR, the folder of a run, or --model=FILE.keras"),
        (["--workdir=a", "--model=b"], 2, "give either"),
        (["workdir/x"], 2, "unexpected 'workdir/x'; did you mean --workdir=workdir/x?"),
        (["--workdir=/nowhere"], 1, "--workdir=/nowhere: there is no such file or folder"),
        (["--model=/nowhere.keras"], 1, "--model=/nowhere.keras: there is no such"),
        (["--workdir={run}", "--shots="], 2, "--shots must be different whole numbers"),
        (["--workdir={run}", "--shots=1,x"], 2, "Received: --shots=1,x"),
        (["--workdir={run}", "--shots=5,5"], 2, "--shots must be different"),
        (["--workdir={run}", "--shots=0"], 2, "--shots must be 1 or more"),
        (["--workdir={run}", "--seeds=0"], 2, "seeds"),
        (["--workdir={run}", "--gin_file=none.gin"], 1, "--gin_file=none.gin: no such file"),
        (["--workdir={run}", "--dataset=digits,test"], 2, "NAME,TRAIN_SPLIT,HELD_OUT_SPLIT"),
        (["--workdir={run}", "--dataset=digits", "--dataset=digits"], 2, "digits comes twice"),
    ],
)
def test_wrong_command_lines(finished_run, tmp_path, capsys, words, code, message):
    words = [word.format(run=finished_run) for word in words]
    assert cli.main(["fewshot", *words, f"--out={tmp_path}"]) == code
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


HELP = """
import sys
sys.argv[0] = "keras-vmoe"
from keras_vmoe.trainers import cli
for name in ("fewshot", "evaluate"):
    assert cli.main([name, "--help"]) == 0
    assert cli.main([name]) == 2
    assert cli.main([name, "--workdir=/nowhere"]) == 1
print("heavy:", sorted({"tensorflow", "keras"} & set(sys.modules)))
"""


def test_help_and_first_errors_import_no_tensorflow():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert "--shots" in done.stdout
    assert "--sweep" in done.stdout
