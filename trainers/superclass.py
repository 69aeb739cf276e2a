"""`keras-vmoe superclass`: groups the classes that a dense model takes for each other."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from keras_vmoe.tables import aligned
from keras_vmoe.trainers import command_line, gin_config, model_flags
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import data
    from keras_vmoe.superclass import Superclasses
    from keras_vmoe.trainers.trained import Trained

_SYNOPSIS = "superclass --checkpoint=DIR_OR_FILE --num=E [--data=NAME] [options]"
_TEXT = """
Makes the super-classes of a Mobile V-MoE: classes that a trained dense model takes for each other
come into one, so that one expert learns to tell them apart. The model's predictions on held-out
images become a confusion matrix, that a graph of classes, and its communities, exactly as many as
there are experts, the super-classes. The same input gives the same super-classes.

The images must be held out from training, and should not be those that results are reported on, or
the experts have seen the test. The default is therefore what the run left out of its training
split, of a run on train[:99%] the images of train[99%:], or a split "validation" that it does not
use. Where there is neither, its held-out images are taken, and a note says so. 10 to 20 images of a
class are enough.

Writes superclasses.json, which a run takes as MobileVMoE.superclasses = @superclasses() and
superclasses.source = 'superclasses.json', and two pictures with their data as CSV:
confusion_matrix.png, ordered by super-class, and confusion_graph.png.

  keras-vmoe superclass --checkpoint=workdir/vit_s16 --num=10
  keras-vmoe superclass --checkpoint=model.keras --data=cifar100 --split=train[98%:] --num=20
  keras-vmoe superclass --checkpoint=workdir/vit_s16 --num=10 --method=spectral --balance=1.5
"""
FILE = "superclasses.json"
# A training split with something left out at its end.
_BEGINNING = re.compile(r"(\w+)\[:(\d+%?)\]")


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    for name, default, text in (
        ("checkpoint", None, "The folder of a dense model's run, or a .keras file."),
        ("data", None, "The images: NAME as of dataset.name. Default: the run's."),
        ("data_dir", None, "Where the images of --data lie. Default: as for dataset.data_dir."),
        ("split", None, "Their split, such as train[90%:]. Default: see above."),
        ("out", None, "The folder of the results. Default: where the model is."),
        ("method", "louvain", "louvain or spectral. Default: louvain."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, text in (
        ("gin_file", "A gin file of other images, such as data/cifar100.gin. Repeatable."),
        ("gin_bindings", "A binding that wins, such as dataset.data_dir='images'. Repeatable."),
    ):
        flags.DEFINE_multi_string(name, [], text, flag_values=values)
    for name, default, least, text in (
        ("num", None, 1, "How many super-classes: the experts (E)."),
        ("seed", 0, 0, "Of the method's random numbers. Default: 0."),
        ("neighbours", 20, 0, "Edges that a class keeps in the graph; 0: all. Default: 20."),
        ("batch_size", None, 1, "Images of a batch. Default: the run's."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    flags.DEFINE_float(
        "balance",
        None,
        "The largest super-class over the mean size, at most. Default: no limit.",
        lower_bound=1.0,
        flag_values=values,
    )
    for name, text in (
        ("counts", "Count predicted classes; do not sum probabilities."),
        ("overwrite", "Replace super-classes that were found before."),
    ):
        flags.DEFINE_boolean(name, False, text, flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe superclass`.

    Args:
        argv: the words after `superclass`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that does not fit the images, a class without images, fewer classes
            than super-classes, an unknown dataset or split.
        OSError: a model, images or results that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe superclass ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "superclass")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    _check(values, words)
    from keras_vmoe import models

    model = model_flags.load_trained_from(
        values.checkpoint, values.gin_file, values.gin_bindings, pairs=False
    )
    source, notes = _source(values, model)
    model_flags.require_same_classes(source, model)
    if values.num > source.num_classes:
        raise ValueError(
            f"--num={values.num} super-classes need as many classes, but {source.name} has "
            f"{source.num_classes}"
        )
    out = model_flags.make_folder(_folder(values))
    if models.is_sparse(model.model):
        notes = [*notes, _SPARSE]
    print(
        f"model    {type(model.model).__name__} of {model.origin}\n"
        f"data     {source.name}: {source.eval.num_examples:,} images of {source.eval_split}, "
        f"{source.num_classes} classes",
        flush=True,
    )
    for note in notes:
        print(f"note     {note}", flush=True)
    confusion = _confusion(model, source, values)
    origin = f"{model.origin}; {source.name}, {source.eval_split}"
    _write(confusion, source.class_names, values, origin, out)
    return 0


# What is asked for.


def _check(values: flags.FlagValues, words: Sequence[str]) -> None:
    """Refuses what can be told wrong before TensorFlow is imported."""
    if words:
        raise UsageError(
            f"superclass: unexpected {words[0]!r}; did you mean --checkpoint={words[0]}? "
            "See keras-vmoe superclass --help"
        )
    for name, example in (("checkpoint", "the folder of a run or a .keras file"), ("num", "10")):
        if values[name].value is None:
            raise UsageError(
                f"superclass: --{name} is missing: {example}; see keras-vmoe superclass --help"
            )
    if values.method not in ("louvain", "spectral"):
        raise UsageError(
            f"superclass: --method must be louvain or spectral. Received: --method={values.method}"
        )
    if values.data_dir is not None and values.data is None:
        raise UsageError(
            "superclass: --data_dir is of --data, which is not given; for the images of the run "
            f'write --gin_bindings="dataset.data_dir={values.data_dir!r}"'
        )
    if not Path(values.checkpoint).expanduser().exists():
        raise FileNotFoundError(
            f"--checkpoint={values.checkpoint}: there is no such file or folder"
        )
    for name in values.gin_file:
        gin_config.find(name)
    file = _folder(values) / FILE
    if file.exists() and not values.overwrite:
        raise FileExistsError(f"{file} exists; name another --out, or give --overwrite")


def _folder(values: flags.FlagValues) -> Path:
    """The folder of the results."""
    checkpoint = Path(values.checkpoint).expanduser()
    near = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return Path(values.out).expanduser() if values.out else near


def _source(values: flags.FlagValues, model: Trained) -> tuple[data.ImageSource, list[str]]:
    """The images whose held-out split is the one to take, and what there is to tell of it."""
    from keras_vmoe import data

    if values.data is not None:
        source = data.load(values.data, values.data_dir, eval_split=values.split)
        spare = None if values.split else unused_split(source)
        if spare in source.splits:
            return dataclasses.replace(source, eval_split=spare), []
        return source, [] if values.split else [_OF_DATA.format(split=source.eval_split)]
    own = model.source
    split = values.split or unused_split(own) or own.eval_split
    notes = []
    if split == own.eval_split:
        notes.append(_REPORTED.format(split=split))
    elif _overlaps(split, own.train_split):
        notes.append(_TRAINED_ON.format(split=split, train=own.train_split))
    if split in own.splits:
        return dataclasses.replace(own, eval_split=split), notes
    bindings = (*model.gin_bindings, f"dataset.eval_split = {split!r}")
    source = dataclasses.replace(model, gin_bindings=bindings).source
    if source.eval_split != split:
        raise ValueError(
            f"--split={split}: the run's data takes {source.eval_split} all the same; name the "
            "images with --data"
        )
    return source, notes


_OF_DATA = (
    "these are the images of {split}: report no result on them, or take others with --split, such "
    "as --split=train[99%:] where the model was trained on train[:99%]"
)
_REPORTED = (
    "{split} is what the run reports its accuracy on: super-classes that come of it have seen the "
    "test. The paper's rule are others: train on dataset.train_split='train[:99%]', where the data "
    "can be cut, and leave --split out"
)
_SPARSE = (
    "the model has experts already; super-classes are of what a dense one confuses, such as the "
    "dense twin of the model that is to be trained"
)
_TRAINED_ON = (
    "the model was trained on {train}, which holds images of {split}: what it confuses there says "
    "little of what it confuses elsewhere"
)


def unused_split(source: data.ImageSource) -> str | None:
    """Returns the split of images that a run neither trains nor reports on, if there is one.

    That is what it left out at the end of its training split, or a validation split beside the
    held-out one.

    Example:
        >>> from keras_vmoe import data
        >>> print(unused_split(data.load("digits")))
        None
    """
    if found := _BEGINNING.fullmatch(source.train_split):
        spare = f"{found[1]}[{found[2]}:]"
        held_out = _PART.fullmatch(source.eval_split)
        if held_out and held_out[3] and _overlaps(spare, source.eval_split):
            spare = f"{found[1]}[{held_out[3]}:]"
        if not _overlaps(spare, source.eval_split):
            return spare
    used = (source.train_split, source.eval_split)
    spare = (name for name in ("validation", "val") if name not in used)
    return next((name for name in spare if name in source.splits), None)


# A split or a part of it, such as train[10%:90%].
_PART = re.compile(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?")


def _overlaps(split: str, other: str) -> bool:
    """Whether two splits share images, as far as their names tell: sums of parts, in percent or in
    images; where one is in percent and the other in images, yes."""
    return any(
        _parts_overlap(_PART.fullmatch(one), _PART.fullmatch(two))
        for one in split.split("+")
        for two in other.split("+")
    )


def _parts_overlap(one: re.Match[str] | None, two: re.Match[str] | None) -> bool:
    if one is None or two is None or one[1] != two[1]:
        return False
    bounds = [part[i] for part in (one, two) for i in (2, 3) if part[i]]
    if len({bound.endswith("%") for bound in bounds}) > 1:
        return True
    first, last = (
        (max(_number(part[2], 0) for part in (one, two))),
        min(_number(part[3], math.inf) for part in (one, two)),
    )
    return first < last and first < (100 if any("%" in b for b in bounds) else math.inf)


def _number(bound: str | None, default: float) -> float:
    return float(bound.rstrip("%")) if bound else default


# What is done.


def _confusion(model: Trained, source: data.ImageSource, values: flags.FlagValues) -> np.ndarray:
    from keras_vmoe import evaluation, superclass
    from keras_vmoe.trainers.work_progress import WorkProgress

    size = values.batch_size or (model.config.eval_batch_size if model.config else 256)
    count = math.ceil(source.eval.num_examples / size)
    progress = WorkProgress(total_work=float(count))
    progress.begin("predictions", work=float(count))
    done = itertools.count(1)
    logits, labels = evaluation.collect_features(
        model.model,
        model.eval_batches(size, source.eval),
        lambda: progress.advance(next(done) / count),
    )
    progress.clear()
    logits = logits.astype("float64")
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    accuracy = (logits.argmax(1) == labels).mean()
    away = 1 - probabilities[np.arange(len(labels)), labels].mean()
    print(f"result   accuracy {accuracy:.2%}; {away:.2%} of the probability is of other classes")
    return superclass.confusion_matrix(labels, probabilities, source.num_classes, values.counts)


def _write(
    confusion: np.ndarray,
    class_names: Sequence[str],
    values: flags.FlagValues,
    origin: str,
    out: Path,
) -> None:
    from keras_vmoe import superclass
    from keras_vmoe.analysis import figures

    neighbours = values.neighbours or None
    found = superclass.find_superclasses(
        confusion,
        values.num,
        class_names,
        values.method,
        values.seed,
        neighbours,
        values.balance,
        origin,
    )
    graph = superclass.confusion_graph(confusion, neighbours)
    print(_summary(found))
    central = superclass.central_classes(graph, found.ids)
    print(_table([[class_names[i] for i in classes] for classes in central]))
    found.save(out / FILE)
    print(f"wrote    {out / FILE}", flush=True)
    for plot, matrix, name in (
        (figures.plot_confusion, confusion, "confusion_matrix.png"),
        (figures.plot_confusion_graph, graph, "confusion_graph.png"),
    ):
        if matrix.any():
            plot(matrix, found.ids, out / name, class_names, found.names)
            print(f"wrote    {out / name}", flush=True)


def _summary(found: Superclasses) -> str:
    from keras_vmoe.superclass import random_inside_confusion

    if found.inside_confusion is None or found.modularity is None:
        return f"result   {found.num_superclasses} super-classes; no class is confused with another"
    text = (
        f"result   {found.num_superclasses} super-classes by {found.method}, modularity "
        f"{found.modularity:.3f}\n         {found.inside_confusion:.1%} of the confusion is inside "
        "of super-classes"
    )
    chance = random_inside_confusion(found.ids)
    return f"{text}; with random ones of the same sizes {chance:.1%}, on average"


def _table(members: Sequence[Sequence[str]]) -> str:
    lines = [("super-class", "among its classes", "classes")]
    for number, names in enumerate(members):
        lines.append((str(number), ", ".join(names[:3]), str(len(names))))
    return "\n".join(aligned(lines, num_left=2))
