"""The command line of `keras-vmoe benchmark dispatch`."""

from __future__ import annotations

from collections.abc import Sequence

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import shared_flags, tables
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

_TEXT = """
Prints the time of the MoE layer with each of its ways to the experts (grouped, gather, einsum),
over experts, choices, tokens and passes, and holds the one that dispatch='auto' takes against the
fastest. Some fifteen minutes on two cores; a quicker look, and groups of single images:

  keras-vmoe benchmark dispatch --experts=8 --selected=1 --tokens=800,6272
  keras-vmoe benchmark dispatch --images_per_group=1 --tokens=800
"""


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark dispatch`.

    Args:
        argv: the words after `dispatch`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
    """
    values = shared_flags.table_flags(rounds=5, dispatch=False)
    shared_flags.define_layer_flags(values)
    words = command_line.parse(values, argv, "benchmark dispatch")
    if values.help:
        print(command_line.help_text(values, "benchmark dispatch [options]", _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"benchmark dispatch: unexpected {words[0]!r}; see keras-vmoe benchmark dispatch --help"
        )
    settings = shared_flags.layer_settings(values)
    earlier = report_of.check("dispatch", values)
    report = report_of.begin("dispatch", settings)
    from keras_vmoe.trainers.benchmark import dispatch, layer

    progress = WorkProgress(sum(cell.work for cell in layer.cells(settings)))
    try:
        print(f"\n{tables.header(tables.DISPATCH)}", flush=True)
        report["rows"] = dispatch.measure_dispatch(
            settings, progress, lambda row: progress.print(tables.line(tables.DISPATCH, row))
        )
    finally:
        progress.clear()
    print(f"\n{tables.dispatch_note(settings)}")
    return report_of.end(report, values.json, earlier)
