"""The command line of `keras-vmoe benchmark device`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.benchmark import tables
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.export import PRECISIONS
from keras_vmoe.trainers.work_progress import WorkProgress

_TEXT = """
Writes Mobile V-MoEs and their dense twins, of random weights, as LiteRT files, runs them in the
LiteRT interpreter one image at a time, and prints latencies, their ratio, file sizes and peak
memory. Any argument of the models can be overridden. A minute for each model. The effect of a form
that multiplies by all experts, several models, and two experts for each image:

  keras-vmoe benchmark device --form=auto,einsum
  keras-vmoe benchmark device --model=mobile_vmoe_12x64,mobile_vmoe_12x384 --precision=float32,int8
  keras-vmoe benchmark device num_selected=2
"""
_NOT_OVERRIDDEN = {"dispatch": "--form"}


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    default = settings_of.DeviceSettings()
    for name, words, text in (
        ("model", default.models, "Presets of MobileVMoE."),
        (
            "form",
            default.forms,
            f"How experts are read: {', '.join(settings_of.FORMS)}.",
        ),
        ("precision", default.precisions, f"Weights: {', '.join(PRECISIONS)}."),
        ("threads", default.threads, "Threads of the interpreter."),
    ):
        listed = ",".join(map(str, words))
        flags.DEFINE_list(name, listed, f"{text} Default: {listed}.", flag_values=values)
    flags.DEFINE_integer(
        "rounds", default.rounds, "Interleaved rounds.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_boolean(
        "memory", True, "Measure peak memory too, each in a process.", flag_values=values
    )
    report_of.define_flags(values)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark device`.

    Args:
        argv: the words after `device`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that does not route whole images, an argument that there is not.
        ImportError: LiteRT is not installed.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark device")
    if values.help:
        synopsis = "benchmark device [options] [NAME=VALUE]..."
        print(command_line.help_text(values, synopsis, _TEXT), end="")
        return 0
    settings = _settings(values, words)
    earlier = report_of.check("device", values)
    from keras_vmoe.trainers.benchmark import device

    for name in settings.models:  # what cannot be built is found before anything is measured
        device.build_model(name, "auto", settings)
    report = report_of.begin("device", settings)
    progress = WorkProgress(device.total_work(settings))
    try:
        print(f"\n{tables.header(tables.DEVICE)}", flush=True)
        report["rows"] = device.measure_device(
            settings, progress, lambda row: progress.print(tables.line(tables.DEVICE, row))
        )
    finally:
        progress.clear()
    print(f"\n{tables.device_note(settings)}")
    return report_of.end(report, values.json, earlier)


def _settings(values: flags.FlagValues, words: Sequence[str]) -> settings_of.DeviceSettings:
    overrides = settings_of.parse_overrides("device", words, "num_selected=2", _NOT_OVERRIDDEN)
    for name in ("model", "form", "precision", "threads"):
        if not values[name].value:
            raise UsageError(f"--{name} is empty")
    return settings_of.DeviceSettings(
        models=tuple(values.model),
        forms=settings_of.parse_choices("form", values.form, settings_of.FORMS),
        precisions=settings_of.parse_choices("precision", values.precision, PRECISIONS),
        threads=settings_of.parse_numbers("threads", values.threads),
        overrides=overrides,
        rounds=values.rounds,
        memory=values.memory,
    )
