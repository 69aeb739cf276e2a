"""`--init_from`: the weights that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vmoe import checkpoints, models
from keras_vmoe.trainers import trained

# What a detector makes anew when it starts from a classifier, and what it leaves behind.
_OF_DETECTORS = (r"P\d_norm/", "fpn_", r"(boxes|classes)_head_")
_OF_CLASSIFIERS = ("encoder_norm/",)


def initialize(
    model: keras.Model, path: str, keep_head: bool, upcycle: bool = False
) -> checkpoints.Transfer:
    """Fills a model from a trained one.

    Args:
        model: what is filled; its resolution and its classes may be others.
        path: a run's workdir, a `.keras` file, a `.npz` file of arrays by the names of this
            package's variables, of the reference implementation or of vision_transformer, or the
            prefix of a checkpoint in the format of the released V-MoE models.
        keep_head: take the head and `pre_logits` over too, instead of making them anew.
        upcycle: what is at `path` is dense, and the model's experts start as copies of its MLPs.

    Returns:
        What was copied, resized, left as it was and left out.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it holds no weights, or those of another architecture.
    """
    fresh = () if keep_head else checkpoints.FRESH
    if isinstance(model, models.RetinaNet) and not keep_head:
        fresh = (*fresh, *_OF_CLASSIFIERS, *_OF_DETECTORS)
    try:
        source = source_of(path)
        _check_channels(source, model)
        if upcycle:
            return checkpoints.upcycle_into(model, source, fresh=fresh)
        return checkpoints.transfer(model, source, fresh=fresh)
    except ValueError as error:
        raise ValueError(f"--init_from={path}: {error}") from error


def _check_channels(source: keras.Model | Mapping[str, Any], model: keras.Model) -> None:
    shape = getattr(source, "input_shape", None)
    if isinstance(shape, tuple) and shape[-1] != model.input_shape[-1]:
        raise ValueError(
            f"it takes images of {shape[-1]} channels, this run has images of "
            f"{model.input_shape[-1]}; set train.channels={shape[-1]}"
        )


def source_of(path: str) -> keras.Model | Mapping[str, Any]:
    """Reads the model or the arrays at a path."""
    place = Path(path).expanduser()
    if place.suffix == ".npz" or Path(f"{place}.index").exists():
        return checkpoints.open_arrays(place, progress=True)
    if not place.exists():
        raise FileNotFoundError(
            f"--init_from={path}: there is no such file or folder; give a run's workdir, a .keras "
            "file, a .npz file, or the prefix of a released checkpoint"
        )
    return trained.load(place, pairs=None, boxes=None).model
