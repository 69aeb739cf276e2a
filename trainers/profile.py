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
  keras-vmoe profile asvit_s --retokenization="((40, 16, 5), (70, 8, 2))" --epochs=300
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
    flags.DEFINE_string(
        "retokenization",
        None,
        "Of an As-ViT, also count what these coarse phases save of a training; as "
        "train.retokenization: (until_epoch, stride, dilation) of each.",
        flag_values=values,
    )
    flags.DEFINE_float("epochs", 300.0, "Length of that training.", 0.0, flag_values=values)
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
    phases = _phases(values.retokenization)
    from keras_vmoe import analysis

    model = _model(words[0])
    cost = phases and analysis.retokenization_cost(model, phases, values.epochs, **overrides)
    profile = analysis.profile(
        model,
        training=values.training,
        whole_slots=values.whole_slots,
        modality=values.modality,
        **overrides,
    )
    if values.json:
        found = profile.to_dict(values.depth)
        found |= {"retokenization": cost.to_dict()} if cost else {}
        print(json.dumps(found, indent=2))
    else:
        print(profile.table(values.depth) + (f"\n\n{cost}" if cost else ""))
    return 0


def _phases(word: str | None) -> tuple[Any, ...]:
    """The coarse phases of --retokenization."""
    if word is None:
        return ()
    from keras_vmoe.trainers.retokenization import phases_of

    try:
        return phases_of(command_line.parse_override("profile", f"phases={word}")[1])
    except ValueError as error:
        raise UsageError(str(error).replace("train.", "profile: --", 1)) from None


def _model(word: str) -> Any:
    """The model's id, or the model of a file."""
    if not word.endswith(".keras"):
        return word
    if not Path(word).is_file():
        raise FileNotFoundError(f"there is no file {word!r}")
    import keras

    from keras_vmoe import models as models  # registers the classes that the file names

    return keras.models.load_model(word, compile=False)
