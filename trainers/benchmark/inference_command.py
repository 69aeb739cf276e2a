"""The command line of `keras-vmoe benchmark inference`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.benchmark import environment, tables
from keras_vmoe.trainers.benchmark import report as report_of
from keras_vmoe.trainers.benchmark import settings as settings_of
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

# Run by `inference.measure_inference` alone; the help does not name it.
CHILD = "inference_threads"
_TEXT = """
Prints the images a second of a V-MoE at inference with batch priority when the capacity of its
experts is cut, beside its dense twin, and what the MoE layers alone then take of their time at C=1.
Each number of threads is measured in a process of its own. Any argument of the model can be
overridden. Some minutes on two cores; a quicker look, and other models:

  keras-vmoe benchmark inference --batches=8 --threads=1 --rounds=3
  keras-vmoe benchmark inference --model=vmoe_b16 --experts=32 --plot=speed.png
  keras-vmoe benchmark inference num_selected=1 placement=last_2
"""
_NOT_OVERRIDDEN = {
    "num_experts": "--experts",
    "image_size": "--image_size",
    "eval_capacity_factor": "--capacities",
    "expert_capacity": "--capacities",
    "name": "--model",
}


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    default = settings_of.InferenceSettings()
    text = f"A preset of VMoE. Default: {default.model}."
    flags.DEFINE_string("model", default.model, text, flag_values=values)
    for name, given, text in (
        (
            "capacities",
            default.capacities,
            f"Capacity factors (C); {settings_of.TRAIN}: that of training.",
        ),
        ("batches", default.batches, "Images of a batch."),
        ("threads", default.threads, "Threads, at most the cores there are."),
    ):
        listed = ",".join(map(str, given))
        listed_text = f"{text} Default: {listed}."
        flags.DEFINE_list(
            name, None if name == "threads" else listed, listed_text, flag_values=values
        )
    for name, text in (
        ("experts", "Experts of a sparse block (E)."),
        ("image_size", "Side of the images, pixels."),
        ("rounds", "Interleaved rounds."),
    ):
        given = getattr(default, name)
        text = f"{text} Default: {given}."
        flags.DEFINE_integer(name, given, text, lower_bound=1, flag_values=values)
    report_of.define_flags(values, plot=True)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe benchmark inference`.

    Args:
        argv: the words after `inference`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that is no preset of VMoE, an argument that it does not have.
        RuntimeError: a process that measures failed.
    """
    values = _flags()
    words = command_line.parse(values, argv, "benchmark inference")
    if values.help:
        synopsis = "benchmark inference [options] [NAME=VALUE]..."
        print(command_line.help_text(values, synopsis, _TEXT), end="")
        return 0
    settings = _settings(values, words)
    earlier = report_of.check("inference", values)
    from keras_vmoe.trainers.benchmark import inference

    inference.check_model(settings)
    report = report_of.begin("inference", settings)
    progress = WorkProgress(inference.total_work(settings))
    try:
        print(f"\n{tables.header(tables.INFERENCE)}", flush=True)
        report["rows"] = inference.measure_inference(
            settings, progress, lambda row: progress.print(tables.line(tables.INFERENCE, row))
        )
    finally:
        progress.clear()
    print(f"\n{tables.inference_note(settings)}")
    if values.plot is not None:
        from keras_vmoe.analysis import figures

        model = f"{settings.model} with {settings.experts} experts, {settings.image_size} px"
        figures.plot_inference_speed(report["rows"], values.plot, model)
        print(f"drawn: {values.plot}")
    return report_of.end(report, values.json, earlier)


def run_child(words: Sequence[str]) -> int:
    """Runs what measures one number of threads, in the process that is started for it.

    Args:
        words: one word, the JSON text of what to measure.
    """
    from keras_vmoe.trainers.benchmark import inference

    return inference.main(words)


def _settings(values: flags.FlagValues, words: Sequence[str]) -> settings_of.InferenceSettings:
    for name in ("capacities", "batches", "threads"):
        if values[name].value == []:
            raise UsageError(f"--{name} is empty")
    return settings_of.InferenceSettings(
        model=values.model,
        experts=values.experts,
        image_size=values.image_size,
        capacities=_parse_capacities(values.capacities),
        batches=settings_of.parse_numbers("batches", values.batches),
        threads=_parse_threads(values.threads),
        overrides=settings_of.parse_overrides(
            "inference", words, "num_selected=1", _NOT_OVERRIDDEN
        ),
        rounds=values.rounds,
    )


def _parse_capacities(words: Sequence[str]) -> tuple[float | str, ...]:
    found: list[float | str] = []
    for word in words:
        if word == settings_of.TRAIN:
            found.append(word)
            continue
        try:
            found += settings_of.parse_numbers("capacities", [word], float)
        except UsageError:
            raise UsageError(
                f"--capacities: {word!r} is unknown; a capacity factor is a number above 0, such "
                f"as 0.5, or {settings_of.TRAIN}, the model's own in training"
            ) from None
    return tuple(found)


def _parse_threads(words: Sequence[str] | None) -> tuple[int, ...]:
    """The numbers of threads; of the default, those that there are cores for."""
    cores = environment.machine()["cores"]
    if words is None:
        default = settings_of.InferenceSettings().threads
        return tuple(threads for threads in default if threads <= cores)
    found = settings_of.parse_numbers("threads", words)
    if max(found) > cores:
        raise UsageError(
            f"--threads={','.join(words)}: {max(found)} threads are more than the {cores} cores "
            "that this process may use"
        )
    return found
