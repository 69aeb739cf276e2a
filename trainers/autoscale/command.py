"""The command line of `keras-vmoe autoscale`."""

from __future__ import annotations

from collections.abc import Sequence

from keras_vmoe.trainers.errors import UsageError

_HELP = """
usage: keras-vmoe autoscale search|grow [options]

Finds As-ViTs without training one, by two measures of networks as they are drawn: the length of the
curve that a network makes of a circle of images (L^E, to be long) and the condition number of its
neural tangent kernel (NTK, to be small).

  search      a small topology, by REINFORCE over 4.5 million of them
  grow        a topology's depths and width, step by step, up to a number of parameters

  keras-vmoe autoscale search --out=workdir/search
  keras-vmoe autoscale grow --topology="8,2,3|4,1,2|4,1,4|4,1,6|32" --out=workdir/grow
  keras-vmoe autoscale search --help                  the options of either
"""


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe autoscale`.

    Args:
        argv: the words after `autoscale`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: values out of range, or a state of another command in the folder.
        OSError: images that are not there, or results that cannot be written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe autoscale search|grow ...
        0
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.lstrip(), end="")
        return 0
    from keras_vmoe.trainers.autoscale import grow_command, search_command

    runs = {"search": search_command.run, "grow": grow_command.run}
    if argv[0] not in runs:
        raise UsageError(f"autoscale: {argv[0]!r} is neither search nor grow")
    return runs[argv[0]](argv[1:])
