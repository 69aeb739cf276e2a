"""The command line of `keras-vmoe benchmark input`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.benchmark import tables
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

_TEXT = """
Prints how many images a second the input pipeline of a training run gives: that of a gin file, or
one made of the words below. Beside it the pipeline up to each of its stages, and the CPU time that
each adds. Half a minute.

  keras-vmoe benchmark input --gin_file=runs/fashion_mnist.gin
  keras-vmoe benchmark input --dataset=image_folder:photos --augment=flip,rand_augment --mix=mixup
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    default = settings_of.InputSettings()
    for name, text in (
        ("gin_file", "A run: a path, or one that is shipped. Repeatable."),
        ("gin_bindings", "A binding that wins over the file. Repeatable."),
    ):
        flags.DEFINE_multi_string(name, [], text, flag_values=values)
    for name, text in (
        ("dataset", "A dataset, where there is no gin file: digits, image_folder:PATH, ..."),
        ("data_dir", "Its folder."),
        ("crop", f"{', '.join(settings_of.CROPS)}. Default: {default.crop}."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, known in (("augment", settings_of.AUGMENTATIONS), ("mix", settings_of.MIXES)):
        text = f"{', '.join(known)}. Default: {','.join(getattr(default, name)) or 'none'}."
        flags.DEFINE_list(name, None, text, flag_values=values)
    for name, text in (
        ("image_size", f"Side of the images, pixels. Default: {default.image_size}."),
        ("batch_size", f"Images of a batch. Default: {default.batch_size}."),
        ("repeats", f"How often an example comes in a batch. Default: {default.repeats}."),
    ):
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("cache", None, "Hold encoded images in memory.", flag_values=values)
    flags.DEFINE_integer(
        "rounds", default.rounds, "Interleaved rounds.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "seconds",
        default.seconds,
        "Of each stage in each round.",
        lower_bound=0.01,
        flag_values=values,
    )
    report_of.define_flags(values)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark input`.

    Args:
        argv: the words after `input`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: whatever the data or the gin file is refused for.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark input")
    if values.help:
        print(command_line.help_text(values, "benchmark input [options]", _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"benchmark input: unexpected {words[0]!r}; see keras-vmoe benchmark input --help"
        )
    settings = _settings(values)
    earlier = report_of.check("input", values)
    from keras_vmoe.trainers.benchmark import input as input_of

    pipeline = input_of.find_pipeline(settings)
    report = report_of.begin("input", settings)
    if settings.gin_file:  # the words say nothing then
        kept = ("gin_file", "gin_bindings", "rounds", "seconds", "warmup")
        report["settings"] = {name: report["settings"][name] for name in kept}
    report["pipeline"] = pipeline.describe()
    progress = WorkProgress(input_of.total_work(pipeline, settings))
    print("\n".join(f"{name:<9}{value}" for name, value in report["pipeline"].items()), flush=True)
    try:
        report["rows"] = input_of.measure_input(pipeline, settings, progress)
    finally:
        progress.clear()
    print(f"\n{tables.header(tables.INPUT)}")
    for row in report["rows"]:
        print(tables.line(tables.INPUT, row))
    print(f"\n{tables.input_note(settings)}")
    return report_of.end(report, values.json, earlier)


def _settings(values: flags.FlagValues) -> settings_of.InputSettings:
    own = ("dataset", "data_dir", "image_size", "batch_size", "crop", "augment", "mix")
    given = {name: values[name].value for name in (*own, "repeats", "cache")}
    given = {name: value for name, value in given.items() if value is not None}
    if values.gin_file and given:
        raise UsageError(
            f"--{next(iter(given))} is said by the gin file; "
            "--gin_bindings=train.batch_size=64 changes what it says"
        )
    if not values.gin_file and "dataset" not in given:
        raise UsageError("benchmark input: give a --gin_file or a --dataset")
    for name, known in (("augment", settings_of.AUGMENTATIONS), ("mix", settings_of.MIXES)):
        if name in given:
            given[name] = settings_of.parse_choices(name, given[name], known)
    settings_of.parse_choices("crop", [given.get("crop", "squash")], settings_of.CROPS)
    return settings_of.InputSettings(
        gin_file=tuple(values.gin_file),
        gin_bindings=tuple(values.gin_bindings),
        rounds=values.rounds,
        seconds=values.seconds,
        **given,
    )
