"""`keras-vmoe fewshot`: few-shot transfer of a trained model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line, model_flags
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import data, evaluation
    from keras_vmoe.trainers import few_shot_evaluation
    from keras_vmoe.trainers.trained import Trained

_SYNOPSIS = "fewshot --workdir=DIR | --model=FILE [--dataset=NAME]... [options]"
_TEXT = """
Draws a few training images of each class, fits a linear classifier on the model's frozen features
of them, in closed form, and prints its accuracy on the held-out images: mean and deviation over
several draws. The penalty is the best one on the held-out images, one for all datasets (by mean
rank), as in V-MoE's reference code. Of a model of image-text pairs the features are the
embeddings of images. Writes fewshot.json.

  keras-vmoe fewshot --workdir=workdir/quickstart-seed0
  keras-vmoe fewshot --model=model.keras --dataset=digits --dataset=image_folder:pets --shots=5
"""


def _flags() -> flags.FlagValues:
    values = model_flags.new_flags()
    flags.DEFINE_list(
        "shots", "1,5,10,25", "Training images per class. Default: 1,5,10,25.", flag_values=values
    )
    flags.DEFINE_integer(
        "seeds", 3, "How many draws of them. Default: 3.", lower_bound=1, flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe fewshot`.

    Args:
        argv: the words after `fewshot`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model without a head, a class without images, an unknown dataset.
        OSError: a model, images or results that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe fewshot ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "fewshot")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    model_flags.check(values, words, "fewshot")
    shots = model_flags.numbers("fewshot", "shots", values.shots, int)
    if min(shots) < 1:
        raise UsageError(f"fewshot: --shots must be 1 or more. Received: {min(shots)}")
    out = model_flags.out_folder(values)
    model = model_flags.load_trained(values, pairs=None)
    sources = model_flags.load_sources(values, model)
    print(f"model    {type(model.model).__name__} of {model.origin}", flush=True)
    results = _measure(model, sources, shots, tuple(range(values.seeds)), values.batch_size)
    path = out / "fewshot.json"
    content = {"model": model.origin, "image_size": model.image_size}
    content["datasets"] = {name: result.to_dict() for name, result in results.items()}
    model_flags.write_json(path, content)
    print(f"wrote    {path}")
    return 0


def _measure(
    model: Trained,
    sources: Sequence[data.ImageSource],
    shots: tuple[int, ...],
    seeds: tuple[int, ...],
    batch_size: int | None,
) -> dict[str, evaluation.FewShotResult]:
    """Prints the table and returns what is in it."""
    from keras_vmoe import evaluation, models
    from keras_vmoe.trainers.work_progress import WorkProgress

    extractor = models.feature_extractor(model.model)
    draws = [_draw(source, shots, seeds) for source in sources]
    size = batch_size or (model.config.eval_batch_size if model.config else 256)
    work = [drawn.passes(size) for drawn in draws]
    fits = len(sources) * len(shots) * len(seeds)
    progress = WorkProgress(total_work=float(sum(work) + fits))
    found = {}
    for drawn, batches in zip(draws, work, strict=True):
        progress.begin(f"features of {drawn.source.name}", work=float(batches))
        count = itertools.count(1)
        found[drawn.source.name] = drawn.features(
            extractor,
            lambda split: model.eval_batches(size, split),
            lambda count=count, batches=batches: progress.advance(next(count) / batches),
        )
    progress.begin("linear classifiers", work=float(fits))
    count = itertools.count(1)
    results = evaluation.few_shot_transfer(
        found, shots, seeds, on_fit=lambda: progress.advance(next(count) / fits)
    )
    progress.print(evaluation.few_shot_table(results))
    return results


def _draw(
    source: data.ImageSource, shots: tuple[int, ...], seeds: tuple[int, ...]
) -> few_shot_evaluation.Draws:
    """Draws the images of one dataset, and tells of it."""
    from keras_vmoe.trainers import few_shot_evaluation

    print(
        f"data     {source.name}: {source.train.num_examples:,} images to draw from, "
        f"{source.eval.num_examples:,} held out, {source.num_classes} classes",
        flush=True,
    )
    drawn = few_shot_evaluation.draw(source, shots, seeds)
    if notice := drawn.notice():
        print(f"note     {notice}", flush=True)
    return drawn
