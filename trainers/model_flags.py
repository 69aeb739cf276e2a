"""The flags of commands that evaluate a trained model: which model, which images, where to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from keras_vmoe.trainers import command_line, gin_config
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    from keras_vmoe import data
    from keras_vmoe.trainers.trained import Trained

Number = TypeVar("Number", int, float)


def new_flags() -> flags.FlagValues:
    """Returns the flags that say which model, which images and where results go."""
    values = command_line.new_flags()
    for name, text in (
        ("workdir", "The folder of a run, finished or not."),
        ("model", "A .keras file, in place of --workdir."),
        ("out", "The folder of the results. Default: the workdir, or where the model is."),
        ("data_dir", "Where the images of --dataset lie. Default: as for dataset.data_dir."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in (
        ("dataset", "Other images: NAME, or NAME,TRAIN_SPLIT,HELD_OUT_SPLIT. Default: the run's."),
        ("gin_file", "A gin file of other images, such as data/fashion_mnist.gin. Repeatable."),
        ("gin_bindings", "A binding that wins, such as dataset.name='cifar10'. Repeatable."),
    ):
        flags.DEFINE_multi_string(name, [], text, flag_values=values)
    flags.DEFINE_integer(
        "max_corrupt",
        0,
        "Images of --dataset that may be left out, damaged. Default: 0.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images of a batch. Default: the run's.",
        lower_bound=1,
        flag_values=values,
    )
    return values


def check(values: flags.FlagValues, words: Sequence[str], command: str) -> None:
    """Refuses what can be told wrong before TensorFlow is imported.

    Raises:
        UsageError: stray words, not exactly one of --workdir and --model, or --data_dir alone.
        FileNotFoundError: a path or gin file that is not there.
    """
    if words:
        raise UsageError(
            f"{command}: unexpected {words[0]!r}; did you mean --workdir={words[0]}? "
            f"See keras-vmoe {command} --help"
        )
    if (values.workdir is None) == (values.model is None):
        raise UsageError(
            f"{command}: give either --workdir=DIR, the folder of a run, or --model=FILE.keras; "
            f"see keras-vmoe {command} --help"
        )
    flag, path = ("workdir", values.workdir) if values.model is None else ("model", values.model)
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"--{flag}={path}: there is no such file or folder")
    for name in ("data_dir", "max_corrupt"):
        if values[name].present and not values.dataset:
            raise UsageError(
                f"{command}: --{name} is of --dataset, which is not given; for the images of the "
                f'run write --gin_bindings="dataset.{name}={values[name].value!r}"'
            )
    for name in values.gin_file:
        gin_config.find(name)


def numbers(
    command: str, flag: str, words: Sequence[str], kind: Callable[[str], Number]
) -> tuple[Number, ...]:
    """Returns the numbers of a list flag.

    Raises:
        UsageError: an empty list, a word that is no number, or one that comes twice.

    Example:
        >>> numbers("evaluate", "num_selected", ["1", "2"], int)
        (1, 2)
    """
    try:
        found = tuple(kind(word) for word in words)
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found):
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(
            f"{command}: --{flag} must be different {what}, separated by commas. "
            f"Received: --{flag}={','.join(words)}"
        )
    return found


def load_trained(
    values: flags.FlagValues, pairs: bool | None = False, boxes: bool | None = False
) -> Trained:
    """Returns the model of the flags.

    Args:
        values: the flags.
        pairs, boxes: as of `trained.load`.

    Raises:
        ValueError: another backend than TensorFlow, and what `trained.load` raises.
    """
    path = values.workdir or values.model
    return load_trained_from(path, values.gin_file, values.gin_bindings, pairs, boxes)


def load_trained_from(
    path: str,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    pairs: bool | None,
    boxes: bool | None = False,
) -> Trained:
    """Returns the model of a run or a file, for commands with flags of their own.

    Args:
        path, gin_files, gin_bindings, pairs, boxes: as of `trained.load`.

    Raises:
        ValueError: another backend than TensorFlow, and what `trained.load` raises.
    """
    import keras

    from keras_vmoe.trainers import trained

    if (backend := keras.backend.backend()) != "tensorflow":
        raise ValueError(
            f"KERAS_BACKEND={backend!r}, but this command runs on TensorFlow; unset KERAS_BACKEND"
        )
    return trained.load(path, gin_files, gin_bindings, pairs, boxes)


def load_sources(values: flags.FlagValues, model: Trained) -> list[data.ImageSource]:
    """Returns the datasets of --dataset; without, that of the gin files, the run's own at first.

    Raises:
        UsageError: no --dataset for a model of pairs, or one that is neither a name nor a name and
            two splits.
    """
    from keras_vmoe import data

    if not values.dataset and model.tokenizer:
        raise UsageError(
            f"--dataset is missing: {model.origin} is a model of image-text pairs; name labelled "
            "images, such as --dataset=digits"
        )
    if not values.dataset:
        return [model.source]
    sources = []
    for word in values.dataset:
        name, train, held_out = name_and_splits(word)
        sources.append(
            data.load(
                name,
                values.data_dir,
                train_split=train,
                eval_split=held_out,
                max_corrupt=values.max_corrupt,
            )
        )
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--dataset: {name} comes twice; measure it in another call")
    return sources


def name_and_splits(word: str) -> tuple[str, str | None, str | None]:
    """Returns name, training split and held-out split of a --dataset.

    Raises:
        UsageError: a word that is neither a name nor a name and two splits.

    Example:
        >>> name_and_splits("digits"), name_and_splits("pets,train,test")
        (('digits', None, None), ('pets', 'train', 'test'))
    """
    name, *splits = word.split(",")
    if len(splits) not in (0, 2) or not all((name, *splits)):
        raise UsageError(
            f"--dataset={word} must be NAME, or NAME,TRAIN_SPLIT,HELD_OUT_SPLIT, such as "
            "--dataset=uc_merced,train[:1000],train[1000:]"
        )
    train, held_out = splits or (None, None)
    return name, train, held_out


def require_same_classes(source: data.ImageSource, model: Trained) -> None:
    """Refuses images of other classes than those of a model.

    Raises:
        ValueError: another number of classes, or other names.
    """
    if source.num_classes != model.num_classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, but the model has "
            f"{model.num_classes}; evaluate it on the data it was trained on, or see "
            "keras-vmoe fewshot"
        )
    if model.class_names and tuple(source.class_names) != tuple(model.class_names):
        raise ValueError(
            f"{source.name} has other classes than the model, "
            f"{', '.join(source.class_names[:3])}, … against {', '.join(model.class_names[:3])}, …"
        )


def out_folder(values: flags.FlagValues) -> Path:
    """Returns the folder of the results, which is made if need be."""
    near = Path(values.workdir) if values.workdir else Path(values.model).parent
    return make_folder(Path(values.out) if values.out else near)


def make_folder(path: Path) -> Path:
    """Makes the folder of the results if need be, and returns it.

    Raises:
        OSError: if it cannot be made.
    """
    folder = path.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--out={folder} cannot be made ({error.strerror}); name another --out"
        ) from error
    return folder


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); name another --out") from error
    finally:
        temporary.unlink(missing_ok=True)
