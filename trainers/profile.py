"""`keras-vmoe profile`: the parameters and FLOPs of a model, in closed form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.errors import UsageError

_SYNOPSIS = "profile MODEL [NAME=VALUE]..."
_TEXT = """
Counts the parameters and the FLOPs of one image through a model, layer by layer, without building
it; of a model of images and texts (limoe_...) those of one pair. "activated" are the parameters
that one token uses. MODEL is one of keras_vmoe.list_variants(), of which every argument can be
overridden, or the .keras file of a saved model.

  keras-vmoe profile vmoe_b16 num_classes=1000 image_size=384 placement=every_2
  keras-vmoe profile vmoe_s32 num_experts=8 num_selected=1 capacity_factor=0.5 --depth=3
  keras-vmoe profile limoe_b16 num_experts=8 --modality=text
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_integer(
        "depth", 1, "0: the model alone, 1: its layers, 2: their parts, ...", 0, flag_values=values
    )
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)
    flags.DEFINE_boolean(
        "training", False, "Count the capacity factor of training.", flag_values=values
    )
    flags.DEFINE_boolean(
        "whole_slots", False, "Count slots as routers round them, not C.", flag_values=values
    )
    flags.DEFINE_enum(
        "modality",
        None,
        ["image", "text"],
        "Of a model of pairs, count one image or one text alone.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe profile`.

    Args:
        argv: the words after `profile`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: an unknown model or argument.
    """
    values = _flags()
    for word in argv:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and "=" in word and name not in values:
            raise UsageError(f"profile: write overrides without dashes: {word.lstrip('-')}")
    words = command_line.parse(values, argv, "profile")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UsageError("profile: the model is missing; see keras-vmoe profile --help")
    overrides = dict(command_line.parse_override("profile", word) for word in words[1:])
    from keras_vmoe import analysis

    profile = analysis.profile(
        _model(words[0]),
        training=values.training,
        whole_slots=values.whole_slots,
        modality=values.modality,
        **overrides,
    )
    if values.json:
        print(json.dumps(profile.to_dict(values.depth), indent=2))
    else:
        print(profile.table(values.depth))
    return 0


def _model(word: str) -> Any:
    """The model's id, or the model of a file."""
    if not word.endswith(".keras"):
        return word
    if not Path(word).is_file():
        raise FileNotFoundError(f"there is no file {word!r}")
    import keras

    from keras_vmoe import models as models  # registers the classes that the file names

    return keras.models.load_model(word, compile=False)
