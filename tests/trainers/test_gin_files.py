"""Every shipped gin file is sound: each run trains two steps in a tiny form."""

import gzip
import re
import struct

import numpy as np
import pytest

from keras_vmoe.trainers import cli, gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import TINY_ENSEMBLE, TINY_VIT, TINY_VMOE

RUNS = sorted(path.name for path in gin_config.SHIPPED.glob("runs/*.gin"))
# Too big to run here: tests/trainers/test_recipes.py takes two steps of each on mock data.
RECIPES = sorted(f"vmoe/{path.name}" for path in gin_config.SHIPPED.glob("runs/vmoe/*.gin"))
# Ensembles, and single models beside them.
ENSEMBLES = sorted(f"e3/{path.name}" for path in gin_config.SHIPPED.glob("runs/e3/*.gin"))
# Most start from a dense model: tests/trainers/test_upcycling_runs.py takes two steps of each.
UPCYCLING = sorted(f"upcycling/{path.name}" for path in gin_config.SHIPPED.glob("runs/upcycling/*"))
# Of image-text pairs: tests/trainers/test_limoe_files.py takes two steps of some on mock data.
LIMOE = sorted(f"limoe/{path.name}" for path in gin_config.SHIPPED.glob("runs/limoe/*.gin"))
# Of whole images: tests/trainers/test_mobile_files.py takes two steps of some on mock data.
MOBILE = sorted(f"mobile_vmoe/{p.name}" for p in gin_config.SHIPPED.glob("runs/mobile_vmoe/*.gin"))
# Dense, with a sparse variant: tests/trainers/test_asvit_files.py takes two steps of some.
ASVIT = sorted(f"asvit/{path.name}" for path in gin_config.SHIPPED.glob("runs/asvit/*.gin"))
TWINS = RUNS + RECIPES + UPCYCLING + LIMOE + MOBILE
ALL = TWINS + ENSEMBLES + ASVIT
FOLDERS = ("models", "data", "augmentation", "recipes")
PARTS = sorted(path for folder in FOLDERS for path in gin_config.SHIPPED.glob(f"{folder}/*"))


def idx_folder(folder):
    """Writes a small fashion_mnist: 64 images to train on, 32 held out."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("t10k", 32)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            with gzip.open(folder / f"{split}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.tobytes())
    return folder


def read(name):
    return (gin_config.SHIPPED / "runs" / name).read_text()


def test_there_are_runs():
    assert {"quickstart.gin", "quickstart_dense.gin"} <= set(RUNS)
    assert {"fashion_mnist.gin", "fashion_mnist_dense.gin"} <= set(RUNS)


@pytest.mark.parametrize("name", [*RUNS, *(n for n in ENSEMBLES if "digits" in n)])
def test_a_run_takes_two_steps(name, tmp_path):
    bindings = ["train.steps=2", "train.batch_size=8", "train.eval_batch_size=16"]
    text = _text_with_includes(name)
    sparse = "@ViT" not in text
    tiny = {"@VMoE": TINY_VMOE, "@ViT": TINY_VIT, "@EfficientEnsemble": TINY_ENSEMBLE}
    bindings += next(own for model, own in tiny.items() if f"train.model = {model}" in text)
    if "fashion_mnist" in name:
        bindings.append(f"dataset.data_dir='{idx_folder(tmp_path)}'")
    words = [f"--gin_bindings={binding}" for binding in bindings]
    workdir = tmp_path / "workdir"
    assert cli.main(["train", f"--gin_file=runs/{name}", f"--workdir={workdir}", *words]) == 0
    row = MetricsLog(workdir / "metrics.jsonl").rows()[-1]
    assert row["step"] == 2
    # A dense twin has no routing to measure or to draw.
    assert any("/" in measure for measure in row) == sparse
    assert (workdir / "routing.png").exists() == sparse


@pytest.mark.parametrize("name", ALL)
def test_a_run_opens_with_what_a_reader_asks_first(name):
    head = read(name).split("\n\n")[0]
    assert f"keras-vmoe train --gin_file=runs/{name}" in head
    for word in ("Hardware:", "Time:", "Expected:"):
        assert word in head


@pytest.mark.parametrize("name", [n for n in TWINS if not n.endswith("_dense.gin")])
def test_a_sparse_run_has_a_dense_twin(name):
    assert name.replace(".gin", "_dense.gin") in TWINS


@pytest.mark.parametrize("name", [n for n in TWINS if n.endswith("_dense.gin")])
def test_a_dense_twin_differs_in_the_model_alone(name):
    assert body(name) == body(name.replace("_dense", ""))


@pytest.mark.parametrize("name", [n for n in ENSEMBLES if not n.endswith("_vmoe.gin")])
def test_an_ensemble_differs_from_its_single_model_in_the_model_alone(name):
    own = name.replace(".gin", "_vmoe.gin")
    single = own if own in ENSEMBLES else name.replace("e3/", "vmoe/")
    assert body(name) == body(single)
    assert f"runs/{single}" in read(name)


def body(name):
    """The lines of a run but for those of its model."""
    lines = [line for line in read(name).splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not line.startswith('include "models/')]


@pytest.mark.parametrize("part", PARTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_part_parses_and_is_used(part):
    gin_config.parse([str(part)], [])
    used = "".join(path.read_text() for path in gin_config.SHIPPED.rglob("*.gin"))
    # The levels of augmentation are a choice: each is there, used or not.
    if not re.match(r"(light|medium|strong|extreme)\d", part.name):
        assert f'include "{part.parent.name}/{part.name}"' in used


def _text_with_includes(name):
    includes = re.findall(r'include "(.+?)"', read(name))
    return read(name) + "".join((gin_config.SHIPPED / path).read_text() for path in includes)
