"""`keras-vmoe tpu-compile`: what a run needs on a TPU, by the TPU's compiler, without a TPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line, gin_config
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe.distribution import Topology
    from keras_vmoe.trainers.config import TrainConfig
    from keras_vmoe.trainers.tpu_compile.compilation import Compilation
    from keras_vmoe.trainers.tpu_compile.steps import Steps

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
# A whole model may take less than small ones foretell: where memory is short, the compiler saves.
MARGIN = 1.5
DOES_NOT_FIT = 3  # the exit code

_SYNOPSIS = "tpu-compile --gin_file=FILE --topology=FAMILY[:SHAPE] [--mesh=batch:B,expert:E] ..."
_TEXT = """
Compiles the training step of a gin file for a slice of TPUs with the TPU's own compiler, on this
machine, and prints what a chip needs: memory, FLOPs, bytes, exchanges between chips. No TPU, no
data and no weights are needed. It runs on the JAX backend, on a mesh of keras_vmoe.distribution.

  keras-vmoe tpu-compile --gin_file=runs/vmoe/s32_last2_imagenet.gin --topology=v5e:2x4
  keras-vmoe tpu-compile --gin_file=runs/vmoe/b16_every2_jft.gin --topology=v5e:4x8 --blocks=2,4
  keras-vmoe tpu-compile --gin_file=runs/vmoe/l16_every2_jft.gin --topology=v5e --quick --remat

A family without a shape looks for the smallest slice on which the run fits: slices are tried by 2
and 4 blocks, and where that comes near, by the whole model. Exit code 3: it does not fit.
`KERAS_BACKEND=jax keras-vmoe train` takes the same step with the same --mesh.
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
        ("dtype", "Precision, such as mixed_bfloat16. Default: as the gin file has it."),
    ):
        flags.DEFINE_string(name, None, help_text, flag_values=values)
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
        The exit code: 0 where the run fits, 3 where it does not.

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
    try:
        import jax  # noqa: F401
    except ImportError as error:  # Keras would say less
        raise ImportError(
            "compiling for TPU needs JAX and the TPU's compiler: "
            "pip install 'keras-vmoe[tpu-compile]'"
        ) from error


def _require_precision(dtype: str | None) -> None:
    import keras

    try:
        keras.dtype_policies.get(dtype or "float32")
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"tpu-compile: --dtype={dtype} is no precision of Keras; give mixed_bfloat16, bfloat16 "
            "or float32"
        ) from error


def _compile(values: flags.FlagValues) -> int:
    from keras_vmoe import distribution
    from keras_vmoe.trainers import configurables
    from keras_vmoe.trainers.tpu_compile import compilation
    from keras_vmoe.trainers.tpu_compile.steps import Steps, make_mesh

    _require_precision(values.dtype)
    family, _, shape = values.topology.partition(":")
    slices = (
        [distribution.Topology.parse(values.topology)]
        if shape
        else list(distribution.slices_of(family))
    )
    slices[0].devices()  # without the compiler, nothing of the rest is of use
    gin_config.parse(values.gin_file, values.gin_bindings)
    config = configurables.train_config()
    given = {"dtype": values.dtype, "remat": values.remat}
    changes = {name: value for name, value in given.items() if value is not None}
    steps = Steps(config, *_classes_and_channels(config, values.num_classes), **changes)
    if not values.json:
        _introduce(steps)
    if shape:
        by_blocks = values.blocks is not None
        mesh = make_mesh(steps, slices[0], values.mesh)
        found = [compilation.measure(steps, slices[0], mesh, by_blocks, values.quick)]
    else:
        found = _search(steps, slices, values)
    if values.json:
        print(json.dumps([row.to_dict() for row in found], indent=2))
    elif found:
        print("\n" + compilation.report(found[-1]))
    if found and found[-1].fits:
        return 0
    if not shape:
        print(f"keras-vmoe: no slice of {family} has room for this run", file=sys.stderr)
    return DOES_NOT_FIT


def _classes_and_channels(config: TrainConfig, given: int | None) -> tuple[int, int]:
    from keras_vmoe import data
    from keras_vmoe.trainers.pairs import Pairs

    # None of a dataset by another reference.
    if known := given or NUM_CLASSES.get(gin_config.bound("dataset.name")):
        return known, config.channels or 3
    source = config.dataset()
    if isinstance(source, Pairs | data.BoxSource):
        what = "image-text pairs" if isinstance(source, Pairs) else "images with boxes"
        raise ValueError(
            f"{source.name!r} holds {what}: what such a run needs on a TPU cannot be told yet"
        )
    return source.num_classes, config.image_channels(source)


def _introduce(steps: Steps) -> None:
    from keras_vmoe.trainers.tpu_compile.steps import make_optimizer

    model, config = steps.model, steps.config
    # A functional model says nothing of the precision of its layers, the encoder's blocks do.
    precision = model.get_layer("encoder_block_0").dtype_policy.name
    experts = f", {steps.sparse_blocks} sparse, {steps.num_experts} experts each"
    print(
        f"model     {model.name}: {model.count_params():,} parameters, {steps.blocks} blocks"
        f"{experts if steps.sparse_blocks else ''}, {precision}, remat "
        f"{'on' if model.arguments['remat'] else 'off'}\n"
        f"step      {config.batch_size} images of {config.image_size} px, "
        f"{steps.num_classes:,} classes, {type(make_optimizer(config)).__name__}",
        flush=True,
    )


def _search(
    steps: Steps, slices: Sequence[Topology], values: flags.FlagValues
) -> list[Compilation]:
    """The slices that were tried, the last being the smallest on which the run fits."""
    from keras_vmoe import distribution
    from keras_vmoe.distribution.topology import GIB
    from keras_vmoe.trainers.tpu_compile.compilation import USABLE, chips, measure
    from keras_vmoe.trainers.tpu_compile.steps import make_mesh

    tried: list[Compilation] = []
    for topology in slices:
        mesh = make_mesh(steps, topology, None)
        name = f"{topology} ({chips(topology)}, {mesh.words})"
        try:
            distribution.require_groups(steps.model, mesh, steps.config.batch_size)
        except ValueError as error:
            _say(values, f"{name}: {error}")
            continue
        room, needed = USABLE * topology.hbm, sum(distribution.static_bytes(steps.step(mesh)))
        if tried:
            # Activations of fewer images; too much by far needs no compiler to tell.
            last = tried[-1]
            needed += last.cost.other * last.topology.chips / topology.chips / MARGIN
        if needed > room:
            _say(values, f"{name}: {needed / GIB:.0f} GiB or more are needed")
            continue
        for by_blocks in (True, False):
            row = measure(steps, topology, mesh, by_blocks, values.quick)
            tried.append(row)
            _say(
                values,
                f"{name}: {row.how}, {row.cost.hbm / GIB:.1f} GiB of "
                f"{topology.hbm / GIB:g}{'' if row.fits else ': too much'}"
                f"  [{row.seconds:.0f} s]",
            )
            if not row.cost.fits or row.cost.hbm > MARGIN * room:
                break
        if tried[-1].fits:
            break
    return tried


def _say(values: flags.FlagValues, line: str) -> None:
    print(f"tried     {line}", file=sys.stderr if values.json else sys.stdout, flush=True)
