"""The `keras-vmoe` command: finds the subcommand, runs it, says plainly what went wrong.

Only the standard library and absl are imported here, so that help costs no import of TensorFlow;
a subcommand's module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from keras_vmoe.trainers import errors


class Command(NamedTuple):
    """One subcommand: the module whose `main(argv)` runs it, and its line in the help."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("train", "train a model from a gin file"),
    "profile": Command("profile", "count the parameters and FLOPs of a model, without building it"),
    "evaluate": Command("evaluate", "measure a trained model, also with other routing"),
    "fewshot": Command("fewshot", "measure few-shot transfer of a trained model"),
    "vocabulary": Command("vocabulary", "make the vocabulary of a dataset's captions"),
    "zeroshot": Command("zeroshot", "classify images by the names of their classes alone"),
    "retrieval": Command("retrieval", "find texts by images and images by texts"),
    "superclass": Command("superclass", "group the classes that a dense model confuses"),
    "convert": Command("convert", "turn weights of other implementations into a model, and back"),
    "predict": Command("predict", "name the classes of images, and draw their routing"),
    "export": Command("export", "write a model as SavedModel, ONNX or LiteRT"),
    "autoscale": Command("autoscale.command", "search and grow an As-ViT without training"),
    "repro": Command("repro.command", "show the claims of a paper in miniature, with numbers"),
    "figures": Command("figures", "draw the figures of V-MoE from finished runs"),
    "tpu-compile": Command("tpu_compile.command", "tell what a run needs on a TPU, without a TPU"),
    "benchmark": Command("benchmark", "measure layers and models against their dense twins"),
}


def usage() -> str:
    """Returns the text of `keras-vmoe --help`."""
    rows = "\n".join(f"  {name:<13}{command.summary}" for name, command in COMMANDS.items())
    return (
        "Sparse mixtures of experts for vision in Keras 3.\n\n"
        "usage: keras-vmoe COMMAND [options]\n\n"
        f"commands:\n{rows}\n\n"
        "  keras-vmoe train --gin_file=runs/quickstart.gin     a first run, in a minute or two\n"
        "  keras-vmoe COMMAND --help                           the options of a command\n"
    )


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning  {message}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one `keras-vmoe` command line.

    Args:
        argv: the words after `keras-vmoe`; those of this process by default.

    Returns:
        The exit code: 0, 1 for an error, 2 for a wrong command line, 130 and 143 when a run was
        stopped by Ctrl-C and by SIGTERM.

    Example:
        >>> from keras_vmoe.trainers import cli
        >>> cli.main(["profile", "--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe profile ...
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        return errors.report(
            errors.UsageError(f"unknown command {name!r}; the commands are: {', '.join(COMMANDS)}")
        )
    # Before Keras is imported, which says less, or nothing.
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend not in errors.BACKENDS and not {"-h", "--help"} & set(rest):
        return errors.report(errors.of_backend(backend))
    debug = "--debug" in rest
    # TensorFlow reports at length on devices that it does not find; it reads this when imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "3")
    warnings.formatwarning = _one_line_warning
    try:
        module = importlib.import_module(f"keras_vmoe.trainers.{COMMANDS[name].module}")
        return int(module.main(rest) or 0)
    except KeyboardInterrupt:
        print("\nkeras-vmoe: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return errors.report(error, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
