"""The command line of `keras-vmoe figures`."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line, gin_config, model_flags
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.progress import duration

if TYPE_CHECKING:
    from keras_vmoe.trainers.figures.inputs import Inputs
    from keras_vmoe.trainers.figures.making import Recipe

# The names and what they show; `making` says how they are made.
FIGURES = {
    "quality_cost": "accuracy over training FLOPs and time, dense and sparse (--runs)",
    "capacity": "accuracy over capacity at inference, vanilla and BPR (dense line with --runs)",
    "dropped_patches": "the patches that are dropped at C = 1, 0.5, 0.2 and 0.1, on images",
    "detections": "images with their objects and those that a detector finds",
    "expert_class": "which classes each expert works on, early and late",
    "expert_position": "where in the image each expert's patches lie",
    "router_value": "accuracy when routers are replaced by random ones",
    "gate_weights": "how large the two largest gates of a token are",
    "k_matrix": "accuracy with other k than in training (more rows with --runs)",
    "gate_order": "softmax before or after the choice of experts (--runs)",
    "sweeps": "accuracy over the number of experts, k and placement (--runs)",
    "buffers": "slots that are filled and choices that are dropped",
    "experts_per_image": "how many experts work on one image",
}

# What a finished run leaves.
_RUN = ("config.gin", "metrics.jsonl", "model.keras")
_SPLITS = ("train_split", "eval_split")

_SYNOPSIS = "figures [--workdir=DIR | --model=FILE] [--runs=DIR,DIR...] [options]"
_TEXT = """
Draws the figures of V-MoE from a finished run, and from several for those that compare, each as a
PNG with its data as CSV. Figures that these runs do not allow are left out, and the reason is said.
The runs of --runs are of one dataset, and averaged only if their config.gin differs in nothing but
train.seed.

{figures}

  keras-vmoe figures --workdir=workdir/quickstart-seed0
  keras-vmoe figures --workdir=workdir/a --only=expert_class,gate_weights --images=0
  keras-vmoe figures --runs=workdir/a,workdir/b,workdir/c --out=compared
"""


def _flags() -> flags.FlagValues:
    values = model_flags.new_flags()
    values[
        "out"
    ].help = (
        "The folder of the figures. Default: figures/ in the workdir, beside the model, or here."
    )
    for name, text in (
        ("runs", "Finished runs to compare, separated by commas."),
        ("only", "The figures to draw, by name, separated by commas."),
        ("skip", "Figures to leave out, by name, separated by commas."),
    ):
        flags.DEFINE_list(name, [], text, flag_values=values)
    for name, default, least, text in (
        ("images", 2048, 0, "Held-out images to look at, in whole batches; 0: all."),
        ("draws", 3, 1, "Random routers for each point of router_value."),
        ("seed", 0, 0, "Of the random routers."),
    ):
        text = f"{text} Default: {default}."
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    flags.DEFINE_enum(
        "value",
        "weight",
        ("weight", "frequency"),
        "What heat maps show: mean routing weight, or share of tokens. Default: weight.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe figures`.

    Args:
        argv: the words after `figures`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: images of other classes than the model's, runs of different datasets, or runs
            from which the figures cannot be drawn.
        OSError: a folder that is missing or cannot be written to.
    """
    values = _flags()
    words = command_line.parse(values, argv, "figures")
    if values.help:
        rows = "\n".join(f"  {name:<19}{text}" for name, text in FIGURES.items())
        text = _TEXT.format(figures=rows)
        print(command_line.help_text(values, _SYNOPSIS, text), end="")
        return 0
    if words:
        raise UsageError(f"figures: unexpected {words[0]!r}; see keras-vmoe figures --help")
    if len(values.dataset) > 1:
        raise UsageError(
            "figures: give one --dataset; the model has the classes of one. "
            f"Received: {' '.join(f'--dataset={word}' for word in values.dataset)}"
        )
    # All that can be said of the command line is said before TensorFlow is imported.
    names = _names(values.only, values.skip)
    path, folders = _check_paths(values)
    _check_dataset(folders)
    out = _out_folder(values, path)
    _check_libraries()
    from keras_vmoe.trainers.figures.inputs import Inputs

    return _draw(Inputs(values, path, folders, out), names, chosen=bool(values.only))


def _names(only: list[str], skip: list[str]) -> list[str]:
    for flag, names in (("only", only), ("skip", skip)):
        for name in names:
            if name not in FIGURES:
                raise UsageError(
                    f"figures: --{flag}={name}: there is no such figure; there are "
                    f"{', '.join(FIGURES)}"
                )
    names = [name for name in FIGURES if name in (only or FIGURES) and name not in skip]
    if not names:
        raise UsageError("figures: --skip leaves no figure to draw")
    return names


def _check_paths(values: flags.FlagValues) -> tuple[Path | None, list[Path]]:
    """The model to look at, if any, and the folders of --runs."""
    runs = [word for word in values.runs if word]
    if values.workdir is None and values.model is None:
        if not runs:
            raise UsageError(
                "figures: give a run, --workdir=DIR, or several, --runs=DIR,DIR; "
                "see keras-vmoe figures --help"
            )
        return None, [_finished_run(word) for word in runs]
    model_flags.check(values, (), "figures")
    path = Path(values.workdir or values.model).expanduser()
    return path, [_finished_run(word) for word in runs]


def _finished_run(word: str) -> Path:
    folder = Path(word).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--runs={word}: there is no such folder")
    lacking = [name for name in _RUN if not (folder / name).is_file()]
    if lacking:
        raise FileNotFoundError(
            f"--runs={word} is not the folder of a finished run: it holds no "
            f"{' and no '.join(lacking)}"
        )
    return folder


def _check_dataset(folders: Sequence[Path]) -> None:
    """Refuses runs of different datasets, whose accuracies no figure can compare."""
    found = [_dataset(folder) for folder in folders]
    for folder, dataset in zip(folders, found, strict=True):
        if dataset != found[0]:
            splits = [name for name in _SPLITS if dataset[name] != found[0][name]]
            one, other = (_in_words(facts, splits) for facts in (found[0], dataset))
            raise ValueError(
                f"--runs: {folders[0]} was trained on {one}, {folder} on {other}; give the runs of "
                "one dataset"
            )


def _dataset(folder: Path) -> dict[str, str]:
    """The name and the splits of the data that a run was trained and evaluated on."""
    bindings = gin_config.bindings((folder / "config.gin").read_text(encoding="utf-8"))
    function = bindings.get("train.dataset", "@dataset").lstrip("@")
    facts = {name: bindings.get(f"{function}.{name}", "None") for name in _SPLITS}
    return {"name": bindings.get(f"{function}.name", function).strip("'\""), **facts}


def _in_words(dataset: Mapping[str, str], splits: Sequence[str]) -> str:
    told = ", ".join(f"{name}={dataset[name]}" for name in splits)
    return f"{dataset['name']} ({told})" if told else dataset["name"]


def _out_folder(values: flags.FlagValues, path: Path | None) -> Path:
    """Where the figures go; it is made when there is something to put there."""
    near = path if values.workdir else path.parent if values.model else Path()
    folder = Path(values.out).expanduser() if values.out else near / "figures"
    made = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    # Only the attempt tells: to root, permissions allow what file systems refuse.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"--out={folder} cannot be written to ({error.strerror}); name another --out"
        ) from error
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
    return folder


def _check_libraries() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; figures need: pip install 'keras-vmoe[train]'"
        ) from None
    import keras

    if (backend := keras.backend.backend()) != "tensorflow":
        raise ValueError(
            f"KERAS_BACKEND={backend!r}, but this command runs on TensorFlow; unset KERAS_BACKEND"
        )


def _draw(inputs: Inputs, names: list[str], chosen: bool) -> int:
    from keras_vmoe.trainers.figures.making import RECIPES
    from keras_vmoe.trainers.work_progress import WorkProgress

    began = time.monotonic()
    # TensorFlow warns of the models that are compiled one after the other.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    recipes = {name: RECIPES[name] for name in names}
    lacking = {name: why for name, r in recipes.items() if (why := r.lacks(inputs)) is not None}
    if lacking and (chosen or len(lacking) == len(recipes)):
        raise ValueError(f"cannot draw {'; '.join(_by_reason(lacking))}")
    _introduce(inputs)
    recipes = {name: recipe for name, recipe in recipes.items() if name not in lacking}
    inputs.out.mkdir(parents=True, exist_ok=True)
    inputs.progress = WorkProgress(_total_work(inputs, recipes))
    try:
        for name, recipe in recipes.items():
            path = inputs.out / f"{name}.png"
            recipe.make(inputs, path)
            inputs.progress.print(f"wrote    {path} and {name}.csv")
    finally:
        inputs.progress.clear()
    for line in _by_reason(lacking):
        print(f"left out {line}")
    seconds = duration(time.monotonic() - began)
    plural = "s" if len(recipes) > 1 else ""
    print(f"done     {len(recipes)} figure{plural} in {inputs.out}, in {seconds}")
    return 0


def _by_reason(lacking: Mapping[str, str]) -> list[str]:
    """The names of figures that lack the same, and what it is."""
    reasons = dict.fromkeys(lacking.values())
    return [
        f"{', '.join(name for name, why in lacking.items() if why == reason)}: {reason}"
        for reason in reasons
    ]


def _introduce(inputs: Inputs) -> None:
    from keras_vmoe import models

    subject = inputs.subject
    if subject is not None:
        print(
            f"model    {subject.name}: {subject.model.count_params():,} parameters, "
            f"{len(subject.moe) or len(models.image_moe_layers(subject.model))} MoE layers\n"
            f"images   {subject.num_images:,} held out of {subject.data_name}",
            flush=True,
        )
    if inputs.detector is not None:
        found = inputs.detector
        print(
            f"model    {found.name}: {found.model.count_params():,} parameters, a detector of "
            f"objects\nimages   {found.num_images:,} held out of {found.source.name}",
            flush=True,
        )
    if inputs.folders:
        kinds = [run.sparse for run in inputs.runs]
        print(f"runs     {sum(kinds)} sparse, {len(kinds) - sum(kinds)} dense", flush=True)


def _total_work(inputs: Inputs, recipes: dict[str, Recipe]) -> float:
    """In passes of a compiled model over a batch."""
    from keras_vmoe.trainers.figures.inputs import STATISTICS_WORK

    work = sum(recipe.work(inputs) for recipe in recipes.values())
    if any(recipe.records for recipe in recipes.values()):
        work += inputs.subject.steps * STATISTICS_WORK
    return max(work, 1.0)
