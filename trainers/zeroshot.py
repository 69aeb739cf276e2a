"""`keras-vmoe zeroshot`: zero-shot classification by a model of image-text pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line, model_flags
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import data, evaluation
    from keras_vmoe.trainers import pair_evaluation
    from keras_vmoe.trainers.trained import Trained

_SYNOPSIS = "zeroshot --workdir=DIR | --model=FILE --dataset=NAME [options]"
_TEXT = """
Classifies the held-out images of a labelled dataset by texts alone: the name of each class is put
into every template, the embeddings of these prompts are averaged, and an image gets the class that
it is nearest to. Prints the accuracy (of more than five classes the top-5 as well); writes
zeroshot.json, with the accuracy of each class.

  keras-vmoe zeroshot --workdir=workdir/limoe/quickstart-seed0 --dataset=digits
  keras-vmoe zeroshot --model=model.keras --dataset=imagenet2012 --class_names=names.txt
  keras-vmoe zeroshot --model=model.keras --dataset=digits --templates=templates.txt
"""


def _flags() -> flags.FlagValues:
    values = model_flags.new_flags()
    flags.DEFINE_string(
        "class_names",
        None,
        "A file of a name a line, in the order of the labels. Default: those that the run measures "
        "this dataset with (ZeroShot.class_names); the dataset's own where there are none.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "templates",
        None,
        "clip_best, class_name_only, or a file of a template a line, such as: a photo of a {}. "
        "Default: those of the run (ZeroShot.templates); clip_best where there is none.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe zeroshot`.

    Args:
        argv: the words after `zeroshot`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that is not of pairs, names or templates that do not fit, an unknown
            dataset.
        OSError: a model, images or results that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe zeroshot ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "zeroshot")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    model_flags.check(values, words, "zeroshot")
    if not values.dataset:
        raise UsageError(
            "zeroshot: --dataset is missing; name labelled images, such as --dataset=digits"
        )
    if values.class_names is not None and len(values.dataset) > 1:
        raise UsageError("zeroshot: --class_names is of one --dataset")
    from keras_vmoe import evaluation, text

    given = None if values.templates is None else text.templates(values.templates)
    out = model_flags.out_folder(values)
    model = model_flags.load_trained(values, pairs=True)
    sources = model_flags.load_sources(values, model)
    print(f"model    {type(model.model).__name__} of {model.origin}", flush=True)
    templates, origin = (given, "--templates") if given else _default_templates(model)
    print(f"prompts  {len(templates)} of a class, {origin}", flush=True)
    results = {
        source.name: _measure(model, source, values.class_names, templates, values.batch_size)
        for source in sources
    }
    print(evaluation.zero_shot_table(results))
    path = out / "zeroshot.json"
    content = {"model": model.origin, "templates": list(templates)}
    content["datasets"] = {name: result.to_dict() for name, result in results.items()}
    model_flags.write_json(path, content)
    print(f"wrote    {path}")
    return 0


def _default_templates(model: Trained) -> tuple[tuple[str, ...], str]:
    """Returns templates, and where they are from."""
    from keras_vmoe import text

    if own := _of_run(model):
        return own.templates, "ZeroShot.templates of the run"
    return text.templates("clip_best"), "clip_best"


def _of_run(model: Trained) -> pair_evaluation.ZeroShot | None:
    """Returns what the run measures, so that the command can measure the same."""
    return model.config.zero_shot if model.config else None


def _measure(
    model: Trained,
    source: data.ImageSource,
    class_names: str | None,
    templates: Sequence[str],
    batch_size: int | None,
) -> evaluation.ZeroShotResult:
    from keras_vmoe import text
    from keras_vmoe.trainers import pair_evaluation
    from keras_vmoe.trainers.work_progress import WorkProgress

    if class_names is None and (own := _of_run(model)):
        class_names = own.class_names_of(source.name)
    names = pair_evaluation.names_of(source, class_names)
    prompts = [one for several in text.prompts(names, templates) for one in several]
    unknown = model.tokenizer.counts(prompts).unknown
    print(
        f"data     {source.name}: {source.eval.num_examples:,} held-out images, {len(names)} "
        f"classes, {len(prompts):,} prompts, {unknown:,} of them of unknown words alone",
        flush=True,
    )
    size = batch_size or 256
    work = math.ceil(source.eval.num_examples / size)
    progress = WorkProgress(total_work=float(work))
    progress.begin(f"embeddings of {source.name}", work=float(work))
    count = itertools.count(1)
    try:
        return pair_evaluation.zero_shot(
            model.model,
            model.tokenizer,
            source,
            names,
            templates,
            size,
            model.config.eval_crop if model.config else None,
            lambda: progress.advance(next(count) / work),
        )
    finally:
        progress.clear()
