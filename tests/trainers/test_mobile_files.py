"""The gin files of Mobile V-MoE: what they bind, and steps in a tiny form."""

import numpy as np
import pytest

import keras_vmoe
from keras_vmoe import models, superclass
from keras_vmoe.trainers import cli, configurables, gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.support.unallocated import unallocated
from tests.trainers.test_gin_files import MOBILE

IMAGENET = [name for name in MOBILE if "_imagenet" in name]
SMALL = [name for name in IMAGENET if "x96_" in name or "x64_" in name]


def parse(name, *bindings):
    gin_config.parse([f"runs/{name}"], bindings)
    return configurables.train_config()


def is_dense(name):
    return name.endswith("_dense.gin")


@pytest.fixture(scope="module")
def mapping(tmp_path_factory):
    """Ten super-classes of 1,000 classes, as a file."""
    path = tmp_path_factory.mktemp("mapping") / "superclasses.json"
    superclass.random_superclasses(1000, 10).save(path)
    return f"superclasses.source='{path}'", "superclasses.dataset=None"


def test_every_preset_is_there():
    presets = [name.removeprefix("mobile_vmoe_") for name in keras_vmoe.list_variants("mobile_")]
    wanted = {f"mobile_vmoe/{p}_imagenet{t}.gin" for p in presets for t in ("", "_dense")}
    assert wanted == set(IMAGENET)


@pytest.mark.parametrize("name", IMAGENET)
def test_it_binds_the_recipe_of_its_width(name, mapping):
    config = parse(name, *(() if is_dense(name) else mapping))
    small = name in SMALL
    assert (config.image_size, config.epochs) == (224, 300.0)
    assert (config.batch_size, config.repeats) == ((4096, 1) if small else (1024, 3))
    assert config.label_smoothing == (0.0 if small else 0.1)
    mixes = config.mix or ()
    assert [type(mix).__name__ for mix in mixes] == ([] if small else ["Mixup", "CutMix"])
    optimizer = config.optimizer(total_steps=300_000, steps_per_epoch=1_000)
    peak = float(optimizer._learning_rate(10_000 if small else 5_000))
    assert peak == pytest.approx(3e-3 if small else 1e-3)
    assert float(optimizer._learning_rate(300_000)) == pytest.approx(
        0.0 if small else 1e-5, abs=1e-9
    )
    with unallocated():
        model = config.model(image_size=224, channels=3, num_classes=1000)
    assert model.arguments["stochastic_depth_rate"] == (0.0 if small else 0.1)
    assert model.arguments["routing"] == ("dense" if is_dense(name) else "image")
    assert (model.superclasses is None) == is_dense(name)
    assert models.routes_images(model) != is_dense(name)


def test_cifar100_has_its_own_super_classes():
    import tensorflow_datasets as tfds

    config = parse("mobile_vmoe/cifar100.gin")
    with tfds.testing.mock_data(num_examples=8), unallocated():
        model = config.model(image_size=32, channels=3, num_classes=100)
    assert model.arguments["num_experts"] == 20
    assert np.bincount(model.superclasses).tolist() == [5] * 20


TINY = (
    "train.steps=2",
    "train.batch_size=8",
    "train.eval_batch_size=8",
    "train.image_size=32",
    "train.keep_best=False",
    "train.routing_images=0",
    "from_variant.patch_size=16",
    "from_variant.num_layers=3",
    "from_variant.width=8",
    "from_variant.mlp_dim=16",
    "from_variant.num_heads=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["12x192_imagenet", "6x64_imagenet", "12x192_imagenet_dense"])
def test_it_takes_two_steps(name, mapping, tmp_path):
    import tensorflow_datasets as tfds

    bindings = [*TINY, *(() if name.endswith("_dense") else mapping)]
    words = [f"--gin_bindings={binding}" for binding in bindings]
    file = f"--gin_file=runs/mobile_vmoe/{name}.gin"
    with tfds.testing.mock_data(num_examples=16):
        assert cli.main(["train", file, f"--workdir={tmp_path / 'run'}", *words]) == 0
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").rows()
    assert [row["split"] for row in rows] == ["train", "eval"]
    for row in rows:
        assert ("router_accuracy" in row) == (not name.endswith("_dense"))


def test_a_missing_mapping_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "--gin_file=runs/mobile_vmoe/6x64_imagenet.gin"
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=8):
        assert cli.main(["train", file, *(f"--gin_bindings={b}" for b in TINY)]) == 1
    message = capsys.readouterr().err
    assert "superclasses.source='superclasses/superclasses.json'" in message
    assert "keras-vmoe superclass makes such a file" in message
