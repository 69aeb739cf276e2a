"""What a run learns: how pairs are judged."""

import numpy as np
import pytest

from keras_vmoe import data, ops
from keras_vmoe.trainers import configurables, gin_config
from keras_vmoe.trainers.tasks import make_task
from tests.trainers.tiny import SHORT, TINY_LIMOE


@pytest.fixture(scope="module")
def task():
    pairs = ("pairs.name='labelled:digits'", "LIMoE.pairs_per_group=2")
    gin_config.parse(["runs/limoe/quickstart.gin"], [*TINY_LIMOE, *SHORT, *pairs])
    config = configurables.train_config()
    source = config.dataset()
    source.eval = data.select(source.eval, np.arange(5))
    return make_task(config, source)


@pytest.fixture(scope="module")
def model(task):
    return task.make_model()


@pytest.mark.parametrize("size", [4, 5, 8])
def test_held_out_pairs_are_told_apart_from_real_ones_alone(task, model, size):
    """Those that fill up the last batch are no counterparts."""
    pairs = 0
    for batch in task.held_out_batches(size):
        assert batch["image"].shape[0] == size
        outputs = model(task.inputs(batch))
        real = np.asarray(batch["mask"]).astype(bool)
        found = [np.asarray(values)[real] for values in task.judge(batch, outputs, training=False)]
        own = ops.pair_logits(
            np.asarray(outputs["image_embedding"])[real],
            np.asarray(outputs["text_embedding"])[real],
            np.asarray(outputs["logit_scale"])[real],
        )
        np.testing.assert_allclose(
            found[0], np.asarray(ops.contrastive_loss(own)), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(found[1], np.asarray(ops.contrastive_hits(own)))
        pairs += real.sum()
    assert pairs == 5
