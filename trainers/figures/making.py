"""The figures by name: what each needs, how long it takes, how it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_vmoe import analysis, evaluation, layers, models
from keras_vmoe.analysis import figures
from keras_vmoe.analysis.run_summary import varying
from keras_vmoe.trainers import sweeping
from keras_vmoe.trainers.figures.inputs import COMPILE_WORK, STATISTICS_WORK, Inputs, Subject

SWEPT_CAPACITIES = (0.1, 0.2, 0.3, 0.5, 1.0, 1.5)
SHOWN_CAPACITIES = (1.0, 0.5, 0.2, 0.1)
CHOICES = (1, 2, 3, 5, 7)
_SHOWN = 3


class Recipe(NamedTuple):
    """How a figure is made.

    Attributes:
        lacks: says why it cannot be made from these inputs, or None.
        work: in passes of a compiled model over a batch, without the pass of the statistics.
        make: draws it to a path.
        records: whether it is drawn from the statistics of the one pass over the images.
    """

    lacks: Callable[[Inputs], str | None]
    work: Callable[[Inputs], float]
    make: Callable[[Inputs, Path], object]
    records: bool = False


# What is lacking.


def _dense(inputs: Inputs) -> str | None:
    if inputs.detector is not None:
        return f"needs a classifier, and {inputs.detector.name} is a detector of objects"
    if inputs.subject is None:
        return "needs a model with experts: --workdir=DIR"
    if not (inputs.subject.moe or models.is_sparse(inputs.subject.model)):
        return f"needs experts, and {inputs.subject.name} is a dense model"
    return None


def _no_experts(inputs: Inputs) -> str | None:
    if (lack := _dense(inputs)) or inputs.subject.moe:
        return lack
    return f"needs experts of tokens, and {inputs.subject.name} sends whole images to its experts"


def _no_buffers(inputs: Inputs) -> str | None:
    soft = "needs buffers, and soft routing has none"
    lack = _no_experts(inputs)
    return lack or (soft if inputs.subject.routers == {layers.SoftRouter} else None)


def _no_top_k(inputs: Inputs) -> str | None:
    other = "needs routers by which tokens choose experts (router='top_k')"
    lack = _no_experts(inputs)
    return lack or (None if inputs.subject.tokens_choose else other)


def _no_capacity(inputs: Inputs) -> str | None:
    soft = "needs a capacity factor, and soft routing has none"
    lack = _no_experts(inputs)
    if lack is None and layers.SoftRouter in inputs.subject.routers:
        lack = soft
    return lack or inputs.dense_twin[1]


def _no_runs(inputs: Inputs) -> str | None:
    if len(inputs.folders) < 2:
        return "needs two or more finished runs: --runs=DIR,DIR"
    return None


def _no_choices(inputs: Inputs) -> str | None:
    if any(_is_top_k(run) for run in inputs.runs):
        return None
    return _no_top_k(inputs)


def _no_orders(inputs: Inputs) -> str | None:
    found = {run.arguments["renormalise_gates"] for run in inputs.runs if _is_top_k(run)}
    if len(found) < 2:
        return "needs --runs of both kinds, renormalise_gates=False and True"
    return None


def _no_sweep(inputs: Inputs) -> str | None:
    if not figures.swept(inputs.runs):
        return "needs --runs that differ in num_experts, num_selected or placement"
    return None


def _no_detector(inputs: Inputs) -> str | None:
    return "needs a detector of objects" if inputs.detector is None else None


def _is_top_k(run: analysis.RunSummary) -> bool:
    return "renormalise_gates" in run.arguments


# From the statistics of one pass.


def _expert_class(inputs: Inputs, path: Path) -> None:
    names = inputs.subject.class_names
    figures.plot_expert_class(inputs.statistics, path, inputs.values.value, names)


def _expert_position(inputs: Inputs, path: Path) -> None:
    shape = tuple(inputs.subject.model.input_shape[1:3])
    figures.plot_expert_position(inputs.statistics, path, inputs.values.value, shape)


# From the model.


def _dropped_patches(inputs: Inputs, path: Path) -> None:
    subject = inputs.subject
    images = subject.first_images()
    records = {}
    settings = [(capacity, order) for capacity in SHOWN_CAPACITIES for order in (False, True)]
    step = inputs.counted("dropped patches", len(settings), STATISTICS_WORK)
    for capacity, order in settings:
        model = models.with_routing(subject.model, None, capacity, order)
        with models.exact_capacity(subject.model):
            of_layers = analysis.routing_records(model, images)
            records[capacity, order] = next(iter(of_layers.values()))
        step()
    group = min(subject.group, len(images))
    if group < _SHOWN:
        shown, captions = range(min(_SHOWN, len(images))), None
    else:
        # By position, vanilla routing serves the first image of a group best and the last worst.
        shown = (0, group // 2, group - 1)
        captions = [f"{place + 1} of {group} in its group" for place in shown]
    figures.plot_dropped_patches(images, records, path, shown, captions)


def _capacity_settings(subject: Subject) -> list[evaluation.RoutingSetting]:
    if not subject.tokens_choose:
        return evaluation.routing_settings(subject.model, capacity_factors=SWEPT_CAPACITIES)
    choices = {k for k in (1, 2, subject.num_selected) if k <= subject.most_choices}
    return evaluation.routing_settings(subject.model, sorted(choices), SWEPT_CAPACITIES)


def _capacity_work(inputs: Inputs) -> float:
    return len(_capacity_settings(inputs.subject)) * (inputs.subject.steps + COMPILE_WORK)


def _capacity(inputs: Inputs, path: Path) -> None:
    subject, settings = inputs.subject, _capacity_settings(inputs.subject)
    dense, _ = inputs.dense_twin
    turns = len(settings) + (dense is not None)
    step = inputs.counted("accuracy over capacity", turns * subject.steps, compiled=turns)
    rows = sweeping.sweep(
        subject.model,
        subject.batches,
        subject.steps,
        settings,
        dense=dense,
        loss=subject.trained.image_losses,
        timing_rounds=0,
        advance=lambda _: step(),
    )
    subtitle = f"{subject.data_name}, {sweeping.groups_in_words(rows)}"
    figures.plot_capacity([row._asdict() for row in rows], path, subtitle)


def _router_value_calls(inputs: Inputs) -> int:
    layers_of = len(inputs.subject.moe)
    return inputs.subject.steps * (1 + (2 * layers_of - 1) * inputs.values.draws)


def _router_value(inputs: Inputs, path: Path) -> None:
    subject, values = inputs.subject, inputs.values
    step = inputs.counted("value of the routers", _router_value_calls(inputs))
    value = analysis.router_value(
        subject.model, lambda: subject.accuracy(step), values.draws, values.seed
    )
    figures.plot_router_value(value, path)


def _detections(inputs: Inputs, path: Path) -> None:
    step = inputs.counted("detections", calls=1, compiled=1)
    found = inputs.detector.found()
    pictures = [
        figures.DetectedObjects(
            one.image,
            one.boxes * one.scale,
            one.classes,
            one.found_boxes * one.scale,
            one.scores,
            one.found_classes,
        )
        for one in found
    ]
    step()
    figures.plot_detections(pictures, path, inputs.detector.source.class_names)


# From several models.


def _k_folders(inputs: Inputs) -> list[Path]:
    """The models with top-k routing: that of --workdir or --model, and those of the runs."""
    folders = [
        folder for folder, run in zip(inputs.folders, inputs.runs, strict=True) if _is_top_k(run)
    ]
    if _no_top_k(inputs) is not None:
        return folders
    file = inputs.path.resolve()
    others = [f for f in folders if file not in (f.resolve(), (f / "model.keras").resolve())]
    return [inputs.path, *others]


def _k_matrix(inputs: Inputs, path: Path) -> None:
    sweeps = []
    for folder in _k_folders(inputs):
        subject = inputs.subject
        if subject is None or folder != inputs.path:
            subject = Subject(folder, inputs.values)
        sweeps.append(_selected_sweep(inputs, subject))
    figures.plot_k_matrix(sweeps, path)


def _selected_sweep(inputs: Inputs, subject: Subject) -> figures.SelectedSweep:
    choices = sorted({k for k in (*CHOICES, subject.num_selected) if k <= subject.most_choices})
    calls = len(choices) * subject.steps
    step = inputs.counted(f"other k, {subject.name}", calls, compiled=len(choices))
    rows = evaluation.routing_sweep(
        subject.model,
        subject.batches,
        [evaluation.RoutingSetting(num_selected=k) for k in choices],
        exact_capacity=False,
        timing_rounds=0,
        on_call=step,
    )
    accuracy = {row.num_selected: row.accuracy for row in rows}
    return figures.SelectedSweep(subject.name, subject.num_selected, accuracy)


def _sweeps(inputs: Inputs, path: Path) -> None:
    runs = inputs.runs
    # One line stands for all dense runs: their mean, which only seeds of one another have.
    differ = varying([run for run in runs if not run.sparse])
    if differ:
        runs = [run for run in runs if run.sparse]
        inputs.progress.print(f"sweeps   without dense runs: these differ in {', '.join(differ)}")
    figures.plot_sweeps(runs, path)


def _k_work(inputs: Inputs) -> float:
    steps = inputs.subject.steps if inputs.subject else 1
    return len(_k_folders(inputs)) * len(CHOICES) * (steps + COMPILE_WORK)


def _nothing(inputs: Inputs) -> float:
    return 0.0


RECIPES: dict[str, Recipe] = {
    "quality_cost": Recipe(
        _no_runs, _nothing, lambda inputs, path: figures.plot_quality_cost(inputs.runs, path)
    ),
    "capacity": Recipe(_no_capacity, _capacity_work, _capacity),
    "dropped_patches": Recipe(
        _no_top_k, lambda _: 2 * len(SHOWN_CAPACITIES) * STATISTICS_WORK, _dropped_patches
    ),
    "detections": Recipe(_no_detector, lambda _: 1 + COMPILE_WORK, _detections),
    "expert_class": Recipe(_dense, _nothing, _expert_class, records=True),
    "expert_position": Recipe(_no_experts, _nothing, _expert_position, records=True),
    "router_value": Recipe(_no_experts, _router_value_calls, _router_value),
    "gate_weights": Recipe(
        _no_experts,
        _nothing,
        lambda inputs, path: figures.plot_gate_weights(inputs.statistics, path),
        records=True,
    ),
    "k_matrix": Recipe(_no_choices, _k_work, _k_matrix),
    "gate_order": Recipe(
        _no_orders, _nothing, lambda inputs, path: figures.plot_gate_order(inputs.runs, path)
    ),
    "sweeps": Recipe(_no_sweep, _nothing, _sweeps),
    "buffers": Recipe(
        _no_buffers,
        _nothing,
        lambda inputs, path: figures.plot_buffers(inputs.statistics, path),
        records=True,
    ),
    "experts_per_image": Recipe(
        _no_experts,
        _nothing,
        lambda inputs, path: figures.plot_experts_per_image(inputs.statistics, path),
        records=True,
    ),
}
