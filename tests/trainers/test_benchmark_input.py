"""`keras-vmoe benchmark input`: what it measures, how it counts, what it prints."""

import io
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import input as input_of
from keras_vmoe.trainers.benchmark.settings import InputSettings
from keras_vmoe.trainers.benchmark.timing import Clocks
from keras_vmoe.trainers.work_progress import WorkProgress


def run(*words):
    return cli.main(["benchmark", "input", "--rounds=1", "--seconds=0.02", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give a --gin_file or a --dataset"),
        ("digits", "unexpected 'digits'"),
        ("--dataset=digits --augment=flop", "--augment: 'flop' is unknown; known: flip, rand"),
        ("--dataset=digits --crop=middle", "--crop: 'middle' is unknown"),
        ("--dataset=digits --mix=mixin", "--mix: 'mixin' is unknown"),
        ("--gin_file=runs/quickstart.gin --image_size=8", "--image_size is said by the gin file"),
        ("--dataset=digits --seconds=0", "--seconds=0"),
        ("--dataset=digits --json=/no/such/folder/x.json", "no file can be written"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, words, message):
    assert cli.main(["benchmark", "input", *words.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_batch_larger_than_the_data_is_named(capsys):
    assert run("--dataset=digits", "--image_size=8", "--batch_size=1438") == 1
    assert "batch_size=1438 is larger than the 1437" in capsys.readouterr().err


def test_a_dataset_is_measured_stage_by_stage(capsys, tmp_path):
    file = tmp_path / "input.json"
    words = ["--dataset=digits", "--image_size=12", "--batch_size=8", "--mix=mixup,cutmix"]
    assert run(*words, "--augment=flip,random_erasing", f"--json={file}") == 0
    report = json.loads(file.read_text())
    assert [row["stage"] for row in report["rows"]] == ["crop", "augment", "mix"]
    assert all(row["images_per_second"] > 0 for row in report["rows"])
    assert report["settings"]["image_size"] == 12
    printed = capsys.readouterr().out
    assert "digits: 1,437 images in memory" in printed
    assert "8 images of 12 px" in printed
    assert "RandomErasing(probability=0.25" in printed
    for row in report["rows"]:
        assert f"{row['images_per_second']:,.0f}" in printed


def test_a_gin_file_is_measured(capsys, tmp_path):
    file = tmp_path / "input.json"
    bindings = ["--gin_bindings=train.batch_size=16", "--gin_bindings=train.image_size=8"]
    assert run("--gin_file=runs/quickstart.gin", *bindings, f"--json={file}") == 0
    report = json.loads(file.read_text())
    assert report["pipeline"]["batches"] == "16 images of 8 px"
    assert report["pipeline"]["augment"].startswith("Augment(shift=2")
    assert [row["stage"] for row in report["rows"]] == ["crop", "augment"]
    assert "image_size" not in report["settings"]
    assert "up to" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            image = np.full((4 + i, 5, 3), 20 * i, np.uint8)
            (tmp_path / name / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    return tmp_path


@pytest.mark.parametrize("kind", ["files", "stream"])
def test_the_stages_are_parts_of_the_pipeline(folder, kind):
    source = data.load(f"image_folder:{folder}")
    split = source.train
    if kind == "stream":
        contents = [tf.io.read_file(path).numpy() for path in split.paths]
        examples = {"image": contents, "label": split.labels}
        stream = data.StreamSplit(8, lambda part: tf.data.Dataset.from_tensor_slices(examples), 3)
        source = data.ImageSource("s", source.class_names, (None, None, 3), {"t": stream}, "t", "t")
    arguments = {"crop": data.InceptionCrop(), "augment": data.Flip(), "mix": data.Mixup()}
    arguments |= {"repeats": 1, "cache": False, "num_classes": 2}
    pipeline = input_of.Pipeline(source, 4, 8, arguments)
    assert pipeline.stages() == ["read", "decode, crop", "augment", "mix"]
    first = {stage: next(iter(pipeline.batches(stage))) for stage in pipeline.stages()}
    encoded = first["read"]["image"].numpy()
    assert all(content.startswith(b"\x89PNG") for content in encoded)
    whole = next(iter(data.make_dataset(source.train, 4, 8, training=True, **arguments)))
    np.testing.assert_array_equal(first["mix"]["image"], whole["image"])
    assert first["augment"]["label"].shape == (4,)
    plain, flipped = (first[stage]["image"].numpy() for stage in ("decode, crop", "augment"))
    for one, other in zip(plain, flipped, strict=True):
        assert np.array_equal(one, other) or np.array_equal(one[:, ::-1], other)
    settings = InputSettings(rounds=1, seconds=0.01, warmup=1)
    progress = WorkProgress(input_of.total_work(pipeline, settings), stream=io.StringIO())
    rows = input_of.measure_input(pipeline, settings, progress)
    assert [row["stage"] for row in rows] == pipeline.stages()


def test_a_cached_pipeline_reads_from_memory(folder):
    source = data.load(f"image_folder:{folder}")
    arguments = {"crop": None, "augment": None, "mix": None, "repeats": 1, "cache": True}
    read = input_of.Pipeline(source, 4, 8, arguments).batches("read")
    for path in source.train.paths:
        os.unlink(path)
    assert next(iter(read))["image"].shape == (4,)


def test_images_are_counted_without_the_warm_up():
    taken = []

    def note(number):
        taken.append(int(number))
        return number

    now = {"wall": 0.0, "cpu": 0.0}

    class Batches:
        def __iter__(self):
            for number in range(100):
                # Warm-up is slow; then a batch takes 0.25 s and twice as much of the CPUs.
                now["wall"] += 10.0 if number < 3 else 0.25
                now["cpu"] += 0.5
                yield note(number)

    clocks = Clocks(lambda: now["wall"], lambda: now["cpu"])
    shares = []
    result = input_of.seconds_per_image(Batches(), 5, 1.0, 3, clocks, shares.append)
    assert result == (0.25 / 5, 0.5 / 5)
    assert taken == list(range(7))
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_rows_are_medians_of_rounds():
    rounds = {"read": [(0.1, 0.2), (0.4, 0.1), (0.2, 0.3)], "mix": [(1.0, 0.9)]}
    read, mix = input_of.rows(rounds)
    assert read["images_per_second"] == 5.0
    assert (read["wall_ms"], read["cpu_ms"], read["added_cpu_ms"]) == (200.0, 200.0, 200.0)
    assert mix["added_cpu_ms"] == pytest.approx(700.0)
