"""The flags that the search and the growth share: what is measured, and on which images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

import numpy as np
from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.errors import UsageError


def new_flags() -> flags.FlagValues:
    """Flags of the measures; a command adds its own."""
    values = command_line.new_flags()
    for name, default, text in (
        ("out", None, "The folder of the results."),
        ("data", None, "The NTK's images: a dataset, such as fashion_mnist. Default: noise."),
        ("data_dir", None, "Where --data lies. Default: as for dataset.data_dir."),
        ("split", None, "A split of --data. Default: its training split."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, default, least, text in (
        ("image_size", 224, 32, "Side of the images, pixels; a multiple of 32. Default: 224."),
        ("repeats", 5, 1, "Draws of weights that measures are averaged over. Default: 5."),
        ("ntk_batch", 16, 2, "Images of the NTK. Default: 16."),
        ("seed", 0, 0, "Of all random numbers. Default: 0."),
        ("processes", None, 1, "Side by side. Default: one a core; search: at most --repeats."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    flags.DEFINE_enum(
        "convention",
        "code",
        ("code", "paper"),
        "Of L^E: code, a sum over 10 angles; paper, an integral. Default: code.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "compat", False, "Repeat what looks wrong in the published code.", flag_values=values
    )
    return values


def check(values: flags.FlagValues, command: str) -> None:
    """Refuses what can be told wrong before TensorFlow is imported.

    Raises:
        UsageError: flags that do not go together.
    """
    if values.data is None:
        for name in ("data_dir", "split"):
            if values[name].value is not None:
                raise UsageError(f"{command}: --{name} is of --data, which is not given")


def processes(values: flags.FlagValues, most: int | None = None) -> int:
    """How many measure side by side.

    Args:
        values: the flags.
        most: what a step keeps busy; more are taken only where they are asked for.
    """
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return values.processes or min(cores, most or cores)


def protocol(values: flags.FlagValues) -> Any:
    """The `autoscale.Protocol` of the flags.

    Raises:
        ValueError: an image size that As-ViT's grids do not divide.
    """
    from keras_vmoe.autoscale import Protocol

    if values.image_size % 32:
        raise ValueError(
            f"--image_size={values.image_size} must be a multiple of 32, the stride of the last "
            "stage, such as 32, 64 or 224"
        )
    return Protocol(
        image_size=values.image_size,
        repeats=values.repeats,
        convention=values.convention,
        seed=values.seed,
        compat=values.compat,
    )


def images(values: flags.FlagValues, of: Any) -> np.ndarray:
    """The images of the NTK: the first of a dataset, without augmentation, or normal noise.

    Args:
        values: the flags.
        of: the `Protocol`, which draws noise.

    Raises:
        ValueError: fewer images than are asked for, or an unknown dataset.
    """
    if values.data is None:
        return of.gaussian_images(values.ntk_batch)
    from keras_vmoe import data

    source = data.load(values.data, values.data_dir, eval_split=values.split)
    split = source.eval if values.split else source.train
    if split.num_examples < values.ntk_batch:
        raise ValueError(
            f"--ntk_batch={values.ntk_batch} images are more than the {split.num_examples} of "
            f"--data={values.data}; take fewer"
        )
    batches = data.make_dataset(split, values.ntk_batch, values.image_size, channels=3)
    return next(iter(batches))["image"].numpy()


def settings(values: flags.FlagValues, of: Any, found: np.ndarray) -> dict[str, Any]:
    """All that measures depend on, ready for JSON.

    Args:
        values: the flags.
        of: the `Protocol`.
        found: the images, of which a digest is kept.
    """
    return {
        **dataclasses.asdict(of),
        "data": values.data or "gaussian noise",
        "split": values.split,
        "ntk_batch": values.ntk_batch,
        "images_digest": digest(found),
    }


def digest(found: np.ndarray) -> str:
    """What tells images from others.

    Args:
        found: the images.
    """
    return hashlib.sha256(np.ascontiguousarray(found)).hexdigest()[:16]
