"""`keras-vmoe superclass`, and super-classes as gin files name them."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data, models, superclass
from keras_vmoe.trainers import cli, gin_config, trained
from keras_vmoe.trainers import superclass as command
from keras_vmoe.trainers.superclass_source import superclasses
from tests.models import tiny

DIGITS = data.load("digits")
FILES = {
    *("superclasses.json", "confusion_matrix.png", "confusion_matrix.csv"),
    *("confusion_graph.png", "confusion_graph.csv"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An untrained classifier of digits."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    vit = tiny.vit(channels=1, num_classes=10, num_layers=1)
    models.Classifier(vit, DIGITS.class_names).save(path)
    return path


def wanted_confusion(path, split, counts=False):
    """What the command should find, image by image."""
    model = trained.load(path)
    matrix = np.zeros((10, 10))
    for batch in model.eval_batches(50, split):
        logits = np.asarray(model.model(batch["image"]), "float64")
        for label, row in zip(batch["label"].numpy(), logits, strict=True):
            odds = np.exp(row - row.max())
            matrix[label] += np.eye(10)[row.argmax()] if counts else odds / odds.sum()
    return matrix


# The command.


def test_the_command_on_a_run(dense_run, tmp_path, capsys):
    words = [f"--checkpoint={dense_run}", "--num=3", f"--out={tmp_path / 'new'}"]
    assert cli.main(["superclass", *words]) == 0
    out = capsys.readouterr().out
    assert "data     digits: 360 images of test, 10 classes" in out
    assert "note     test is what the run reports its accuracy on" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES
    found = superclass.Superclasses.load(tmp_path / "new" / "superclasses.json")
    confusion = wanted_confusion(dense_run, DIGITS.eval)
    wanted = superclass.find_superclasses(confusion, 3, DIGITS.class_names)
    assert found.ids == wanted.ids
    assert found.names == wanted.names
    assert found.modularity == pytest.approx(wanted.modularity, rel=1e-3)
    assert found.origin == f"{dense_run / 'model.keras'}; digits, test"
    assert f"3 super-classes by louvain, modularity {found.modularity:.3f}" in out
    chance = superclass.random_inside_confusion(found.ids)
    assert f"{found.inside_confusion:.1%} of the confusion is inside" in out
    assert f"random ones of the same sizes {chance:.1%}" in out
    for number, name in enumerate(found.names):
        assert f"{number}            {name}" in out
    assert cli.main(["superclass", *words]) == 1
    assert "superclasses.json exists; name another --out, or give --over" in capsys.readouterr().err
    # Again, the same.
    assert cli.main(["superclass", *words, "--overwrite"]) == 0
    assert superclass.Superclasses.load(tmp_path / "new" / "superclasses.json") == found


def test_the_command_on_a_file(file, tmp_path, capsys):
    words = [f"--checkpoint={file}", "--data=digits", "--split=train", "--num=4", "--counts"]
    options = ["--method=spectral", "--seed=3", "--neighbours=0", "--balance=1.3"]
    # Of an untrained model some classes are never predicted, and all may be confused.
    assert cli.main(["superclass", *words, *options, f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "digits: 1,437 images of train" in out
    assert "note" not in out
    found = superclass.Superclasses.load(tmp_path / "superclasses.json")
    confusion = wanted_confusion(file, DIGITS.train, counts=True)
    wanted = superclass.find_superclasses(
        confusion, 4, DIGITS.class_names, "spectral", 3, None, 1.3
    )
    assert found == dataclasses.replace(wanted, origin=found.origin)
    assert max(found.sizes) <= 4


def mocked_mnist():
    """MNIST whose splits, cut or not, hold some of the scanned digits."""
    import tensorflow_datasets as tfds

    def as_dataset(self, split, decoders=None, **unused):
        count = 90 if split == "train[90%:]" else 20
        images = [tf.io.encode_png(image).numpy() for image in DIGITS.eval.images[:count]]
        examples = {"image": images, "label": DIGITS.eval.labels[:count].astype("int64")}
        return tf.data.Dataset.from_tensor_slices(examples)

    return tfds.testing.mock_data(num_examples=8, as_dataset_fn=as_dataset)


def test_what_a_run_left_out_of_training_is_taken(file, tmp_path, capsys):
    bindings = ["dataset.name='mnist'", "dataset.train_split='train[:90%]'"]
    words = [f"--checkpoint={file}", "--num=2", f"--out={tmp_path}"]
    words += [f"--gin_bindings={binding}" for binding in bindings]
    with mocked_mnist():
        assert cli.main(["superclass", *words]) == 0
    out = capsys.readouterr().out
    assert "data     mnist: 90 images of train[90%:], 10 classes" in out
    assert "note" not in out


@pytest.mark.parametrize(
    ("train_split", "unused"),
    [
        ("train[:99%]", "train[99%:]"),
        ("train[:5000]", "train[5000:]"),
        ("train", None),
        ("full[102400:]", None),
        ("train[:800]+validation[:200]", None),
    ],
)
def test_what_a_split_leaves_out(train_split, unused):
    splits = {train_split: DIGITS.train, "test": DIGITS.eval}
    source = dataclasses.replace(DIGITS, splits=splits, train_split=train_split)
    assert command.unused_split(source) == unused


def test_a_validation_split_that_a_run_does_not_use(file, tmp_path, capsys, monkeypatch):
    splits = {**DIGITS.splits, "validation": data.select(DIGITS.eval, np.arange(90))}
    source = dataclasses.replace(DIGITS, splits=splits)
    assert command.unused_split(source) == "validation"
    assert command.unused_split(dataclasses.replace(source, eval_split="validation")) is None
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: source)
    words = [f"--checkpoint={file}", "--data=digits", "--num=2", f"--out={tmp_path}"]
    assert cli.main(["superclass", *words]) == 0
    out = capsys.readouterr().out
    assert "digits: 90 images of validation" in out
    assert "note" not in out


def test_training_images_are_told(dense_run, tmp_path, capsys):
    words = [f"--checkpoint={dense_run}", "--num=2", "--split=train", f"--out={tmp_path}"]
    assert cli.main(["superclass", *words]) == 0
    assert "the model was trained on train, which holds images of train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "--checkpoint is missing: the folder of a run or a .keras file"),
        (["--checkpoint={file}"], 2, "--num is missing: 10"),
        (["model.keras"], 2, "unexpected 'model.keras'; did you mean --checkpoint=model.keras?"),
        (["--checkpoint={file}", "--num=0"], 2, "num"),
        (["--checkpoint={file}", "--num=2", "--balance=0.5"], 2, "balance"),
        (["--checkpoint={file}", "--num=2", "--method=leiden"], 2, "louvain or spectral"),
        (["--checkpoint={file}", "--num=2", "--data_dir=x"], 2, "--data_dir is of --data"),
        (["--checkpoint=/nowhere", "--num=2"], 1, "--checkpoint=/nowhere: there is no such"),
        (["--checkpoint={file}", "--num=2", "--gin_file=none.gin"], 1, "no such file"),
        (["--checkpoint={file}", "--num=2"], 1, "no images to evaluate"),
        (["--checkpoint={file}", "--data=digits", "--num=11"], 1, "but digits has 10"),
        (
            ["--checkpoint={file}", "--data=digits", "--num=2", "--split=val"],
            1,
            "eval_split='val' is not a split of 'digits'",
        ),
    ],
)
def test_wrong_command_lines(file, tmp_path, capsys, words, code, message):
    words = [word.format(file=file) for word in words]
    assert cli.main(["superclass", *words, f"--out={tmp_path}"]) == code
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


def test_a_model_of_other_classes(tmp_path, capsys):
    path = tmp_path / "model.keras"
    vit = tiny.vit(channels=1, num_classes=3, num_layers=1)
    models.Classifier(vit, ["a", "b", "c"]).save(path)
    words = [f"--checkpoint={path}", "--data=digits", "--num=2"]
    assert cli.main(["superclass", *words]) == 1
    assert "digits has 10 classes, but the model has 3" in capsys.readouterr().err


HELP = """
import sys
sys.argv[0] = "keras-vmoe"
from keras_vmoe.trainers import cli
assert cli.main(["superclass", "--help"]) == 0
assert cli.main(["superclass"]) == 2
assert cli.main(["superclass", "--checkpoint=/nowhere", "--num=2"]) == 1
print("heavy:", sorted({"tensorflow", "keras", "networkx"} & set(sys.modules)))
"""


def test_help_and_first_errors_import_no_tensorflow():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert "--checkpoint" in done.stdout


# Gin.


@pytest.fixture
def mapping(tmp_path):
    """A file by hand, the names of the digits backwards."""
    path = tmp_path / "mine.json"
    names = reversed(DIGITS.class_names)
    path.write_text(json.dumps({name: "even" if int(name) % 2 == 0 else "odd" for name in names}))
    return path


def test_a_file_is_fitted_to_the_names_of_a_dataset(mapping):
    assert superclasses(str(mapping)) == (0, 1) * 5
    assert superclasses(str(mapping), dataset="digits") == (1, 0) * 5
    assert superclasses(str(mapping), dataset=lambda: DIGITS, num_superclasses=2) == (1, 0) * 5


def test_hierarchies_and_random_ones(mapping):
    assert superclasses("cifar100", num_superclasses=20) == superclass.hierarchy("cifar100").ids
    found = superclasses("random", num_classes=10, num_superclasses=5, seed=1)
    assert found == superclass.random_superclasses(10, 5, 1).ids
    assert superclasses("random", dataset="digits", num_superclasses=5, seed=1) == found
    coarse = superclass.hierarchy("coco")
    like = superclasses("random", like="coco", seed=2)
    assert like == superclass.random_superclasses(80, 12, 2, coarse).ids
    assert sorted(superclasses("random", like=str(mapping))) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "imagenet"}, FileNotFoundError, "neither a file nor one of 'cifar100', 'coco'"),
        ({"source": "cifar100", "dataset": "digits"}, ValueError, "no super-class of '0', '1'"),
        ({"source": "coco", "num_superclasses": 10}, ValueError, "holds 12 super-classes"),
        ({"source": "coco", "like": "coco"}, ValueError, "superclasses.like is of source='random'"),
        ({"source": "random"}, ValueError, "needs num_superclasses, and num_classes or dataset"),
        ({"source": "random", "num_superclasses": 3}, ValueError, "num_classes=None"),
        ({"source": "random", "like": "x"}, FileNotFoundError, "superclasses.like='x' is neither"),
        (
            {"source": "random", "like": "coco", "num_superclasses": 3},
            ValueError,
            "like must have 80 classes and 3 super-classes",
        ),
    ],
)
def test_wrong_sources(arguments, error, message):
    with pytest.raises(error, match=message):
        superclasses(**arguments)


def test_gin_knows_them(mapping):
    gin = gin_config.load()
    bindings = [
        f"superclasses.source = '{mapping}'",
        "superclasses.dataset = @dataset",
        "dataset.name = 'digits'",
    ]
    gin_config.parse([], bindings)
    try:
        assert gin.get_configurable("superclasses")() == (1, 0) * 5
    finally:
        gin.clear_config()


@pytest.mark.parametrize(
    ("split", "train", "shared"),
    [
        ("train", "train[:99%]", True),
        ("train[99%:]", "train[:99%]", False),
        ("train[98%:]", "train[:99%]", True),
        ("train[50%:60%]", "train[:80%]", True),
        ("train[:100]", "train[100:200]", False),
        ("train[:101]", "train[100:200]", True),
        ("train[:1%]", "train[1000:]", True),
        ("test", "train", False),
        ("restval+test", "train+restval", True),
    ],
)
def test_splits_that_share_images(split, train, shared):
    assert command._overlaps(split, train) == command._overlaps(train, split) == shared


@pytest.mark.parametrize(
    ("held_out", "unused"),
    [("test", "train[80%:]"), ("train[80%:90%]", "train[90%:]"), ("train[80%:]", None)],
)
def test_what_is_reported_is_not_unused(held_out, unused):
    splits = {"train[:80%]": DIGITS.train, held_out: DIGITS.eval}
    own = {"splits": splits, "train_split": "train[:80%]", "eval_split": held_out}
    assert command.unused_split(dataclasses.replace(DIGITS, **own)) == unused
