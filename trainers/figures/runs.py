"""What the folder of a finished run says of its quality and its cost."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_vmoe import analysis, models
from keras_vmoe.trainers import gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.workdir import OF_MEASURING

FEW_SHOT = "fewshot/"
# A backward pass costs two forward passes.
_PASSES_OF_A_STEP = 3
_SEED = "train.seed"
# The steps among a run's arguments mostly tell of them.
_LENGTHS = ("train.epochs", "train.steps")
# What only some routers know.
_OF_ROUTERS = ("num_selected", "renormalise_gates", "capacity_factor")
# Settings that labels name even where fewer tell the runs apart.
_MOST_NAMED = 3


def summarise(folder: Path, model: keras.Model) -> analysis.RunSummary:
    """Reads what a run reached and what it cost, up to its last evaluation.

    Args:
        folder: the run's workdir.
        model: its model, from images in [-1, 1] to logits.

    Returns:
        The summary. FLOPs are those of forward and backward passes; the time is that of the
        training steps as they were logged.

    Raises:
        ValueError: a folder whose log holds no evaluation, or no speed of training.
    """
    rows = MetricsLog(folder / "metrics.jsonl").rows()
    evaluations = [row for row in rows if row["split"] == "eval"]
    if not evaluations:
        raise ValueError(
            f"--runs={folder}: metrics.jsonl holds no evaluation; train it to the end first"
        )
    last = evaluations[-1]
    bindings = _bindings(folder)
    batch_size = int(bindings["train.batch_size"])
    images = last["step"] * batch_size
    flops = analysis.profile(model, training=True).flops
    return analysis.RunSummary(
        name=folder.absolute().name,
        sparse=models.is_sparse(model),
        accuracy=last["accuracy"],
        train_flops=float(_PASSES_OF_A_STEP * flops * images),
        train_seconds=_seconds(folder, rows, last["step"], batch_size),
        seed=int(bindings.get(_SEED, 0)),
        params=model.count_params(),
        few_shot=_few_shot(rows),
        arguments={**_arguments(model), "steps": last["step"]},
    )


def tell_apart(
    folders: Sequence[Path], runs: Sequence[analysis.RunSummary]
) -> list[analysis.RunSummary]:
    """Adds to the arguments of runs the settings, beside the model's, that tell them apart.

    Figures take runs of the same arguments for seeds of one another. After this, runs have the
    same arguments only if their configs train the same but for `train.seed`. The first three
    settings that differ are added, and of the others those without which two configs look alike.

    Args:
        folders: the runs' workdirs, of one dataset.
        runs: their summaries, in the same order.

    Returns:
        The summaries, in the same order. A setting has the name of its gin parameter without what
        stands before the dot, unless that is taken; one that a run lacks is "-".

    Raises:
        ValueError: two runs of one config and one seed, which a mean would count twice.
    """
    configs = [_settings(folder, run) for folder, run in zip(folders, runs, strict=True)]
    _refuse_repeats(folders, runs, configs)
    added: list[dict[str, Any]] = [{} for _ in runs]
    for sparse in (False, True):
        group = [i for i, run in enumerate(runs) if run.sparse == sparse]
        names = _telling([configs[i] for i in group], [runs[i].arguments["steps"] for i in group])
        taken = {"name"}.union(*(runs[i].arguments for i in group))
        for name, label in _labels(names, taken).items():
            for i in group:
                added[i][label] = _value(configs[i].get(name, "-"))
    return [
        dataclasses.replace(run, arguments={**run.arguments, **settings})
        for run, settings in zip(runs, added, strict=True)
    ]


def _bindings(folder: Path) -> dict[str, str]:
    return gin_config.bindings((folder / "config.gin").read_text(encoding="utf-8"))


def _settings(folder: Path, run: analysis.RunSummary) -> dict[str, str]:
    """What was trained, without the seed and without what the model's arguments say."""
    bindings = _bindings(folder)
    model = bindings.get("train.model", "").lstrip("@")
    said = {f"{model}.{name}" for name in (*run.arguments, *_OF_ROUTERS, "name")}
    said |= {_SEED} | OF_MEASURING
    return {name: value for name, value in bindings.items() if name not in said}


def _refuse_repeats(
    folders: Sequence[Path],
    runs: Sequence[analysis.RunSummary],
    configs: Sequence[Mapping[str, str]],
) -> None:
    found: dict[str, Path] = {}
    for folder, run, config in zip(folders, runs, configs, strict=True):
        arguments = {name: value for name, value in run.arguments.items() if name != "name"}
        parts = (sorted(config.items()), sorted(arguments.items()), run.sparse, run.seed)
        first = found.setdefault(repr(parts), folder)
        if first is not folder:
            raise ValueError(
                f"--runs={folder} has the config and the seed, {_SEED}={run.seed}, of {first}, and "
                "would count twice; leave one out, or train it with another seed"
            )


def _telling(configs: Sequence[Mapping[str, str]], steps: Sequence[int]) -> list[str]:
    """Few parameters in one of which configs differ if they differ in any."""
    names = {name for config in configs for name in config}
    columns = {name: [config.get(name) for config in configs] for name in names}
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    for name in _LENGTHS:
        if name in columns and _parts(steps, columns[name]) == _parts(steps):
            del columns[name]

    def place(name: str) -> tuple[bool, bool, str]:
        # What only some have follows from another setting: Augment.shift from train.augment.
        rate = name.endswith(".learning_rate")
        return None in columns[name], not rate, name

    chosen: list[str] = []
    for name in sorted(columns, key=place):
        before = [columns[other] for other in chosen]
        named = len(chosen) < _MOST_NAMED and None not in columns[name]
        if named or _parts(*before, columns[name]) > _parts(*before):
            chosen.append(name)
    return chosen


def _parts(*columns: Sequence[Any]) -> int:
    """Into how many groups columns cut the runs."""
    return len(set(zip(*columns, strict=True))) if columns else 1


def _labels(names: Sequence[str], taken: set[str]) -> dict[str, str]:
    short = [name.rpartition(".")[2] for name in names]
    return {
        name: name if word in taken or short.count(word) > 1 else word
        for name, word in zip(names, short, strict=True)
    }


def _value(text: str) -> Any:
    """What a gin parameter is bound to; a reference stays as it is written."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _seconds(folder: Path, rows: list[dict[str, Any]], until: int, batch_size: int) -> float:
    """Time of the training steps, each row's speed taken for the steps since the one before."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["split"] != "train" or row["step"] > until:
            continue
        speed = row.get("images_per_second")
        if not speed:
            raise ValueError(
                f"--runs={folder}: metrics.jsonl has no images_per_second at step {row['step']}"
            )
        seconds += (row["step"] - before) * batch_size / speed
        before = row["step"]
    if not before:
        raise ValueError(f"--runs={folder}: metrics.jsonl holds no row of training")
    return seconds


def _few_shot(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last few-shot accuracies that were logged."""
    found: dict[str, float] = {}
    for row in rows:
        numbers = {n: v for n, v in row.items() if n.startswith(FEW_SHOT) and v is not None}
        found.update(numbers)
    return found


def _arguments(model: keras.Model) -> dict[str, Any]:
    """The model's arguments as plain values, and what its routers make of their defaults."""
    plain = (str, int, float, bool, tuple, type(None))
    arguments = {n: v for n, v in getattr(model, "arguments", {}).items() if isinstance(v, plain)}
    moe = models.moe_layers(model)
    if moe:
        router = moe[0].router
        arguments["num_experts"] = router.num_experts
        arguments["sparse_blocks"] = len(moe)
        arguments.setdefault("placement", f"{len(moe)} layers")
        for name in _OF_ROUTERS:
            # A model has arguments that its kind of router does not know.
            arguments.pop(name, None)
            if hasattr(router, name):
                arguments[name] = getattr(router, name)
    return arguments
