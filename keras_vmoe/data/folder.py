"""Folders of image files, one sub-folder per class."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_vmoe.data.source import (
    MEMORY_LIMIT,
    ArraySplit,
    FileSplit,
    ImageSource,
    Split,
    stratified_split,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_OTHER_FORMATS = (".webp", ".tif", ".tiff", ".heic", ".avif", ".jxl")
CHANNELS = 3
_EVAL_NAMES = ("validation", "val", "test")


def load_folder(
    folder: str | Path,
    train_split: str | None = None,
    eval_split: str | None = None,
    verify: bool = True,
) -> ImageSource:
    """Loads `folder/train/CLASS/*.png` and its like, or `folder/CLASS/*.png`.

    With a `train` folder, each of `validation`, `val` and `test` that exists becomes a split.
    Without, every sub-folder is a class and the images are split 80/20, each class keeping its
    share, in the same way each time. Images are read in colour.

    Args:
        folder: the top folder.
        train_split: name of the split folder to train on, "train" by default.
        eval_split: name of the held-out split, by default the first that exists.
        verify: decode every file now, so that a damaged one is found before training starts.
            Equally sized images of up to 512 MiB are then kept in memory.

    Returns:
        A source with one split per split folder, or "train" and "test".

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there are no classes, a class has no images, or a file is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"image_folder:{folder}: there is no such folder.")
    if train_split is not None or (folder / "train").is_dir():
        train_split = train_split or "train"
        names, files = _read_split_folders(folder, train_split, eval_split)
    else:
        train_split = "train"
        names, files = _split_one_folder(folder)
    splits = _hold_in_memory(files) if verify else files
    shape = (None, None, CHANNELS)
    if isinstance(splits[train_split], ArraySplit):
        shape = splits[train_split].images.shape[1:]
    eval_split = eval_split or next(name for name in splits if name != train_split)
    return ImageSource(f"image_folder:{folder}", names, shape, splits, train_split, eval_split)


def verify(split: Split) -> None:
    """Decodes every file of a split that lies in files; other splits need no check.

    Args:
        split: the split to check.

    Raises:
        ValueError: if files cannot be decoded; names their number and the first.
    """
    if isinstance(split, FileSplit):
        for _ in _decode_files(split.paths):
            pass


def decode(content: tf.Tensor, channels: int = CHANNELS) -> tf.Tensor:
    """Decodes the bytes of one PNG, JPEG, BMP or GIF into uint8 `[height, width, channels]`."""
    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _read_split_folders(
    folder: Path, train_split: str, eval_split: str | None
) -> tuple[tuple[str, ...], dict[str, FileSplit]]:
    held_out = [eval_split] if eval_split else [n for n in _EVAL_NAMES if n != train_split]
    found = [name for name in held_out if (folder / name).is_dir()]
    if not (folder / train_split).is_dir():
        raise FileNotFoundError(f"image_folder:{folder} has no folder {train_split!r}.")
    if not found:
        raise FileNotFoundError(
            f"image_folder:{folder} has {train_split!r} but no folder {' or '.join(held_out)}."
        )
    names = _class_names(folder / train_split)
    splits = {}
    for name in (train_split, *found):
        unknown = set(_class_names(folder / name)) - set(names)
        if unknown:
            raise ValueError(
                f"{folder / name} has classes that {folder / train_split} lacks: "
                f"{', '.join(sorted(unknown))}."
            )
        splits[name] = _list_files(folder / name, names)
    return names, splits


def _split_one_folder(folder: Path) -> tuple[tuple[str, ...], dict[str, FileSplit]]:
    names = _class_names(folder)
    both = _list_files(folder, names)
    for label, count in enumerate(np.bincount(both.labels)):
        if count < 2:
            raise ValueError(
                f"{folder / names[label]} has 1 image: training and evaluation need one each."
            )
    parts = stratified_split(both.labels)
    return names, {
        name: FileSplit(len(part), tuple(both.paths[i] for i in part), both.labels[part])
        for name, part in zip(("train", "test"), parts, strict=True)
    }


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no sub-folders: put the images of each class into one.")
    return tuple(names)


def _list_files(folder: Path, class_names: tuple[str, ...]) -> FileSplit:
    paths, labels = [], []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue
        files = [p for p in sorted((folder / name).iterdir()) if not p.name.startswith(".")]
        for path in files:
            if path.suffix.lower() in _OTHER_FORMATS:
                raise ValueError(f"{path} cannot be read: convert it to {', '.join(SUFFIXES)}.")
        files = [str(path) for path in files if path.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"{folder / name} has no images ({', '.join(SUFFIXES)}).")
        paths += files
        labels += [label] * len(files)
    return FileSplit(len(paths), tuple(paths), np.asarray(labels, np.int32))


def _hold_in_memory(files: dict[str, FileSplit]) -> dict[str, Split]:
    """Decodes all splits once; gives them back as arrays if they are alike and small enough."""
    images, size, shapes = [], 0, set()
    for image in _decode_files([path for split in files.values() for path in split.paths]):
        shapes.add(image.shape)
        size += image.nbytes
        if len(shapes) == 1 and size <= MEMORY_LIMIT:
            images.append(image)
        else:
            images.clear()
    if not images:
        return dict(files)
    arrays, start = {}, 0
    for name, split in files.items():
        end = start + split.num_examples
        arrays[name] = ArraySplit.of(np.stack(images[start:end]), split.labels)
        start = end
    return arrays


def _decode_files(paths: Iterable[str]) -> Iterable[np.ndarray]:
    """Yields the image of each file, then raises one error for all that are damaged."""
    damaged = []
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        for path, image in zip(paths, pool.map(_try_decode, paths), strict=True):
            if isinstance(image, str):
                damaged.append(f"{path} ({image})")
            else:
                yield image
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(paths)} image files cannot be decoded, the first is "
            f"{damaged[0]}: mend or remove them."
        )


def _try_decode(path: str) -> np.ndarray | str:
    """Returns the image, or the reason why there is none."""
    try:
        return decode(tf.io.read_file(path)).numpy()
    except tf.errors.OpError as error:
        return error.message.split("\n")[0].split(" [Op:")[0].removeprefix("{{function_node ")
