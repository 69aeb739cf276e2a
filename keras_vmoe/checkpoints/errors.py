"""What is wrong with a file of weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file of weights that is missing, damaged, or not what was asked for.

    The message begins with the file's path, and says why.
    """
