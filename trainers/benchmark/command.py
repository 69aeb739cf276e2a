"""The command line of `keras-vmoe benchmark`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import (
    autoscale,
    device_command,
    device_memory,
    dispatch_command,
    inference_command,
    input_command,
    memory,
    scaling_command,
    shared_flags,
    step_command,
    tables,
)
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

_HELP = """
usage: keras-vmoe benchmark TABLE [options]

Measures this package on this machine: models as ratios of two things that take turns in one run.
A busy machine makes the ratios noisy and the times meaningless: let nothing else run.

tables:
  layer       the MoE layer beside a dense MLP of the same work, and capacity against time
  dispatch    the ways to the experts beside one another, and the one that the layer takes
  model       V-MoE S/32 beside a plain Keras ViT: forward, training step, peak memory
  step        where the CPU time of a model's step goes, part by part
  input       images a second of a training input pipeline, stage by stage
  inference   images a second of a V-MoE against the capacity of its experts
  scaling     the MoE layer and a model as experts, k, groups, capacity, size and batch change
  device      LiteRT files of Mobile V-MoE beside their dense twins, one image at a time
  autoscale   seconds that As-ViT's search spends on a topology, by measure

  keras-vmoe benchmark layer --json=layer.json
  keras-vmoe benchmark model --memory --json=model.json
  keras-vmoe benchmark input --gin_file=runs/quickstart.gin
  keras-vmoe benchmark device --form=auto,einsum --json=device.json
  keras-vmoe benchmark layer --against=layer.json     the same again, beside an earlier run
  keras-vmoe benchmark TABLE --help                   the options of a table
"""

_LAYER_TEXT = """
Prints the efficiency of the MoE layer, over experts, choices, tokens and passes: the time of a
dense MLP on as many rows as the layer keeps, over the time of the layer. Then the layer's time at
inference when its capacity is cut. Some ten minutes on two cores; a quicker look:

  keras-vmoe benchmark layer --experts=8 --selected=1 --tokens=6272
"""

_MODEL_TEXT = """
Prints the time of a forward pass and of a training step of V-MoE S/32 (k=1, C=1.05, batch
priority, groups of 8 images) over that of a plain Keras ViT. A row is dense or PLACEMENT:EXPERTS.
Any argument of the models can be overridden. Some minutes on two cores; a quicker look:

  keras-vmoe benchmark model --rows=dense,last_2:8 --image_size=64 --rounds=3
  keras-vmoe benchmark model --rows=every_2:8 num_layers=4 width=128 mlp_dim=512
"""


def _layer_flags() -> flags.FlagValues:
    values = shared_flags.table_flags()
    shared_flags.define_layer_flags(values)
    flags.DEFINE_list(
        "capacities",
        "1,0.5,0.2",
        "Capacity factors of the second table; empty: no such table. Default: 1,0.5,0.2.",
        flag_values=values,
    )
    return values


def _model_flags() -> flags.FlagValues:
    values = shared_flags.table_flags()
    rows = ",".join(row.name for row in settings_of.ModelSettings().rows)
    flags.DEFINE_list("rows", rows, f"Models. Default: {rows}.", flag_values=values)
    shared_flags.define_model_flags(values)
    flags.DEFINE_boolean(
        "memory", False, "Measure peak memory too, each in a process.", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark`.

    Args:
        argv: the words after `benchmark`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: another backend than TensorFlow, a model argument that there is not.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe benchmark ...
        0
    """
    tables_by_name = {
        "layer": _run_layer,
        "model": _run_model,
        "dispatch": dispatch_command.run,
        "step": step_command.run,
        "input": input_command.run,
        "device": device_command.run,
        "inference": inference_command.run,
        "scaling": scaling_command.run,
        "autoscale": autoscale.run,
    }
    words = [word for word in argv if word != "--debug"]
    if words and words[0] in ("-h", "--help", "help"):
        print(_HELP.strip())
        return 0
    if not words:
        raise UsageError(f"benchmark: name a table: {', '.join(tables_by_name)}")
    name, rest = words[0], words[1:]
    if name == memory.COMMAND and rest:
        return memory.main(rest)
    if name == device_memory.COMMAND and rest:
        return device_memory.main(rest)
    if name == inference_command.CHILD and rest:
        return inference_command.run_child(rest)
    if name not in tables_by_name:
        raise UsageError(
            f"benchmark: unknown table {name!r}; the tables are: {', '.join(tables_by_name)}"
        )
    return tables_by_name[name](rest)


def _run_layer(argv: Sequence[str]) -> int:
    values = _layer_flags()
    words = command_line.parse(values, argv, "benchmark layer")
    if values.help:
        print(command_line.help_text(values, "benchmark layer [options]", _LAYER_TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"benchmark layer: unexpected {words[0]!r}; see keras-vmoe benchmark layer --help"
        )
    settings = _layer_settings(values)
    earlier = report_of.check("layer", values)
    report = report_of.begin("layer", settings)
    from keras_vmoe.trainers.benchmark import layer

    grid = layer.cells(settings) + layer.capacity_cells(settings)
    progress = WorkProgress(sum(cell.work for cell in grid))
    try:
        print(f"\n{tables.header(tables.LAYER)}", flush=True)
        report["rows"] = layer.measure_layer(
            settings, progress, lambda row: progress.print(tables.line(tables.LAYER, row))
        )
        progress.print(f"\n{tables.layer_note(settings)}")
        if settings.capacities:
            print(f"\n{tables.header(tables.CAPACITY)}", flush=True)
            report["capacity_rows"] = layer.measure_capacity(
                settings, progress, lambda row: progress.print(tables.line(tables.CAPACITY, row))
            )
            progress.print(f"\n{tables.capacity_note(settings)}")
    finally:
        progress.clear()
    return report_of.end(report, values.json, earlier)


def _layer_settings(values: flags.FlagValues) -> settings_of.LayerSettings:
    return dataclasses.replace(
        shared_flags.layer_settings(values),
        capacities=settings_of.parse_numbers("capacities", values.capacities, float),
        dispatch=values.dispatch,
    )


def _run_model(argv: Sequence[str]) -> int:
    values = _model_flags()
    words = command_line.parse(values, argv, "benchmark model")
    if values.help:
        synopsis = "benchmark model [options] [NAME=VALUE]..."
        print(command_line.help_text(values, synopsis, _MODEL_TEXT), end="")
        return 0
    settings = _model_settings(values, words)
    earlier = report_of.check("model", values)
    from keras_vmoe.trainers.benchmark import model

    model.check_rows(settings)
    report = report_of.begin("model", settings)
    progress = WorkProgress(model.total_work(settings))
    try:
        print(f"\n{tables.header(tables.MODEL)}", flush=True)
        report["rows"], report["plain"] = model.measure_model(
            settings, progress, lambda row: progress.print(tables.line(tables.MODEL, row))
        )
    finally:
        progress.clear()
    print(f"\n{tables.model_note(settings)}\n{tables.plain_line(report['plain'])}")
    return report_of.end(report, values.json, earlier)


def _model_settings(values: flags.FlagValues, words: Sequence[str]) -> settings_of.ModelSettings:
    settings = shared_flags.model_settings("model", values, words, values.rows, "rows")
    if not settings.rows:
        raise UsageError("--rows is empty")
    return dataclasses.replace(settings, memory=values.memory)
