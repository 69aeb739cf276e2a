"""Errors as a person at a terminal should see them: a line, or a list, and an exit code."""

from __future__ import annotations

import re
import sys
import traceback

# What gin adds for a developer (who has `--debug`): calls, and nodes of its parser.
_GIN_CALL = re.compile(
    r"^\s*(In call to configurable|No values supplied by|Gin had values|Caller|malformed node)"
)
# What Keras puts around the message of an error within a layer.
_KERAS_CALL = re.compile(r"^\s*(Exception encountered when calling)")
_KERAS_ARGUMENTS = re.compile(r"\n\s*Arguments received by .*", re.DOTALL)
_ANSI = re.compile(r"\x1b\[\d*m")
_MOST_LINES = 4
_TF_NODE = re.compile(r"\{\{.*?\}\}|__wrapped__\S*\}\}|\[Op:\w+\]|\[\[.*?\]\]|\bname:\s*$")

#: The backends of Keras that this package runs on.
BACKENDS = ("tensorflow", "jax")


class UsageError(Exception):
    """A command line that cannot be understood; the exit code is 2."""


class ListError(ValueError):
    """An error whose message is a list, such as of names: every line of it is for the user."""


def one_line(error: BaseException) -> str:
    """Returns the message of an error as one line that a user can act on.

    Args:
        error: any exception; those of TensorFlow lose their graph node names, those of gin keep
            the place in the gin file and lose the chain of calls.

    Example:
        >>> one_line(ValueError("train.steps=0\\n  In call to configurable 'train' (<f>)"))
        'train.steps=0'
    """
    kept = _lines(error)
    message = "; ".join([*kept[:_MOST_LINES], *(["…"] if len(kept) > _MOST_LINES else [])])
    message = message.replace(":; ", ": ").replace(".; ", "; ") or type(error).__name__
    builtin_kind = isinstance(error, (ValueError, OSError, ImportError, UsageError, SyntaxError))
    return message if builtin_kind else f"{type(error).__name__}: {message}"


def _lines(error: BaseException) -> list[str]:
    """The lines of a message that are for the user."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    text = _KERAS_ARGUMENTS.sub("", _ANSI.sub("", str(text)))
    lines = [_TF_NODE.sub("", line).strip() for line in text.splitlines()]
    return [line for line in lines if line and set(line) != {"^"} and not _of_developers(line)]


def _of_developers(line: str) -> bool:
    return bool(_GIN_CALL.match(line) or _KERAS_CALL.match(line))


def of_backend(backend: str) -> ValueError:
    """Returns the error of a backend that Keras may have and this package has not.

    Args:
        backend: such as "torch".
    """
    return ValueError(
        f"KERAS_BACKEND={backend!r}, but keras_vmoe runs on {' and '.join(map(repr, BACKENDS))}; "
        "set it to one of them, or unset it for TensorFlow"
    )


def warn(text: str) -> None:
    """Prints a line of warning on stderr.

    Args:
        text: what a user should know.
    """
    print(f"warning  {text}", file=sys.stderr, flush=True)


def report(error: BaseException, debug: bool = False) -> int:
    """Prints an error on stderr and returns the exit code that belongs to it.

    It is one line, but for a `ListError`.

    Args:
        error: what ended the command.
        debug: print the traceback too.
    """
    if debug:
        traceback.print_exception(error)
    message = "\n  ".join(_lines(error)) if isinstance(error, ListError) else one_line(error)
    print(f"keras-vmoe: error: {message}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1
