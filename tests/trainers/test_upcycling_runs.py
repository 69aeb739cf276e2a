"""Every run of runs/upcycling takes two steps in a tiny form, from a dense model if need be."""

import pytest

from keras_vmoe import models
from keras_vmoe.trainers import cli, configurables, gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers import test_recipes
from tests.trainers.test_gin_files import UPCYCLING, idx_folder
from tests.trainers.tiny import TINY_VIT, TINY_VMOE

MINIATURES = [name for name in UPCYCLING if "fashion_mnist" in name]
OF_THE_PAPER = [name for name in UPCYCLING if name not in MINIATURES]
SHORT = ("train.steps=2", "train.batch_size=8", "train.eval_batch_size=16", "train.keep_best=False")
JFT = (
    *test_recipes.TINY,
    "dataset.name='imagenet2012'",
    "dataset.train_split='train'",
    "dataset.eval_split='validation'",
)


def train(name, workdir, bindings):
    words = [f"--gin_bindings={binding}" for binding in bindings]
    return cli.main(["train", f"--gin_file=runs/{name}", f"--workdir={workdir}", *words])


def last_row(workdir):
    return MetricsLog(workdir / "metrics.jsonl").rows()[-1]


def rate(name, step, total_steps=1_000_000, *bindings):
    gin_config.parse([f"runs/{name}"], ["train.init_from='dense'", *bindings])
    make = configurables.train_config().optimizer
    return float(make(total_steps=total_steps, steps_per_epoch=468)._learning_rate(step))


def test_the_miniatures_take_two_steps(tmp_path, capsys):
    data = (*SHORT, f"dataset.data_dir='{idx_folder(tmp_path)}'", "train.routing_images=0")
    base = tmp_path / "scratch_dense"
    for name in sorted(MINIATURES, key=lambda name: "scratch" not in name):
        model = TINY_VIT if name.endswith("_dense.gin") else TINY_VMOE
        workdir = tmp_path / name.removeprefix("upcycling/fashion_mnist").strip("_")[:-4]
        goes_on = "scratch" not in name
        start = (f"train.init_from='{base}'",) if goes_on else ()
        assert train(name, workdir, (*data, *model, *start)) == 0
        assert (f"weights  from {base}" in capsys.readouterr().out) == goes_on
        sparse = any("moe/" in measure for measure in last_row(workdir))
        assert sparse != name.endswith("_dense.gin")


@pytest.mark.parametrize("name", MINIATURES)
def test_the_learning_rate_goes_on(name):
    assert len(MINIATURES) == 4
    base = "upcycling/fashion_mnist_scratch_dense.gin"
    stood = rate(base, 1872, 1872)
    # 1872 steps are four epochs, 234 of them the warm-up.
    assert stood == pytest.approx(2e-3 / (1 + (1872 - 234) / 1000) ** 0.5)
    assert rate(name, 0) == pytest.approx(0 if "scratch" in name else stood)


@pytest.mark.parametrize("name", [name for name in UPCYCLING if not name.endswith("_dense.gin")])
def test_the_sparse_blocks_are_those_of_the_paper(name):
    gin_config.parse([f"runs/{name}"], ["train.init_from='dense'"])
    config = configurables.train_config()
    assert config.upcycle == config.keep_head == ("scratch" not in name)
    model = config.model(image_size=28 if name in MINIATURES else 32, channels=1, num_classes=10)
    blocks = model.arguments["num_layers"]
    assert len(models.moe_layers(model)) == blocks // 2
    assert model.arguments["placement"] == f"final_{blocks // 2}"
    assert model.arguments["router"] == "expert_choice"
    assert model.arguments["capacity_factor"] == 2.0
    assert model.arguments["renormalise_gates"]
    assert model.arguments["num_experts"] == (8 if name in MINIATURES else 32)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_it_binds_a_whole_run(name):
    gin_config.parse([f"runs/{name}"], ["train.init_from='dense'"])
    config = configurables.train_config()
    assert (config.image_size, config.loss, config.batch_size) == (224, "sigmoid", 4096)
    assert config.keep_head
    assert rate(name, 0) == pytest.approx(1e-3 / (1 + 502_000 / 10_000) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_it_takes_two_steps(name, tmp_path):
    import tensorflow_datasets as tfds

    dense = name.replace(".gin", "_dense.gin") if not name.endswith("_dense.gin") else name
    sparse = () if dense == name else ("from_variant.placement=(1,)", "from_variant.num_experts=4")
    with tfds.testing.mock_data(num_examples=16):
        assert train(dense, tmp_path / "base", (*JFT, "rsqrt.first_step=0")) == 0
        start = f"train.init_from='{tmp_path / 'base'}'"
        assert train(name, tmp_path / "workdir", (*JFT, *sparse, start)) == 0
    row = last_row(tmp_path / "workdir")
    assert (row["step"], row["split"]) == (2, "eval")
    assert any("/" in measure for measure in row) == bool(sparse)
