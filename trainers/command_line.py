"""Command lines by absl, one private set of flags for each subcommand."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers.errors import UsageError


def new_flags() -> flags.FlagValues:
    """Returns an empty set of flags that holds `--help` and `--debug`."""
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show this text.", short_name="h", flag_values=values)
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.", flag_values=values)
    return values


def parse(values: flags.FlagValues, argv: Sequence[str], command: str) -> list[str]:
    """Reads the words after a subcommand into `values`.

    Args:
        values: the flags of the subcommand.
        argv: the words.
        command: the subcommand's name, for messages.

    Returns:
        The words that are not flags, in order.

    Raises:
        UsageError: an unknown flag or a value of the wrong type.
    """
    try:
        return values([command, *argv], known_only=False)[1:]
    except flags.Error as error:
        raise UsageError(f"{command}: {error}; see keras-vmoe {command} --help") from None


def help_text(values: flags.FlagValues, synopsis: str, text: str) -> str:
    """Returns the help of a subcommand: its synopsis, a text, and a line for each flag.

    Args:
        values: the flags of the subcommand.
        synopsis: what stands after `usage: keras-vmoe`.
        text: what the command does, with examples.
    """
    names = [name for name in values if len(name) > 1]
    width = max(14, *(len(name) + 2 for name in names))
    rows = "\n".join(f"  --{name:<{width}}{_first(values[name].help)}" for name in names)
    return f"usage: keras-vmoe {synopsis}\n\n{text.strip()}\n\noptions:\n{rows}\n"


def _first(text: str) -> str:
    # absl adds a line to the help of flags that may be repeated.
    return text.split(";\n")[0]
