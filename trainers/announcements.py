"""What a run prints at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import keras

from keras_vmoe import data
from keras_vmoe.trainers.config import TrainConfig
from keras_vmoe.trainers.pairs import Pairs
from keras_vmoe.trainers.progress import duration
from keras_vmoe.trainers.tasks import Task
from keras_vmoe.trainers.workdir import Workdir


def introduce(
    config: TrainConfig,
    source: data.ImageSource | data.BoxSource | Pairs,
    task: Task,
    model: keras.Model,
    total_steps: int,
    workdir: Workdir,
    further: Iterable[tuple[str, object]] = (),
) -> None:
    """Prints what is about to be trained, on what, and where.

    Args:
        config: the run's parameters.
        source: its data.
        task: what it learns of them.
        model: its model.
        total_steps: its length.
        workdir: its folder.
        further: more lines, each a label and a text.
    """
    lines = [
        (
            "data",
            f"{source.name}: {source.train.num_examples:,} {task.examples} to train on, "
            f"{source.eval.num_examples:,} held out, {task.facts}",
        ),
        ("model", f"{type(model).__name__}: {model.count_params():,} parameters"),
        (
            "run",
            f"{total_steps:,} steps of {config.batch_size} {task.examples}, seed {config.seed}",
        ),
        ("workdir", workdir.path),
        *further,
    ]
    for label, text in lines:
        print(f"{label:<8} {text}", flush=True)


def conclude(
    source: data.ImageSource | data.BoxSource | Pairs,
    workdir: Workdir,
    seconds: float,
    scores: Sequence[str] = ("accuracy",),
) -> None:
    """Prints what came of a run, and what it left.

    Args:
        source: its data.
        workdir: its folder.
        seconds: how long it took.
        scores: of the task.
    """
    row = workdir.metrics.last("eval")
    names = sorted(path.name for path in workdir.path.iterdir() if path.name[0] != ".")
    if source.skipped:
        print(
            f"skipped  {len(source.skipped)} images that cannot be decoded, such as "
            f"{source.skipped[0]}"
        )
    print(
        f"done     held-out {_in_words(row, scores)}, loss {row['loss']:.3f}, "
        f"in {duration(seconds)}\nwrote    {', '.join(names)} to {workdir.path}",
        flush=True,
    )


def _in_words(row: Mapping[str, float], scores: Sequence[str]) -> str:
    return ", ".join(f"{name} {row[name]:.2%}" for name in scores if row.get(name) is not None)


def of_finished(
    workdir: Workdir, step: int, total_steps: int, scores: Sequence[str] = ("accuracy",)
) -> str:
    """Returns the line of a run that has nothing left to train.

    Args:
        workdir: its folder.
        step: that it reached.
        total_steps: that are asked for now.
        scores: of the task.
    """
    reached = _in_words(workdir.metrics.last("eval"), scores)
    asked = f", further than the {total_steps} asked for" if step > total_steps else ""
    return (
        f"already trained to step {step} in {workdir.path}{asked}: held-out "
        f"{reached}; to train anew use another --workdir or remove it"
    )


def of_evaluation(row: dict[str, float], step: int, total_steps: int) -> str:
    """Returns the line that tells of an evaluation.

    Args:
        row: what was measured.
        step: when.
        total_steps: of the run.

    Example:
        >>> of_evaluation({"loss": 0.5, "accuracy": 0.9}, 10, 20)
        'step 10/20  held-out loss 0.500  accuracy 90.00%'
    """
    return (
        f"step {step}/{total_steps}  held-out loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.2%}"
    )
