"""Every recipe of the papers, in a tiny form and on mocked data."""

import json
import re

import numpy as np
import pytest

from keras_vmoe import models
from keras_vmoe.trainers import cli, configurables, gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.support.golden import FOLDER
from tests.support.unallocated import unallocated
from tests.trainers.test_gin_files import ENSEMBLES, RECIPES

ENSEMBLE_RECIPES = [name for name in ENSEMBLES if "digits" not in name]

TINY = (
    "train.steps=2",
    "train.batch_size=8",
    "train.eval_batch_size=8",
    "train.image_size=32",
    "train.keep_best=False",
    "train.routing_images=0",
    "from_variant.patch_size=16",
    "from_variant.num_layers=2",
    "from_variant.width=8",
    "from_variant.mlp_dim=16",
    "from_variant.num_heads=2",
)
TINY_SPARSE = ("from_variant.placement=(1,)", "from_variant.num_experts=4")
# Sets that tensorflow_datasets does not know are mocked by one that it knows.
STAND_INS = {"imagenet21k": "imagenet2012", "jft300m": "imagenet2012"}


def parse(name, *bindings):
    gin_config.parse([f"runs/{name}"], bindings)
    return configurables.train_config()


def dataset_of(name):
    text = (gin_config.SHIPPED / "runs" / name).read_text()
    data = re.search(r'include "(data/.+?)"', text)[1]
    return re.search(r'dataset.name = "(.+?)"', (gin_config.SHIPPED / data).read_text())[1]


@pytest.mark.parametrize("name", RECIPES + ENSEMBLE_RECIPES)
def test_it_binds_a_whole_run(name):
    config = parse(name)
    assert config.image_size in (128, 224, 384)
    assert config.crop is not None
    assert config.loss == ("softmax" if "finetune" in name else "sigmoid")
    assert (config.steps is not None) == ("finetune" in name)


def tiny(name):
    """The bindings of a tiny form."""
    bindings = [*TINY, *(() if name.endswith("_dense.gin") else TINY_SPARSE)]
    dataset = dataset_of(name)
    if dataset in STAND_INS:
        bindings += [f"dataset.name='{STAND_INS[dataset]}'"]
        bindings += ["dataset.train_split='train'", "dataset.eval_split='validation'"]
    return bindings


def alike():
    """Recipes whose tiny forms bind the same names to the same things, but for their numbers."""
    found = {}
    for name in RECIPES + ENSEMBLE_RECIPES:
        gin_config.parse([f"runs/{name}"], tiny(name))
        text = re.sub(r"#.*|.*train.epochs.*", "", gin_config.load().config_str())
        # Of a variant the model's class is left, which has all its sizes from the tiny form.
        text = re.sub(r"'(vit|vmoe|eee)_\w+'", r"'\1'", text)
        text = re.sub(r"-?\b\d[\d.]*(e-?\d+)?", "0", text)
        found.setdefault(text, []).append(name)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("names", alike(), ids=" ".join)
def test_it_takes_two_steps(names, tmp_path):
    """The first of those that are alike does; of the others, what their numbers make is made."""
    import tensorflow_datasets as tfds

    first, *others = names
    words = [f"--gin_bindings={binding}" for binding in tiny(first)]
    with tfds.testing.mock_data(num_examples=16):
        code = cli.main(
            ["train", f"--gin_file=runs/{first}", f"--workdir={tmp_path / 'workdir'}", *words]
        )
    assert code == 0
    row = MetricsLog(tmp_path / "workdir" / "metrics.jsonl").rows()[-1]
    assert (row["step"], row["split"]) == (2, "eval")
    assert any("/" in measure for measure in row) == (not first.endswith("_dense.gin"))
    for name in others:
        config = parse(name, *tiny(name))
        model = config.model(image_size=config.image_size, channels=3, num_classes=10)
        optimizer = config.optimizer(total_steps=100_000, steps_per_epoch=1_000)
        optimizer.build(model.trainable_variables)
        assert np.isfinite(model(np.zeros((1, 32, 32, 3), "float32"))).all()
        assert float(optimizer._learning_rate(20_000)) > 0


def optimizer_of(name, **settings):
    return parse(name).optimizer(total_steps=100_000, steps_per_epoch=1_000, **settings)


SPARSE = [name for name in RECIPES if not name.endswith("_dense.gin")]


@pytest.mark.parametrize("name", SPARSE)
def test_the_sparse_blocks_are_those_of_the_papers(name):
    parse(name)
    gin = gin_config.load()

    def bound(argument, default=None):
        try:
            return gin.query_parameter(f"from_variant.{argument}")
        except ValueError:
            return default

    assert bound("num_selected") == 2
    assert bound("num_experts") == (32 if "_jft" in name else 8)
    assert (
        bound("placement")
        == {"every2": "every_2", "last2": "last_2", "last5": "last_5"}[name.split("_")[1]]
    )
    # No recipe of the paper or of the released code switches it on.
    assert bound("batch_priority") is False
    assert bound("capacity_factor") == (1.5 if "finetune" in name else 1.05)
    small = any(task in name for task in ("pets", "flowers", "vtab"))
    scratch = name == "vmoe/s32_last2_imagenet.gin"
    assert bound("expert_dropout_rate") == (0.1 if small else 0.2 if scratch else None)
    assert bound("eval_capacity_factor") == (4.0 if scratch else None)


@pytest.mark.parametrize("name", [name for name in RECIPES if "finetune" not in name])
def test_weight_decay_is_that_of_the_papers(name):
    rules = optimizer_of(name).rules.weight_decay
    assert rules == (0.1 if "_jft" in name else ((".*kernel", 0.1),))


def test_the_ensemble_is_that_of_the_released_config():
    tree = json.loads((FOLDER / "param_tree_eee_s32_last2_ft_cifar100.json").read_text())
    config = parse("e3/s32_last2_finetune_cifar100.gin")
    assert (config.batch_size, config.steps, config.image_size) == (1024, 2000, 128)
    with unallocated():
        released = models.from_reference_config(tree["config"], image_size=128)
        ours = config.model(image_size=128, channels=3, num_classes=100)
    # Defaults in other words; and what is moved is rounded where the hardware wants it.
    words = {"placement", "patch_size", "capacity_rounding", "capacity_multiple_of", "noise_std"}
    words |= {"expert_dropout_rate", "dispatch_dtype"}
    assert {n for n, v in released.arguments.items() if ours.arguments[n] != v} <= words
    ours, released = (models.moe_layers(model) for model in (ours, released))
    for one, other in zip(ours, released, strict=True):
        assert one.router.get_config() == {
            **other.router.get_config(),
            "seed": one.router.seed,
        }
        assert one.experts.dropout_rate == other.experts.dropout_rate == 0.0
    rate = config.optimizer(total_steps=2000, steps_per_epoch=48)._learning_rate
    assert float(rate(200)) == pytest.approx(5e-3)


def test_the_settings_of_the_papers_arrive():
    upstream = optimizer_of("vmoe/h14_last5_jft.gin")
    assert upstream.global_clipnorm == 10.0
    assert float(upstream._learning_rate(10_000)) == pytest.approx(3e-4)
    assert float(upstream._learning_rate(100_000)) == pytest.approx(1e-5)
    assert optimizer_of("vmoe/b16_every2_jft.gin").global_clipnorm is None
    public = parse("vmoe/s32_last2_imagenet.gin")
    assert (public.batch_size, public.epochs) == (8192, 300.0)
    assert public.mix.concentration == 0.2
    assert [type(x).__name__ for x in public.augment] == ["Flip", "RandAugment"]
    assert (public.augment[1].layers, public.augment[1].magnitude) == (2, 10)
    tuned = parse("vmoe/b16_every2_finetune_imagenet384.gin")
    assert (tuned.steps, tuned.image_size, tuned.batch_size) == (10_000, 384, 1024)
    rate = tuned.optimizer(total_steps=10_000, steps_per_epoch=1_251)._learning_rate
    assert float(rate(500)) == pytest.approx(3e-3)
    assert float(rate(10_000)) == pytest.approx(1e-5, rel=1e-3)
