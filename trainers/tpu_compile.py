"""`keras-vmoe tpu-compile`: what a run needs on a TPU, by the TPU's compiler, without a TPU."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from keras_vmoe import text
from keras_vmoe.trainers import command_line, gin_config
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    import keras

    from keras_vmoe.distribution import JaxMesh, JaxTrainStep, StepCost, Topology
    from keras_vmoe.trainers.config import TrainConfig

GIB = 2**30
# Of sets that need not be here to know how many classes they have.
NUM_CLASSES = {
    "imagenet2012": 1000,
    "imagenet21k": 21843,
    "jft300m": 18291,
    "cifar10": 10,
    "cifar100": 100,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
}
# What the compiler leaves to programs: 15.75 of 16 GiB.
USABLE = 15.75 / 16

_SYNOPSIS = "tpu-compile --gin_file=FILE --topology=FAMILY[:SHAPE] [--mesh=batch:B,expert:E] ..."
_TEXT = """
Compiles the training step of a gin file for a slice of TPUs with the TPU's own compiler, on this
machine, and prints what a chip needs: memory, FLOPs, bytes, exchanges between chips. No TPU, no
data and no weights are needed. It runs on the JAX backend, on a mesh of keras_vmoe.distribution.

  keras-vmoe tpu-compile --gin_file=runs/vmoe/s32_last2_imagenet.gin --topology=v5e:2x4
  keras-vmoe tpu-compile --gin_file=runs/vmoe/b16_every2_jft.gin --topology=v5e:4x8 --blocks=2,4
  keras-vmoe tpu-compile --gin_file=runs/vmoe/l16_every2_jft.gin --topology=v5e --quick --remat

A family without a shape looks for the smallest slice on which the run fits: slices are tried by 2
and 4 blocks, and the whole model is compiled on the one that is found.
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    for name, help_text in (
        ("gin_file", "A gin file: a path, or one that is shipped. Repeatable."),
        ("gin_bindings", "A binding that wins, such as train.batch_size=1024. Repeatable."),
    ):
        flags.DEFINE_multi_string(name, [], help_text, flag_values=values)
    for name, help_text in (
        ("topology", "A slice, such as v5e:4x8, or a family (v4, v5e, v5p, v6e)."),
        ("mesh", "batch:B,expert:E. Default: as many for experts as divide them."),
        ("dtype", "Precision of the model. Default: mixed_bfloat16, which TPUs are made for."),
    ):
        default = "mixed_bfloat16" if name == "dtype" else None
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    flags.DEFINE_boolean(
        "remat", None, "Recompute blocks in the backward pass. Default: as the gin file has it.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_classes", None, "Classes, where the dataset is not here.", 1, flag_values=values
    )
    flags.DEFINE_list(
        "blocks", None, "Compile models of 2,4 blocks instead, and extrapolate.", flag_values=values
    )
    flags.DEFINE_boolean(
        "quick", False, "Compile in a fifth of the time, to a program of more memory.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe tpu-compile`.

    Args:
        argv: the words after `tpu-compile`.

    Returns:
        The exit code: 0 where the run fits, 1 where it does not.

    Raises:
        UsageError: a wrong command line.
        ValueError: a slice that does not exist, a wrong name or value in a gin file, a mesh that
            does not fit the slice, the batch or the experts.
        ImportError: without `jax[tpu]`.
    """
    values = _flags()
    words = command_line.parse(values, argv, "tpu-compile")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if words:
        raise UsageError(f"tpu-compile: unexpected {words[0]!r}; see keras-vmoe tpu-compile --help")
    for name in ("gin_file", "topology"):
        if not values[name].value:
            raise UsageError(f"tpu-compile: --{name} is missing; see keras-vmoe tpu-compile --help")
    if values.blocks is not None and values.blocks != ["2", "4"]:
        raise UsageError(
            f"tpu-compile: --blocks must be 2,4. Received: --blocks={','.join(values.blocks)}"
        )
    for name in ("mesh", "blocks"):
        if ":" not in values.topology and values[name].value is not None:
            raise UsageError(
                f"tpu-compile: --{name} is of one slice, and --topology={values.topology} is a "
                f"family, whose slices are tried in turn; name one, such as "
                f"--topology={values.topology}:2x4, or leave --{name} out"
            )
    gin_config.load()
    for name in values.gin_file:
        gin_config.find(name)
    _use_jax()
    return _compile(values)


def _use_jax() -> None:
    if "keras" in sys.modules:
        import keras

        if (backend := keras.backend.backend()) != "jax":
            raise RuntimeError(f"tpu-compile needs a process of its own; Keras runs on {backend!r}")
    # The devices are those of the compiler; JAX itself stays on the CPU.
    os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")


def make_optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a run of some length: that of the run does not change the program.

    Args:
        config: of the run.
    """
    return config.optimizer(total_steps=config.steps or 10**6, steps_per_epoch=10**3)


class Compilation(NamedTuple):
    """One step on one slice.

    Attributes:
        topology: the slice.
        mesh: of its devices.
        cost: what a device needs.
        how: "whole", or "2 and 4 blocks".
        seconds: that it took.
        gathered: all-gathers of expert kernels; None: not known.
    """

    topology: Topology
    mesh: str
    cost: StepCost
    how: str
    seconds: float
    gathered: int | None

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.cost.fits and self.cost.hbm <= USABLE * self.topology.hbm_per_device

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        c = self.cost
        return {
            "topology": str(self.topology),
            "chips": self.topology.chips,
            "mesh": self.mesh,
            "how": self.how,
            "fits": self.fits,
            "hbm_per_device": self.topology.hbm_per_device,
            "parameters": c.parameters,
            "optimizer": c.optimizer,
            "other": c.other,
            "flops": None if math.isnan(c.flops) else c.flops,
            "bytes_accessed": None if math.isnan(c.bytes_accessed) else c.bytes_accessed,
            "collectives": {k: {"count": n, "bytes": b} for k, (n, b) in c.exchanged().items()},
            "expert_kernels_gathered": self.gathered,
            "seconds": round(self.seconds, 1),
        }


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
        from keras_vmoe import models

        return len(models.moe_layers(self.model))

    @property
    def num_experts(self) -> int:
        """The experts of a layer; 1 where there are none."""
        from keras_vmoe import models

        layers = models.moe_layers(self.model)
        return layers[0].router.num_experts if layers else 1

    @property
    def kernels(self) -> set[tuple[int, ...]]:
        """The shapes of an expert's kernels."""
        from keras_vmoe import models

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

    def step(self, mesh: JaxMesh, blocks: tuple[int, int] | None = None) -> JaxTrainStep:
        """Makes a step without values.

        Args:
            mesh: of what devices.
            blocks: how many, and how many of them have experts; None: as in the config.
        """
        from keras_vmoe import distribution
        from keras_vmoe.distribution.storage import unallocated
        from keras_vmoe.trainers.losses import classification_loss

        config = self.config
        model = self.model if blocks is None else self._model(*blocks)
        optimizer = make_optimizer(config)
        with unallocated():
            optimizer.build(model.trainable_variables)

        def loss(labels: Any, logits: Any) -> Any:
            return classification_loss(labels, logits, config.loss, config.label_smoothing)

        rules = distribution.EXPERT_RULES if self.sparse_blocks else ()
        return distribution.JaxTrainStep(mesh, model, optimizer, loss, rules)

    def _model(self, num_layers: int | None = None, sparse: int = 0) -> keras.Model:
        from keras_vmoe.distribution.storage import unallocated

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


def _compile(values: flags.FlagValues) -> int:
    from keras_vmoe import distribution
    from keras_vmoe.trainers import configurables

    family, _, shape = values.topology.partition(":")
    slices = (
        [distribution.Topology.parse(values.topology)]
        if shape
        else list(distribution.slices_of(family))
    )
    slices[0].devices()  # without the compiler, nothing of the rest is of use
    gin_config.parse(values.gin_file, values.gin_bindings)
    config = configurables.train_config()
    changes = {"dtype": values.dtype}
    if values.remat is not None:
        changes["remat"] = values.remat
    steps = Steps(config, *_classes_and_channels(config, values.num_classes), **changes)
    if not values.json:
        _introduce(steps)
    if shape:
        found = _measure(steps, slices[0], values.mesh, values.blocks is not None, values.quick)
    else:
        found = _search(steps, slices, values)
    if values.json:
        print(json.dumps([row.to_dict() for row in found], indent=2))
    elif found:
        print("\n" + _report(found[-1]))
    return 0 if found and found[-1].fits else 1


def _classes_and_channels(config: TrainConfig, given: int | None) -> tuple[int, int]:
    try:
        name = gin_config.load().query_parameter("dataset.name")
    except ValueError:  # a dataset by another reference
        name = None
    if known := given or NUM_CLASSES.get(name):
        return known, config.channels or 3
    source = config.dataset()
    return source.num_classes, config.channels or source.image_shape[-1]


def _introduce(steps: Steps) -> None:
    model, config = steps.model, steps.config
    experts = f", {steps.sparse_blocks} of {steps.num_experts} experts"
    print(
        f"model     {model.name}: {model.count_params():,} parameters, {steps.blocks} blocks"
        f"{experts if steps.sparse_blocks else ''}, {steps.changes['dtype']}, remat "
        f"{'on' if model.arguments['remat'] else 'off'}\n"
        f"step      {config.batch_size} images of {config.image_size} px, "
        f"{steps.num_classes:,} classes, {type(make_optimizer(config)).__name__}",
        flush=True,
    )


def _mesh(steps: Steps, topology: Topology, sizes: str | None) -> JaxMesh:
    from keras_vmoe import distribution

    if sizes is not None:
        return distribution.JaxMesh.parse(sizes, devices=topology.devices())
    expert = math.gcd(topology.num_devices, steps.num_experts)
    return distribution.JaxMesh(topology.num_devices // expert, expert, topology.devices())


def _measure(
    steps: Steps, topology: Topology, sizes: str | None, by_blocks: bool, quick: bool
) -> list[Compilation]:
    """One slice: the whole model, or small ones."""
    from keras_vmoe import distribution

    began, mesh = time.monotonic(), _mesh(steps, topology, sizes)
    name = f"batch:{mesh.batch},expert:{mesh.expert}"

    def one(blocks: tuple[int, int] | None = None) -> StepCost:
        return distribution.compile_step(steps.step(mesh, blocks), steps.batch, quick)

    if not by_blocks:
        cost = one()
        gathered = len(cost.gathered(steps.kernels)) if cost.fits else None
        return [Compilation(topology, name, cost, "whole", time.monotonic() - began, gathered)]
    sparse, dense = steps.sparse_blocks, steps.blocks - steps.sparse_blocks
    small = [(2, 1), (4, 2)] if sparse else [(2, 0), (4, 0)]
    if sparse and sparse != dense:
        small.append((4, 1))
    costs, gathered = [], 0
    for blocks, experts in small:
        cost = one((blocks, experts))
        counts = (1, blocks - experts, experts)[: len(small)]
        costs.append((counts, cost))
        gathered += len(cost.gathered(steps.kernels))
        if not cost.fits:
            break
    if not costs[-1][1].fits:
        cost = costs[-1][1]
    else:
        cost = distribution.scaled(costs, (1, dense, sparse)[: len(small)])
    seconds = time.monotonic() - began
    return [Compilation(topology, name, cost, "2 and 4 blocks", seconds, gathered)]


def _search(
    steps: Steps, slices: Sequence[Topology], values: flags.FlagValues
) -> list[Compilation]:
    """The slices that were tried, the last being the smallest on which the run fits."""
    from keras_vmoe import distribution

    tried: list[Compilation] = []
    for topology in slices:
        mesh = _mesh(steps, topology, None)
        name = f"{topology} ({topology.chips} chips, batch:{mesh.batch},expert:{mesh.expert})"
        try:
            distribution.require_groups(steps.model, mesh, steps.config.batch_size)
        except ValueError as error:
            _say(values, f"{name}: {error}")
            continue
        room, needed = USABLE * topology.hbm_per_device, distribution.static_bytes(steps.step(mesh))
        if tried:
            # Activations of fewer images; too much by far needs no compiler to tell.
            last = tried[-1]
            needed += last.cost.other * last.topology.num_devices / topology.num_devices / 1.5
        if needed > room:
            _say(values, f"{name}: {needed / GIB:.0f} GiB or more are needed")
            continue
        for by_blocks in (True, False):
            (row,) = _measure(steps, topology, None, by_blocks, values.quick)
            tried.append(row)
            _say(
                values,
                f"{name}: {row.how}, {row.cost.hbm / GIB:.1f} GiB of "
                f"{topology.hbm_per_device / GIB:g}{'' if row.fits else ': too much'}"
                f"  [{row.seconds:.0f} s]",
            )
            if not row.fits:
                break
        if tried[-1].fits:
            break
    return tried


def _say(values: flags.FlagValues, line: str) -> None:
    print(f"tried     {line}", file=sys.stderr if values.json else sys.stdout, flush=True)


def _report(row: Compilation) -> str:
    topology, cost = row.topology, row.cost
    room = topology.hbm_per_device
    verdict = "fits" if row.fits else "does not fit"
    half = ", half of a chip's" if topology.num_devices > topology.chips else ""
    unit, name = (GIB, "GiB") if cost.hbm >= GIB else (2**20, "MiB")
    lines = [
        f"slice     {topology}: {topology.chips} chips, {topology.num_devices} devices of "
        f"{room / GIB:g} GiB{half}; mesh {row.mesh}",
        f"compiled  {row.how}, in {row.seconds:.0f} s",
        "",
        *text.aligned(
            [
                ("memory of a device", name),
                ("parameters", f"{cost.parameters / unit:.2f}"),
                ("optimizer", f"{cost.optimizer / unit:.2f}"),
                ("activations, gradients, buffers", f"{cost.other / unit:.2f}"),
                ("all", f"{cost.hbm / unit:.2f}"),
            ],
            num_left=1,
        ),
        f"{verdict}: {cost.hbm / unit:.2f} {name} of {room / GIB:g} GiB",
    ]
    if not cost.fits:
        return "\n".join(lines)
    exchanged = [
        (kind, f"{count if row.how == 'whole' else ''}", f"{size / 1e6:,.1f}")
        for kind, (count, size) in cost.exchanged().items()
    ]
    gathered = "none" if not row.gathered else f"{row.gathered} times"
    return "\n".join(
        [
            *lines,
            "",
            f"a step of a device: {cost.flops / 1e9:,.1f} GFLOP, "
            f"{cost.bytes_accessed / 1e9:,.2f} GB read and written",
            "",
            *text.aligned([("exchanges", "number", "MB a device"), *exchanged], num_left=1),
            f"kernels of experts gathered: {gathered}",
        ]
    )
