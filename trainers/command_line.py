"""Command lines by absl, one private set of flags for each subcommand."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from absl import flags

from keras_vmoe.trainers.errors import UsageError

# The flags of folders that commands write to.
_FOLDERS = ("workdir", "out", "routing")


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
        UsageError: an unknown flag, a value of the wrong type, or a folder to write to that is an
            address such as gs://BUCKET.
    """
    try:
        words = values([command, *argv], known_only=False)[1:]
    except flags.Error as error:
        raise UsageError(f"{command}: {error}; see keras-vmoe {command} --help") from None
    for name in _FOLDERS:
        require_folder(f"--{name}=", values[name].value if name in values else None)
    return words


def require_folder(flag: str, path: str | None) -> None:
    """Refuses an address such as gs://BUCKET where a folder is written to.

    Args:
        flag: what stands before the path in messages, such as `--out=`.
        path: what was given.

    Raises:
        UsageError: if it is an address.
    """
    # The commands write through the file system, where gs://x is a local folder named "gs:".
    scheme, separator, rest = (path or "").partition("://")
    if not separator:
        return
    bucket = rest.strip("/") or "BUCKET"
    mend = (
        f"mount the bucket (tpu/install.sh --bucket={bucket.partition('/')[0]} does) and write "
        f"{flag}/gcs/{bucket}"
        if scheme.lower() == "gs"
        else f"mount what it names and give the path, such as {flag}/mnt/{bucket}"
    )
    raise UsageError(f"{flag}{path} is an address, not a folder: {mend}")


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


def parse_override(command: str, word: str) -> tuple[str, Any]:
    """Returns name and value of an override.

    Args:
        command: the subcommand's name, for messages.
        word: NAME=VALUE; a value that is not a Python literal is a string.

    Raises:
        UsageError: if there is no equals sign.

    Example:
        >>> parse_override("profile", "placement=(5, 7)")
        ('placement', (5, 7))
    """
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"{command}: {word!r} is not NAME=VALUE, such as num_experts=8")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
