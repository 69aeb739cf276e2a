"""A tiny run that begins with the same weights on every backend: `python -m … WORKDIR [WORD ...]`.

The words are flags, or bindings of gin. KERAS_BACKEND says on what it trains.
"""

import sys

import keras
import numpy as np

from keras_vmoe import distribution
from keras_vmoe.trainers import cli, jax_run, run
from tests.support import garbage
from tests.trainers.tiny import arguments

# Without noise: the backends draw other numbers. Slots are scarce, so that the groups matter.
BINDINGS = (
    "VMoE.noise_std=0.0",
    "VMoE.images_per_group=4",
    "VMoE.capacity_factor=0.9",
    "train.mix=@Mixup()",
    "train.batch_size=32",
    "train.checkpoint_every=3",
)


def with_drawn_weights(build):
    """The same weights, whatever random numbers a backend has."""

    def built(self):
        model, optimizer = build(self)
        rng = np.random.default_rng(1)
        for variable in model.trainable_variables:
            value = rng.normal(0, 0.3, tuple(variable.shape)).astype("float32")
            if keras.backend.backend() == "jax":
                distribution.assign(variable, value, self.mesh)
            else:
                variable.assign(value)
        return model, optimizer

    return built


def main(workdir, *words):
    garbage.search_seldom()
    for maker in (run.Run, jax_run.JaxRun):
        maker._build = with_drawn_weights(maker._build)
    bindings = [word for word in words if word[:2] != "--"]
    flags = [word for word in words if word[:2] == "--"]
    return cli.main([*arguments(workdir, *BINDINGS, *bindings), *flags])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
