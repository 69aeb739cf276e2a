"""The training step of a config, for any mesh and any number of blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras

from keras_vmoe import distribution, models
from keras_vmoe.distribution.grid import parse_sizes
from keras_vmoe.distribution.storage import unallocated

if TYPE_CHECKING:
    from keras_vmoe.trainers.config import TrainConfig


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a run of some length: that of the run does not change the program.

    Args:
        config: of the run.
    """
    return config.optimizer(total_steps=config.steps or 10**6, steps_per_epoch=10**3)


class Steps:
    """Makes the training step of a config, for any mesh and any number of blocks.

    Args:
        config: of the run.
        num_classes: of its dataset.
        channels: of its images.
        **changes: arguments of the model that win over the config's.
    """

    def __init__(
        self, config: TrainConfig, num_classes: int, channels: int, **changes: Any
    ) -> None:
        self.config, self.num_classes, self.channels = config, num_classes, channels
        self.changes = changes
        self.model = self._model()
        self.blocks = self.model.arguments["num_layers"]

    @property
    def sparse_blocks(self) -> int:
        """How many of the blocks have experts."""
        return len(models.moe_layers(self.model))

    @property
    def num_experts(self) -> int:
        """The experts of a layer; 1 where there are none."""
        layers = models.moe_layers(self.model)
        return layers[0].router.num_experts if layers else 1

    @property
    def kernels(self) -> set[tuple[int, ...]]:
        """The shapes of an expert's kernels."""
        return {
            tuple(kernel.shape[1:])
            for layer in models.moe_layers(self.model)
            for kernel in (layer.experts.hidden_kernel, layer.experts.output_kernel)
        }

    @property
    def batch(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of a batch."""
        config, count = self.config, self.config.batch_size
        image = (count, config.image_size, config.image_size, self.channels)
        label = (
            ((count,), "int32") if config.mix is None else ((count, self.num_classes), "float32")
        )
        return {"image": (image, "float32"), "label": label}

    def step(
        self, mesh: distribution.JaxMesh, blocks: tuple[int, int] | None = None
    ) -> distribution.JaxTrainStep:
        """Makes a step without values.

        Args:
            mesh: of what devices.
            blocks: how many, and how many of them have experts; None: as in the config.
        """
        model = self.model if blocks is None else self._model(*blocks)
        optimizer = make_optimizer(self.config)
        with unallocated():
            optimizer.build(model.trainable_variables)

        return distribution.JaxTrainStep(
            mesh, model, optimizer, self.config.image_losses, predict=self.config.class_logits
        )

    def _model(self, num_layers: int | None = None, sparse: int = 0) -> keras.Model:
        changes = dict(self.changes)
        if num_layers is not None:
            changes["num_layers"] = num_layers
            if self.sparse_blocks:
                # Those that have experts are the last of the odd ones.
                changes["placement"] = tuple(range(num_layers - 1, 0, -2))[:sparse][::-1]
        with unallocated():
            return self.config.model(
                image_size=self.config.image_size,
                channels=self.channels,
                num_classes=self.num_classes,
                **changes,
            )


def make_mesh(
    steps: Steps, topology: distribution.Topology, sizes: str | None
) -> distribution.JaxMesh:
    """Returns a mesh of the devices of a slice.

    Args:
        steps: whose experts are split.
        topology: the slice.
        sizes: such as "batch:2,expert:4"; None: as many devices for the experts as divide them.

    Raises:
        ValueError: sizes that do not make the number of chips.
    """
    chips = topology.chips
    expert = math.gcd(chips, steps.num_experts)
    if sizes is None:
        return distribution.JaxMesh(chips // expert, expert, topology.devices())
    given = parse_sizes(sizes)
    if (count := math.prod(given.values())) != chips:
        raise ValueError(
            f"--mesh={sizes} is of {count} devices, but {topology} has {chips} chips, and batch * "
            f"expert must be that; left out, it is batch:{chips // expert},expert:{expert}"
        )
    return distribution.JaxMesh(**given, devices=topology.devices())
