"""A tiny run in a process of its own, on as many virtual CPUs as wanted.

python -m tests.trainers.run_on_devices DEVICES WORKDIR [BINDING]...

With SECONDS_A_STEP in the environment, each step takes that much longer; with TASK=pairs a LIMoE
learns image-text pairs.
"""

import os
import sys
import time

from tests.support import garbage
from tests.trainers.tiny import SHORT, TINY_LIMOE, arguments

# Without noise, and with capacity so scarce that the groups matter.
BINDINGS = (
    "train.steps=5",
    "train.log_every=1",
    "train.eval_every=5",
    "train.eval_batch_size=64",
    "train.augment=None",
    "VMoE.noise_std=0.0",
    "VMoE.images_per_group=4",
    "VMoE.capacity_factor=0.9",
)
# Few of the held-out pairs: an evaluation is of no use here but for its loss.
PAIRS = (
    *(binding for binding in BINDINGS if not binding.startswith("VMoE.")),
    "pairs.name='labelled:digits'",
    "train.retrieval=None",
    "train.zero_shot=None",
    "train.few_shot=None",
    "LIMoE.noise_std=0.0",
    "LIMoE.pairs_per_group=4",
    "LIMoE.capacity_factor=0.9",
    # The mean over replicas of these is that of one device; entropies of means are none.
    "LIMoE.auxiliary_losses=('importance', 'z', 'local_image')",
)


def main(devices: int, workdir: str, *bindings: str) -> int:
    import tensorflow as tf

    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(cpu, logical)
    from keras_vmoe.trainers import cli, run

    on_step, seconds = run.Run._on_step, float(os.environ.get("SECONDS_A_STEP", "0"))

    def delayed(self, step: int) -> None:
        time.sleep(seconds)
        on_step(self, step)

    run.Run._on_step = delayed
    garbage.search_seldom()
    if os.environ.get("TASK") == "pairs":
        options = {"gin_file": "runs/limoe/quickstart.gin", "tiny": TINY_LIMOE + SHORT}
        return cli.main(arguments(workdir, *PAIRS, *bindings, **options))
    return cli.main(arguments(workdir, *BINDINGS, *bindings))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
