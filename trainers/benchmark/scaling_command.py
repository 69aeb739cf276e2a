"""The command line of `keras-vmoe benchmark scaling`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import scaling_grid as grid_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.benchmark import tables
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

_TEXT = """
Prints what the MoE layer costs, and a small V-MoE, when one thing at a time changes: experts,
choices, images of a group, capacity, image size, batch. Beside each cost stands what FLOPs predict;
both are relative to a dense MLP, or a dense model, at the base of the grid. Some minutes on two
cores; seconds, a few panels, and a picture:

  keras-vmoe benchmark scaling --grid=smallest
  keras-vmoe benchmark scaling --axes=experts,batch --subjects=layer --rounds=3
  keras-vmoe benchmark scaling --experts=4,16,64 --plot=scaling.png --json=scaling.json
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    default = grid_of.ScalingSettings()
    flags.DEFINE_enum(
        "grid",
        "default",
        list(grid_of.GRIDS),
        f"{', '.join(grid_of.GRIDS)}; the other words replace its values. Default: default.",
        flag_values=values,
    )
    for name, text in (
        ("axes", f"What is varied: {', '.join(grid_of.AXES)}. Default: all."),
        ("subjects", "layer, model. Default: both."),
        ("experts", "Numbers of experts (E)."),
        ("selected", "Choices per token (k)."),
        ("images_per_group", "Images routed together."),
        ("capacities", "Capacity factors (C)."),
        ("image_sizes", "Sides of the images, pixels."),
        ("batches", "Images of a batch."),
    ):
        listed = ",".join(f"{value}" for value in getattr(default, name))
        text = text if "Default" in text else f"{text} Default: {listed}."
        flags.DEFINE_list(name, None, text, flag_values=values)
    flags.DEFINE_integer(
        "rounds",
        None,
        f"Interleaved rounds. Default: {default.rounds}.",
        lower_bound=1,
        flag_values=values,
    )
    report_of.define_flags(values, plot=True)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark scaling`.

    Args:
        argv: the words after `scaling`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark scaling")
    if values.help:
        print(command_line.help_text(values, "benchmark scaling [options]", _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"benchmark scaling: unexpected {words[0]!r}; see keras-vmoe benchmark scaling --help"
        )
    settings = _settings(values)
    earlier = report_of.check("scaling", values)
    from keras_vmoe.trainers.benchmark import scaling

    report = report_of.begin("scaling", settings)
    report["settings"]["base"] = settings.base._asdict()
    progress = WorkProgress(scaling.total_work(settings))
    try:
        print(f"\n{tables.header(tables.SCALING)}", flush=True)
        report["rows"] = scaling.measure_scaling(
            settings, progress, lambda row: progress.print(tables.line(tables.SCALING, row))
        )
    finally:
        progress.clear()
    print(f"\n{tables.scaling_note(settings)}")
    if values.plot is not None:
        from keras_vmoe.analysis import figures

        figures.plot_scaling(report["rows"], values.plot, tables.scaling_base(settings))
        print(f"drawn: {values.plot}")
    return report_of.end(report, values.json, earlier)


def _settings(values: flags.FlagValues) -> grid_of.ScalingSettings:
    grid = grid_of.GRIDS[values.grid]
    names = ("axes", "subjects", *grid_of.AXES.values())
    given = {name: values[name].value for name in names if values[name].value is not None}
    for name, words in given.items():
        if not words:
            raise UsageError(f"--{name} is empty")
        if name == "axes":
            given[name] = settings_of.parse_choices(name, words, tuple(grid_of.AXES))
        elif name == "subjects":
            given[name] = settings_of.parse_choices(name, words, (grid_of.LAYER, grid_of.MODEL))
        else:
            kind = float if name == "capacities" else int
            given[name] = settings_of.parse_numbers(name, words, kind)
    if values.rounds is not None:
        given["rounds"] = values.rounds
    settings = dataclasses.replace(grid, **given)
    _check(settings)
    return settings


def _check(settings: grid_of.ScalingSettings) -> None:
    """Refuses places where nothing can be built, before anything is measured."""
    experts = settings.base.experts
    if max(settings.selected) > experts:
        raise UsageError(
            f"--selected={max(settings.selected)} is more than the {experts} experts of the grid's "
            "base"
        )
    if min(settings.image_sizes) < settings.patch_size:
        raise UsageError(
            f"--image_sizes={min(settings.image_sizes)} is less than a patch of "
            f"{settings.patch_size} px"
        )
