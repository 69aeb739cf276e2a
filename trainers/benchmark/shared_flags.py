"""The flags that tables share, and the settings of those of sparse layers and of V-MoE S/32."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.errors import UsageError


def table_flags(
    rounds: int = 9, rounds_text: str = "Interleaved rounds.", dispatch: bool = True
) -> flags.FlagValues:
    """Returns the flags of a table of sparse layers or models.

    Args:
        rounds: the default of `--rounds`.
        rounds_text: what they are.
        dispatch: whether there is `--dispatch`, as in tables that do not compare dispatches.
    """
    values = command_line.new_flags()
    flags.DEFINE_integer("rounds", rounds, rounds_text, lower_bound=1, flag_values=values)
    if dispatch:
        flags.DEFINE_enum(
            "dispatch",
            "auto",
            settings_of.DISPATCHES,
            "How tokens go to experts.",
            flag_values=values,
        )
    flags.DEFINE_boolean(
        "metrics", True, "Update routing metrics, as fit does.", flag_values=values
    )
    report_of.define_flags(values)
    return values


def define_layer_flags(values: flags.FlagValues) -> None:
    """Adds the flags of a grid of layers.

    Args:
        values: of `table_flags`.
    """
    for name, default, text in (
        ("experts", "8,32,128", "Numbers of experts (E)."),
        ("selected", "1,2", "Choices per token (k)."),
        ("tokens", "800,6272,25088", "Tokens of a batch (n), or IMAGESxTOKENS such as 32x196."),
        ("passes", "forward,forward+backward", "forward, forward+backward."),
    ):
        flags.DEFINE_list(name, default, f"{text} Default: {default}.", flag_values=values)
    for name, default, text in (
        ("width", 384, "Model width (d)."),
        ("hidden_dim", 1536, "Hidden width of an expert (h)."),
        ("images_per_group", 8, "Images routed together."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def layer_settings(values: flags.FlagValues) -> settings_of.LayerSettings:
    """Returns the settings of a table of layers.

    Args:
        values: of `table_flags` and `define_layer_flags`.

    Raises:
        UsageError: a list that is empty or holds what it cannot, more choices than experts.
    """
    passes = settings_of.LayerSettings().passes
    settings = settings_of.LayerSettings(
        experts=settings_of.parse_numbers("experts", values.experts),
        selected=settings_of.parse_numbers("selected", values.selected),
        tokens=settings_of.parse_tokens(values.tokens),
        passes=settings_of.parse_choices("passes", values.passes, passes),
        width=values.width,
        hidden_dim=values.hidden_dim,
        images_per_group=values.images_per_group,
        routing_metrics=values.metrics,
        rounds=values.rounds,
    )
    for name in ("experts", "selected", "tokens", "passes"):
        if not getattr(settings, name):
            raise UsageError(f"--{name} is empty")
    if max(settings.selected) > min(settings.experts):
        raise UsageError(
            f"--selected={max(settings.selected)} is more than --experts={min(settings.experts)}"
        )
    return settings


def define_model_flags(values: flags.FlagValues) -> None:
    """Adds the flags of a model's step.

    Args:
        values: of `table_flags`.
    """
    for name, default, text in (
        ("image_size", 224, "Side of the images, pixels."),
        ("batch_size", 16, "Images of a step."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def model_settings(
    table: str, values: flags.FlagValues, words: Sequence[str], rows: Sequence[str], flag: str
) -> settings_of.ModelSettings:
    """Returns the settings of a table of models.

    Args:
        table: its name, for messages.
        values: of `table_flags` and `define_model_flags`.
        words: NAME=VALUE, arguments of the models.
        rows: the models: `dense`, or PLACEMENT:EXPERTS.
        flag: that named them, for messages.

    Raises:
        UsageError: a word that is no override or says what a flag says, an unknown row.
    """
    said = {
        "image_size": "--image_size",
        "dispatch": "--dispatch",
        "placement": f"--{flag}",
        "num_experts": f"--{flag}",
    }
    overrides = settings_of.parse_overrides(table, words, "num_layers=4", said)
    return settings_of.ModelSettings(
        rows=tuple(settings_of.parse_row(row, flag) for row in rows),
        image_size=values.image_size,
        batch_size=values.batch_size,
        overrides=overrides,
        dispatch=values.dispatch,
        routing_metrics=values.metrics,
        rounds=values.rounds,
    )
