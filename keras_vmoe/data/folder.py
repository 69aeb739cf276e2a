"""Folders of image files, one sub-folder per class."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_vmoe.data.corrupt import CorruptImages, one_line, try_decode
from keras_vmoe.data.source import (
    MEMORY_LIMIT,
    ArraySplit,
    FileSplit,
    ImageSource,
    Split,
    StreamSplit,
    stratified_split,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
OTHER_FORMATS = (".webp", ".tif", ".tiff", ".heic", ".avif", ".jxl")
CHANNELS = 3
EVAL_NAMES = ("validation", "val", "test")


def load_folder(
    folder: str | Path,
    train_split: str | None = None,
    eval_split: str | None = None,
    verify: bool = True,
    max_corrupt: int = 0,
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
        max_corrupt: up to this many files that cannot be decoded are left out, in all splits
            together; where files are not verified, as they are met in training and evaluation.

    Returns:
        A source with one split per split folder, or "train" and "test".

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there are fewer than two classes, a class has no images, or more files are
            damaged than may be.
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
    if len(names) < 2:
        raise ValueError(
            f"image_folder:{folder} has one class, {names[0]!r}: classification needs two or more, "
            "each in a sub-folder of its own."
        )
    splits, shape, corrupt = check_files(files, train_split, verify, max_corrupt)
    eval_split = eval_split or next(name for name in splits if name != train_split)
    name = f"image_folder:{folder}"
    return ImageSource(name, names, shape, splits, train_split, eval_split, corrupt)


def check_files(
    files: dict[str, FileSplit], train_split: str, verify: bool, max_corrupt: int
) -> tuple[dict[str, Split], tuple[int | None, int | None, int], CorruptImages]:
    """Decodes all files once, if that is wanted, and keeps them in memory where they are small.

    Args:
        files: the splits by name.
        train_split: the one whose images tell the shape.
        verify: whether files are decoded now.
        max_corrupt: up to this many that cannot be decoded are left out.

    Returns:
        The splits, the shape of the images, and what counts the damaged ones.

    Raises:
        ValueError: if more files are damaged than may be.
    """
    corrupt = CorruptImages(max_corrupt)
    if verify:
        splits = _hold_in_memory(files, corrupt)
    else:
        splits = {
            name: dataclasses.replace(split, corrupt=corrupt if max_corrupt else None)
            for name, split in files.items()
        }
    shape = (None, None, CHANNELS)
    if isinstance(splits[train_split], ArraySplit):
        shape = splits[train_split].images.shape[1:]
    return splits, shape, corrupt


def verify(split: Split) -> None:
    """Decodes every file of a split that lies in files; of a stream, tells what reading it found.

    Args:
        split: the split to check.

    Raises:
        ValueError: if more images cannot be decoded than may be; names their number and the
            first.
    """
    if isinstance(split, FileSplit):
        found = CorruptImages(split.corrupt.limit if split.corrupt else 0)
        for _ in _decode_files(split.paths, found):
            pass
        found.check(f"of {len(split.paths)} image files")
    elif isinstance(split, StreamSplit) and split.corrupt:
        split.corrupt.check()


def _read_split_folders(
    folder: Path, train_split: str, eval_split: str | None
) -> tuple[tuple[str, ...], dict[str, FileSplit]]:
    held_out = [eval_split] if eval_split else [n for n in EVAL_NAMES if n != train_split]
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
            if path.suffix.lower() in OTHER_FORMATS:
                raise ValueError(f"{path} cannot be read: convert it to {', '.join(SUFFIXES)}.")
        files = [str(path) for path in files if path.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"{folder / name} has no images ({', '.join(SUFFIXES)}).")
        paths += files
        labels += [label] * len(files)
    return FileSplit(len(paths), tuple(paths), np.asarray(labels, np.int32))


def _hold_in_memory(files: dict[str, FileSplit], corrupt: CorruptImages) -> dict[str, Split]:
    """Decodes all splits once; gives them back as arrays if they are alike and small enough."""
    images, size, shapes, is_whole = [], 0, set(), []
    paths = [path for split in files.values() for path in split.paths]
    for image in _decode_files(paths, corrupt):
        is_whole.append(image is not None)
        if image is None:
            continue
        shapes.add(image.shape)
        size += image.nbytes
        if len(shapes) == 1 and size <= MEMORY_LIMIT:
            images.append(image)
        else:
            images.clear()
    corrupt.check(f"of {len(paths)} image files")
    found, start, first = {}, 0, 0
    for name, split in files.items():
        kept = np.flatnonzero(is_whole[start : start + split.num_examples])
        if not len(kept):
            raise ValueError(f"no image file of the split {name!r} can be decoded: mend them.")
        start += split.num_examples
        found[name] = FileSplit(len(kept), tuple(split.paths[i] for i in kept), split.labels[kept])
        if images:
            arrays = np.stack(images[first : first + len(kept)])
            found[name] = ArraySplit(len(kept), arrays, found[name].labels)
        first += len(kept)
    return found


def _decode_files(paths: Sequence[str], corrupt: CorruptImages) -> Iterator[np.ndarray | None]:
    """Yields the image of each file, or None where there is none, which it counts."""
    with ThreadPoolExecutor() as pool:
        for path, image in zip(paths, pool.map(_try_read, paths), strict=True):
            if isinstance(image, str):
                corrupt.add(path, image)
            yield None if isinstance(image, str) else image.numpy()


def _try_read(path: str) -> tf.Tensor | str:
    """Returns the image, or the reason why there is none."""
    try:
        content = tf.io.read_file(path)
    except tf.errors.OpError as error:
        return one_line(error)
    return try_decode(content, CHANNELS)
