"""`keras-vmoe train`: trains what a gin file says."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from keras_vmoe.trainers import command_line, errors, gin_config
from keras_vmoe.trainers.errors import UsageError

_SYNOPSIS = "train --gin_file=FILE [--gin_bindings=NAME=VALUE]... [--workdir=DIR]"
_TEXT = """
Trains the model of a gin file on the data of a gin file, evaluates it on held-out images, and
writes checkpoints, TensorBoard logs, config.gin, metrics.jsonl, model.keras and routing.png.
The same command again goes on where the run stopped; Ctrl-C stops it and keeps what was done.

  keras-vmoe train --gin_file=runs/quickstart.gin
  keras-vmoe train --gin_file=runs/quickstart.gin --gin_bindings=train.epochs=5 --workdir=short
  keras-vmoe train --gin_file=runs/fashion_mnist.gin --gin_bindings=train.seed=1
  keras-vmoe train --gin_file=FILE --init_from=workdir/quickstart-seed0
  keras-vmoe train --gin_file=FILE --mesh=batch:2,expert:4
  KERAS_BACKEND=jax keras-vmoe train --gin_file=FILE [--mesh=batch:2,expert:4]

With KERAS_BACKEND=jax it trains on JAX, on all devices of the machine: the same data, steps,
metrics.jsonl, model.keras and routing.png. JAX has no checkpoints to go on from, no TensorBoard
logs, --init_from, --tpu, few-shot measurement or replicas.
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "A gin file: a path, or one that is shipped, such as runs/quickstart.gin. Repeatable.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "gin_bindings",
        [],
        "A binding that wins over the file, such as train.seed=1. Repeatable.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "init_from",
        None,
        "Start from a workdir, a .keras or .npz file, or a released checkpoint (train.init_from).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tpu",
        None,
        "Train on this TPU, a name or an address; local: that of this machine (train.tpu).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "mesh",
        None,
        "Split experts and images over this machine's devices: batch:2,expert:4 (train.mesh).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The folder to write to and to resume from. Default: workdir/FILE-seedN.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe train`.

    Args:
        argv: the words after `train`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a wrong name or value in a gin file, and whatever else `Run` raises.
    """
    values = _flags()
    words = command_line.parse(values, argv, "train")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if words:
        meant = f"; did you mean --gin_file={words[0]}?" if words[0].endswith(".gin") else ""
        raise UsageError(f"train: unexpected {words[0]!r}{meant}; see keras-vmoe train --help")
    if not values.gin_file:
        raise UsageError(f"train: --gin_file is missing ({_shipped_runs()})")
    if values.tpu is not None and values.mesh is not None:
        raise UsageError(
            "train: --tpu and --mesh do not go together; leave --tpu out: --mesh alone takes the "
            "accelerators of this machine (TPUs, else GPUs, else a CPU cut into virtual devices)"
        )
    # The file names and gin's presence are checked before TensorFlow is imported.
    gin_config.load()
    for name in values.gin_file:
        gin_config.find(name)
    _require_backend()
    return _train(values)


def _train(values: flags.FlagValues) -> int:
    import keras

    from keras_vmoe.trainers import configurables, workdir

    if (backend := keras.backend.backend()) not in errors.BACKENDS:  # of ~/.keras/keras.json
        raise errors.of_backend(backend)
    bindings = list(values.gin_bindings)
    if values.init_from is not None:
        bindings.append(f"train.init_from = {values.init_from!r}")
    gin_config.parse(values.gin_file, bindings)
    for name in ("tpu", "mesh"):
        if (given := values[name].value) is not None:
            _require_free(name, given)
            bindings += [f"train.distribution = {name!r}", f"train.{name} = {given!r}"]
            gin_config.parse(values.gin_file, bindings)
    config = configurables.train_config()
    path = values.workdir or workdir.default_path(values.gin_file[-1], config.seed)
    if backend == "jax":
        from keras_vmoe.trainers import jax_run as run
    else:
        from keras_vmoe.trainers import run
    return run.execute(config, workdir.Workdir(Path(path)))


def _require_free(name: str, given: str) -> None:
    """Makes sure that a flag which names a distribution overrules no other that was asked for."""
    bound = gin_config.bound("train.distribution")
    if bound not in (None, "one_device", name):
        raise ValueError(
            f"--{name}={given} sets train.distribution={name!r}, but the gin file or a binding "
            f"says {bound!r}; leave one out"
        )


def _require_backend() -> None:
    # Before Keras is imported, which says less.
    if os.environ.get("KERAS_BACKEND") == "jax" and importlib.util.find_spec("jax") is None:
        raise ImportError(
            "JAX is not installed; KERAS_BACKEND='jax' needs: pip install 'keras-vmoe[jax]'"
        )


def _shipped_runs() -> str:
    runs = sorted(path.name for path in (gin_config.SHIPPED / "runs").glob("*.gin"))
    return "for instance " + ", ".join(f"runs/{name}" for name in runs)
