"""`keras-vmoe vocabulary`: a vocabulary of the captions of a dataset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from keras_vmoe.trainers import command_line, model_flags
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import data, text

_SYNOPSIS = "vocabulary --dataset=NAME --out=FILE [options]"
_TEXT = """
Trains a SentencePiece vocabulary (a unigram model, lower-case) on the training captions of a
dataset, writes its model file, and prints how well it fits the training and the held-out captions.
The same captions give the same file.

  keras-vmoe vocabulary --dataset=digit_grids --size=128 --out=digits.model
  keras-vmoe vocabulary --dataset=coco_captions,train+restval,val --out=coco.model
  keras-vmoe vocabulary --dataset=caption_folder:photos --size=4000 --out=photos.model
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    for name, default, help_text in (
        (
            "dataset",
            None,
            "Images with captions: NAME, or NAME,TRAIN_SPLIT,HELD_OUT_SPLIT; a name that "
            "data.load_pairs knows.",
        ),
        ("data_dir", None, "Where they lie. Default: as for data.load_pairs."),
        ("caption_field", None, "Of TensorFlow Datasets: the feature of the captions."),
        ("out", None, "The file of the vocabulary."),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    for name, default, least, help_text in (
        ("size", 32_000, 4, "Most tokens of the vocabulary. Default: 32000."),
        ("length", 16, 2, "Tokens of a row, for what is printed. Default: 16."),
        ("max_captions", 1_000_000, 1, "Captions that are read, from the first. Default: 1000000."),
        ("max_corrupt", 0, 0, "Images that may be damaged or without caption. Default: 0."),
    ):
        flags.DEFINE_integer(name, default, help_text, lower_bound=least, flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe vocabulary`.

    Args:
        argv: the words after `vocabulary`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        FileExistsError: a file that is there already.
        ValueError: an unknown dataset, an empty caption, a size too small for the letters.
        OSError: captions or a file that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe vocabulary ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "vocabulary")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"vocabulary: unexpected {words[0]!r}; did you mean --dataset={words[0]}? "
            "See keras-vmoe vocabulary --help"
        )
    for name in ("dataset", "out"):
        if not values[name].value:
            raise UsageError(f"vocabulary: give --{name}; see keras-vmoe vocabulary --help")
    path = Path(values.out).expanduser()
    if path.is_dir():
        raise UsageError(f"vocabulary: --out={path} is a folder; name a file in it")
    if path.exists() and not values.overwrite:
        raise FileExistsError(f"--out={path} exists; give another, or --overwrite")
    _train(values, path)
    return 0


def _train(values: flags.FlagValues, path: Path) -> None:
    """Trains, writes and tells."""
    from keras_vmoe import data, text

    name, train, held_out = model_flags.name_and_splits(values.dataset)
    source = data.load_pairs(
        name,
        values.data_dir,
        train_split=train,
        eval_split=held_out,
        caption_field=values.caption_field,
        max_corrupt=values.max_corrupt,
        verify=False,
    )
    captions = _captions(source.train, values.max_captions)
    print(
        f"data     {source.name}: {len(captions):,} captions to learn from, of "
        f"{source.train.num_examples:,} images",
        flush=True,
    )
    tokenizer = text.train_tokenizer(captions, values.size, values.length, values.max_captions)
    try:
        tokenizer.save(path)
    except OSError as error:
        raise OSError(f"--out={path} cannot be written ({error.strerror}); name another") from error
    print(f"tokens   {tokenizer.vocabulary_size:,} of at most {values.size:,}")
    print(f"training {_told(tokenizer.counts(captions), values.length)}", flush=True)
    others = _captions(source.eval, values.max_captions)
    print(f"held out {_told(tokenizer.counts(others), values.length)}")
    print(f"wrote    {path}")


def _captions(split: data.Split, limit: int) -> list[str]:
    from keras_vmoe import data

    captions = itertools.chain.from_iterable(data.read_captions(split))
    return list(itertools.islice(captions, limit))


def _told(counts: text.TextCounts, length: int) -> str:
    """Returns a line of how well the vocabulary fits captions."""
    number = max(counts.texts, 1)
    return (
        f"{counts.texts:,} captions: {counts.cut / number:.1%} cut at {length} tokens, "
        f"{counts.partly_unknown / number:.1%} partly unknown, "
        f"{counts.unknown / number:.1%} altogether"
    )
