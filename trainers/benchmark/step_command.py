"""The command line of `keras-vmoe benchmark step`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import child, shared_flags, tables
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

_ROW = "every_2:32"
_PASSES = (settings_of.FORWARD, settings_of.TRAIN)
_TEXT = """
Prints where the CPU time of a forward pass and of a training step of V-MoE S/32 goes, part by part,
by TensorFlow's own profiler. It runs on one thread, where the time of an operation is its CPU time.
A model is dense or PLACEMENT:EXPERTS, as in benchmark model. A quicker look:

  keras-vmoe benchmark step --row=last_2:8 --passes=train --image_size=64
  keras-vmoe benchmark step num_layers=4 width=128 mlp_dim=512
"""


def _flags() -> flags.FlagValues:
    values = shared_flags.table_flags(3, "Steps that are traced.")
    passes = ",".join(_PASSES)
    flags.DEFINE_string("row", _ROW, f"The model. Default: {_ROW}.", flag_values=values)
    flags.DEFINE_list("passes", passes, f"Passes. Default: {passes}.", flag_values=values)
    shared_flags.define_model_flags(values)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark step`.

    Args:
        argv: the words after `step`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: an argument that the models do not have.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark step")
    if values.help:
        synopsis = "benchmark step [options] [NAME=VALUE]..."
        print(command_line.help_text(values, synopsis, _TEXT), end="")
        return 0
    passes = settings_of.parse_choices("passes", values.passes, _PASSES)
    if not passes:
        raise UsageError("--passes is empty")
    settings = shared_flags.model_settings("step", values, words, [values.row], "row")
    earlier = report_of.check("step", values)
    child.use_threads(1)
    from keras_vmoe.trainers.benchmark import model, step

    model.check_rows(settings, "row")
    report = report_of.begin("step", settings)
    report.update(rows=[], steps={})
    progress = WorkProgress(float(len(passes)))
    try:
        print(f"\n{tables.header(tables.STEP)}", flush=True)
        for mode in passes:
            rows, report["steps"][mode] = step.measure_step(settings, mode, progress)
            report["rows"] += rows
            progress.print("\n".join(tables.line(tables.STEP, row) for row in rows))
    finally:
        progress.clear()
    print(f"\n{tables.step_note(settings, report['steps'])}")
    return report_of.end(report, values.json, earlier)
