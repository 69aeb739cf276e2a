"""Errors as a person at a terminal should see them: one line and an exit code."""

from __future__ import annotations

import re
import sys
import traceback

# What gin adds for a developer (who has `--debug`): calls, and nodes of its parser.
_GIN_CALL = re.compile(
    r"^\s*(In call to configurable|No values supplied by|Gin had values|Caller|malformed node)"
)
_TF_NODE = re.compile(r"\{\{.*?\}\}|__wrapped__\S*\}\}|\[Op:\w+\]|\[\[.*?\]\]|\bname:\s*$")


class UsageError(Exception):
    """A command line that cannot be understood; the exit code is 2."""


def one_line(error: BaseException) -> str:
    """Returns the message of an error as one line that a user can act on.

    Args:
        error: any exception; those of TensorFlow lose their graph node names, those of gin keep
            the place in the gin file and lose the chain of calls.

    Example:
        >>> one_line(ValueError("train.steps=0\\n  In call to configurable 'train' (<f>)"))
        'train.steps=0'
    """
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    lines = [_TF_NODE.sub("", line).strip() for line in str(text).splitlines()]
    kept = [line for line in lines if line and set(line) != {"^"} and not _GIN_CALL.match(line)]
    message = "; ".join(kept[:4]) or type(error).__name__
    builtin_kind = isinstance(error, (ValueError, OSError, ImportError, UsageError, SyntaxError))
    return message if builtin_kind else f"{type(error).__name__}: {message}"


def report(error: BaseException, debug: bool = False) -> int:
    """Prints an error on stderr and returns the exit code that belongs to it.

    Args:
        error: what ended the command.
        debug: print the traceback too.
    """
    if debug:
        traceback.print_exception(error)
    print(f"keras-vmoe: error: {one_line(error)}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1
