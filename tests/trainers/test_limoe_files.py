"""The gin files of runs on image-text pairs: what they bind, and steps in a tiny form."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import models
from keras_vmoe.trainers import cli, configurables, gin_config, optimizers
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.test_gin_files import LIMOE, read

SIZES = ("s32", "s16", "b32", "b16", "l16", "h14")
LARGE = [name for name in LIMOE if "_coco" in name or "_web" in name]
# Runs on web pairs and on COCO have the same models.
MODELS = [name for name in LIMOE if "_coco" not in name]
SHAPE = ("patch_size=16", "num_layers=2", "width=8", "mlp_dim=16", "num_heads=2")
SPARSE = ("placement=(1,)", "num_experts=8")
WORDS = ("a cat on a mat", "a dog in a bed", "one cow", "two hens", "a hen and a cow", "no cat")


def parse(name, *bindings):
    gin_config.parse([f"runs/{name}"], bindings)
    return configurables.train_config()


def is_sparse(name):
    return not name.endswith("_dense.gin")


def tiny(name):
    """Bindings of a model that a test can afford."""
    kind = "TwoTower" if "two_tower" in name else "from_variant" if name in LARGE else "LIMoE"
    sizes = SHAPE + (SPARSE if is_sparse(name) else ())
    if kind == "TwoTower" and is_sparse(name):
        sizes += ("text_placement=(1,)",)
    return [f"{kind}.{size}" for size in sizes]


@functools.cache
def make_model(name):
    config = parse(name, *tiny(name), "train.image_size=32")
    return config.model(image_size=32, channels=3, vocabulary_size=20, text_length=4, eos_id=1)


def test_every_size_is_there_on_either_data():
    runs = [f"{size}_{data}" for size in (*SIZES, "b16_two_tower") for data in ("coco", "web")]
    runs += ["quickstart", "garments"]
    assert {f"limoe/{name}{twin}.gin" for name in runs for twin in ("", "_dense")} == set(LIMOE)
    assert {f"limoe_{size}" for size in SIZES} < set(models.list_variants("limoe_"))


@pytest.mark.parametrize("name", LIMOE)
def test_it_binds_a_whole_run(name):
    config = parse(name)
    assert config.image_size == (224 if name in LARGE else 32)
    assert (config.crop, config.augment, config.mix) == (None, None, None)
    measured = {type(x).__name__ for x in config.measurements}
    assert measured == {"Retrieval", "ZeroShot"} | (set() if name in LARGE else {"FewShot"})
    optimizer = config.optimizer(total_steps=100_000, steps_per_epoch=1_000)
    assert float(optimizer._learning_rate(20_000)) > 0


@pytest.mark.parametrize("name", [name for name in LIMOE if "_web" in name])
def test_runs_differ_by_their_data_alone(name):
    """So that what holds of the model of one holds of the other's."""
    lines = {line for line in read(name).splitlines() if line.startswith('include "models/')}
    others = read(name.replace("_web", "_coco")).splitlines()
    assert lines == {line for line in others if line.startswith('include "models/')}


@pytest.mark.parametrize("name", MODELS)
def test_it_makes_its_model(name):
    optimizer = parse(name).optimizer(total_steps=100_000, steps_per_epoch=1_000)
    model = make_model(name)
    optimizer.build(model.trainable_variables)
    assert isinstance(model, models.TwoTower if "two_tower" in name else models.LIMoE)
    assert models.is_sparse(model) == is_sparse(name)
    kind = "sigmoid" if "two_tower" in name and is_sparse(name) else "softmax"
    assert model.arguments["loss"] == kind
    assert all(layer.router.num_selected == 1 for layer in models.moe_layers(model))
    decayed = [v.path for v in model.trainable_variables if optimizer.rules._rate_of(v.path)]
    assert all(path.endswith("kernel") for path in decayed)
    assert any("experts/" in path for path in decayed) == is_sparse(name)


@pytest.mark.parametrize("name", [name for name in LARGE if "b16" in name and is_sparse(name)])
def test_evaluation_drops_little(name):
    """Of each, as its model is made in another way than by the name of its class."""
    factors = [moe.router.eval_capacity_factor for moe in models.moe_layers(make_model(name))]
    assert len(factors) == (2 if "two_tower" in name else 1)
    assert set(factors) == {4.0}


@pytest.mark.parametrize("name", [name for name in LARGE if "two_tower" not in name])
def test_the_model_is_the_preset_of_its_name(name):
    parse(name)
    gin = gin_config.load()
    size = name.removeprefix("limoe/").split("_")[0]
    assert gin.query_parameter("from_variant.name") == f"limoe_{size}"
    if not is_sparse(name):
        assert gin.query_parameter("from_variant.placement") == "none"


@pytest.mark.parametrize("name", [name for name in MODELS if not is_sparse(name)])
def test_twins_differ_in_their_experts_alone(name):
    dense, sparse = (make_model(n).arguments for n in (name, name.replace("_dense", "")))
    experts = {"placement", "text_placement", "num_experts", "shared_expert_init", "name"}
    experts |= {"loss", "eval_capacity_factor"} if "two_tower" in name else set()
    assert {n for n, value in dense.items() if sparse[n] != value} <= experts


def test_the_settings_of_the_recipe_arrive():
    web = parse("limoe/b16_web.gin")
    assert (web.batch_size, web.steps) == (16_384, 781_250)
    optimizer = web.optimizer(total_steps=web.steps, steps_per_epoch=200_000)
    assert isinstance(optimizer, optimizers.Adafactor)
    assert optimizer.global_clipnorm == 1.0
    assert optimizer.rules.weight_decay == ((".*kernel", 0.1),)
    rates = [float(optimizer._learning_rate(step)) for step in (10_000, 40_000, 731_250, 781_250)]
    assert rates == pytest.approx([1e-3, 5e-4, 1e-3 / 73.125**0.5, 0.0], rel=1e-4)
    coco = parse("limoe/b16_coco.gin")
    assert (coco.batch_size, coco.steps, coco.epochs) == (1024, None, 50.0)
    rate = coco.optimizer(total_steps=5_500, steps_per_epoch=110)._learning_rate
    assert [float(rate(step)) for step in (500, 5_500)] == pytest.approx([1e-3, 0.0])


def picture(index, size):
    return tf.io.encode_png(np.full((*size, 3), 15 * index, np.uint8)).numpy()


def mock_data(count):
    """Pictures of any size with several captions, and labelled ones, as tfds leaves them."""
    import tensorflow_datasets as tfds

    def as_dataset(self, split, decoders=None, **unused):
        labelled = self.name == "cifar100"

        def examples():
            for index in range(count):
                size = (32, 32) if labelled else (20 + index, 30)
                texts = [WORDS[index % len(WORDS)], f"{index} things"]
                own = {"label": index} if labelled else {"captions": {"text": texts}}
                yield {"image": picture(index, size), **own}

        label = {"label": tf.TensorSpec((), tf.int64)}
        captions = {"captions": {"text": tf.TensorSpec((None,), tf.string)}}
        spec = {"image": tf.TensorSpec((), tf.string), **(label if labelled else captions)}
        found = tf.data.Dataset.from_generator(examples, output_signature=spec)
        return found.apply(tf.data.experimental.assert_cardinality(count))

    return tfds.testing.mock_data(num_examples=count, as_dataset_fn=as_dataset)


def caption_folder(folder):
    for split, count in (("train", 16), ("test", 8)):
        (folder / split).mkdir(parents=True)
        lines = []
        for index in range(count):
            (folder / split / f"{index}.png").write_bytes(picture(index, (20 + index, 30)))
            lines.append(f"{index}.png\t{WORDS[index % len(WORDS)]} {index}\n")
        (folder / split / "captions.tsv").write_text("".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b16_coco", "b16_two_tower_coco", "b16_two_tower_web_dense"])
def test_it_takes_two_steps(name, tmp_path):
    name, workdir = f"limoe/{name}.gin", tmp_path / "workdir"
    bindings = [*tiny(name), "train.steps=2", "train.batch_size=8", "train.eval_batch_size=8"]
    bindings += ["train.image_size=32", "train.keep_best=False", "train.routing_images=0"]
    bindings += ["ZeroShot.templates='class_name_only'"]
    if "_web" in name:
        bindings += [f"pairs.name='caption_folder:{caption_folder(tmp_path / 'pairs')}'"]
    words = [f"--gin_bindings={binding}" for binding in bindings]
    with mock_data(16):
        assert cli.main(["train", f"--gin_file=runs/{name}", f"--workdir={workdir}", *words]) == 0
    row = MetricsLog(workdir / "metrics.jsonl").rows()[-1]
    assert (row["step"], row["split"]) == (2, "eval")
    assert 0 <= row["retrieval/text_to_image@10"] <= 1
    assert 0 <= row["zeroshot/cifar100"] <= 1
    assert any("_moe/" in measure for measure in row) == is_sparse(name)
