"""`keras-vmoe retrieval`: how often images and texts find each other among held-out pairs."""

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
    from keras_vmoe.trainers.trained import Trained

_SYNOPSIS = "retrieval --workdir=DIR | --model=FILE [--dataset=NAME] [options]"
_TEXT = """
Embeds the held-out images of a dataset and all their captions, and prints how often the right one
is among the nearest 1, 5 and 10, both ways (R@1, R@5, R@10), and the median rank. Several captions
of an image all count; equal scores count against the model. Writes retrieval.json.

  keras-vmoe retrieval --workdir=workdir/limoe/quickstart-seed0
  keras-vmoe retrieval --model=model.keras --dataset=coco_captions,train,val
  keras-vmoe retrieval --model=model.keras --dataset=caption_folder:pictures
"""


def _flags() -> flags.FlagValues:
    values = model_flags.new_flags()
    flags.DEFINE_string(
        "caption_field",
        None,
        "Where the captions of a --dataset of TensorFlow Datasets are, such as captions/text.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe retrieval`.

    Args:
        argv: the words after `retrieval`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that is not of pairs, an unknown dataset.
        OSError: a model, images or results that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe retrieval ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "retrieval")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    model_flags.check(values, words, "retrieval")
    if len(values.dataset) > 1:
        raise UsageError("retrieval: give one --dataset")
    out = model_flags.out_folder(values)
    model = model_flags.load_trained(values, pairs=True)
    source = _source(values, model)
    print(f"model    {type(model.model).__name__} of {model.origin}", flush=True)
    result = _measure(model, source, values.batch_size)
    path = out / "retrieval.json"
    content = {"model": model.origin, "dataset": source.name, **result.to_dict()}
    model_flags.write_json(path, content)
    print(f"wrote    {path}")
    return 0


def _source(values: flags.FlagValues, model: Trained) -> data.PairSource:
    from keras_vmoe import data

    if not values.dataset:
        return model.source.source
    name, train, held_out = model_flags.name_and_splits(values.dataset[0])
    return data.load_pairs(
        name,
        values.data_dir,
        train_split=train,
        eval_split=held_out,
        caption_field=values.caption_field,
        max_corrupt=values.max_corrupt,
    )


def _measure(
    model: Trained, source: data.PairSource, batch_size: int | None
) -> evaluation.RetrievalResult:
    from keras_vmoe.trainers import pair_evaluation
    from keras_vmoe.trainers.work_progress import WorkProgress

    print(f"data     {source.name}: {source.eval.num_examples:,} held-out images", flush=True)
    size = batch_size or 256
    work = math.ceil(source.eval.num_examples / size)
    progress = WorkProgress(total_work=float(work))
    progress.begin("embeddings", work=float(work))
    count = itertools.count(1)
    try:
        result, texts = pair_evaluation.recalls(
            model.model,
            model.tokenizer,
            source.eval,
            size,
            model.config.eval_crop if model.config else None,
            lambda: progress.advance(next(count) / work),
        )
    finally:
        progress.clear()
    counts = model.tokenizer.counts(texts)
    print(
        f"captions {len(texts):,}, {counts.cut:,} of them cut, {counts.unknown:,} of unknown words "
        "alone"
    )
    print(result.table(source.name))
    return result
