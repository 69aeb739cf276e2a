"""The gin files of As-ViT: what they bind, and steps in a tiny form."""

import pytest

import keras_vmoe
from keras_vmoe import analysis, models
from keras_vmoe.trainers import cli, configurables, gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.support.unallocated import unallocated
from tests.trainers.test_gin_files import ASVIT, body, read

IMAGENET = [name for name in ASVIT if "/asvit_" in name]
RETOKENIZED = [name for name in ASVIT if name.endswith("_retokenized.gin")]
DEPTH_RATES = {"s": 0.1, "b": 0.2, "l": 0.3}


def parse(name):
    gin_config.parse([f"runs/{name}"], ())
    return configurables.train_config()


def test_every_preset_is_there():
    sizes = [name for name in keras_vmoe.list_variants("asvit_") if "search" not in name]
    plain = {f"asvit/{size}{kind}.gin" for size in sizes for kind in ("", "_retokenized")}
    assert {*plain, "asvit/asvit_s_moe.gin"} == set(IMAGENET)


@pytest.mark.parametrize("name", IMAGENET)
def test_it_binds_the_recipe(name):
    config = parse(name)
    assert (config.image_size, config.epochs, config.batch_size) == (224, 300.0, 1024)
    assert (config.label_smoothing, config.eval_crop.resize) == (0.1, 249)
    assert [type(mix).__name__ for mix in config.mix] == ["Mixup", "CutMix"]
    optimizer = config.optimizer(total_steps=300_000, steps_per_epoch=1_000)
    assert float(optimizer._learning_rate(20_000)) == pytest.approx(1e-3)
    assert float(optimizer._learning_rate(300_000)) == pytest.approx(0.0, abs=1e-9)
    with unallocated():
        model = config.model(image_size=224, channels=3, num_classes=1000)
    size = name.split("_")[1].removesuffix(".gin")
    assert model.arguments["stochastic_depth_rate"] == DEPTH_RATES[size]
    assert model.arguments["pos_emb"] == "absolute"
    assert models.is_sparse(model) == name.endswith("_moe.gin")


@pytest.mark.parametrize("name", RETOKENIZED)
def test_a_retokenized_run_differs_in_its_phases_alone(name):
    plain = name.replace("_retokenized", "")
    *lines, phases = (line for line in read(name).splitlines() if line and line[0] != "#")
    assert lines == [line for line in read(plain).splitlines() if line and line[0] != "#"]
    assert phases.startswith("train.retokenization = ")


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_the_header_tells_what_the_phases_save(size):
    name = f"asvit/asvit_{size}_retokenized.gin"
    config = parse(name)
    cost = analysis.retokenization_cost(f"asvit_{size}", config.retokenization, config.epochs)
    assert f"saves {cost.saved:.1%} of the FLOPs" in read(name)


def test_the_sparse_run_differs_in_the_model_alone():
    assert body("asvit/asvit_s_moe.gin") == body("asvit/asvit_s.gin")


TINY = (
    "train.steps=2",
    "train.batch_size=8",
    "train.eval_batch_size=8",
    "train.image_size=32",
    "train.keep_best=False",
    "train.routing_images=0",
    "from_variant.genotype='8,2,2|2,1,2|2,1,2|2,1,2|8,8'",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asvit_s_retokenized", "asvit_s_moe"])
def test_it_takes_two_steps(name, tmp_path):
    import tensorflow_datasets as tfds

    bindings = list(TINY)
    if "retokenized" in name:
        bindings.append("train.retokenization=((0.5, 16, 5),)")
    words = [f"--gin_bindings={binding}" for binding in bindings]
    file = f"--gin_file=runs/asvit/{name}.gin"
    with tfds.testing.mock_data(num_examples=16):
        assert cli.main(["train", file, f"--workdir={tmp_path / 'run'}", *words]) == 0
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").rows()
    assert [row["split"] for row in rows] == ["train", "eval"]
    assert rows[0].get("token_stride") == (4 if "retokenized" in name else None)
    assert any("/" in measure for measure in rows[1]) == name.endswith("_moe")
