"""Folders of image files with a file of their captions."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_vmoe.data.folder import EVAL_NAMES, SUFFIXES, check_files
from keras_vmoe.data.pairs import PairSource, join_captions
from keras_vmoe.data.source import FileSplit, stratified_split

CAPTION_FILES = ("captions.tsv", "captions.csv", "captions.jsonl")
# The names of the two columns, in a first line of their own or in each line of JSON.
_FILE_NAMES, _CAPTION_NAMES = ("file", "file_name", "image"), ("caption", "text")


def load_caption_folder(
    folder: str | Path,
    train_split: str | None = None,
    eval_split: str | None = None,
    verify: bool = True,
    max_corrupt: int = 0,
) -> PairSource:
    """Loads `folder/captions.tsv` and its images, or the same of `folder/train`, `folder/val` ...

    A line is the name of an image, seen from the folder of the captions, a tab and a caption;
    several lines of one image are several captions. `captions.csv` separates them by a comma and
    quotes captions that hold one; both may begin with a line `file,caption`. A line of
    `captions.jsonl` is `{"file": ..., "caption": ...}`, a caption or a list of them. Images that no
    line names are left out.

    With a `train` folder, each of `validation`, `val` and `test` that exists becomes a split.
    Without, the images are split 80/20, in the same way each time. Images are read in colour.

    Args:
        folder: the top folder.
        train_split: name of the split folder to train on, "train" by default.
        eval_split: name of the held-out split, by default the first that exists.
        verify: decode every file now, so that a damaged one is found before training starts.
            Equally sized images of up to 512 MiB are then kept in memory.
        max_corrupt: up to this many files that cannot be decoded are left out.

    Returns:
        A source with one split per split folder, or "train" and "test".

    Raises:
        FileNotFoundError: if the folder, a split or the captions do not exist.
        ValueError: if a line is wrong, which names file and line, or more files are damaged than
            may be.
    """
    folder = Path(folder).expanduser()
    name = f"caption_folder:{folder}"
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no such folder.")
    if train_split is not None or (folder / "train").is_dir():
        train_split = train_split or "train"
        held_out = [eval_split] if eval_split else [n for n in EVAL_NAMES if n != train_split]
        found = [one for one in held_out if (folder / one).is_dir()]
        if not found:
            raise FileNotFoundError(
                f"{name} has {train_split!r} but no folder {' or '.join(held_out)}."
            )
        files = {split: _read_folder(folder / split) for split in (train_split, *found)}
    else:
        train_split, files = "train", _split(_read_folder(folder), name)
    splits, shape, corrupt = check_files(files, train_split, verify, max_corrupt)
    eval_split = eval_split or next(split for split in splits if split != train_split)
    return PairSource(name, shape, splits, train_split, eval_split, corrupt)


def _split(whole: FileSplit, name: str) -> dict[str, FileSplit]:
    if whole.num_examples < 2:
        raise ValueError(f"{name} has 1 image: training and evaluation need one each.")
    parts = stratified_split(np.zeros(whole.num_examples, int))
    return {
        split: FileSplit(len(part), tuple(whole.paths[i] for i in part), whole.labels[part])
        for split, part in zip(("train", "test"), parts, strict=True)
    }


def _read_folder(folder: Path) -> FileSplit:
    """Returns the images that the captions of a folder name, in the order of their first lines."""
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(found) != 1:
        has = " and ".join(path.name for path in found) or "no captions"
        raise FileNotFoundError(f"{folder} has {has}: it needs one of {', '.join(CAPTION_FILES)}.")
    captions: dict[str, list[str]] = {}
    for place, name, caption in _read_lines(found[0]):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{place}: there is no file name.")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{place}: the caption of {name} is empty: write one, or remove it.")
        if name not in captions:
            _check_image(folder / name, place)
        captions.setdefault(name, []).append(caption)
    if not captions:
        raise ValueError(f"{found[0]} has no captions.")
    paths = tuple(str(folder / name) for name in captions)
    return FileSplit(len(paths), paths, join_captions(list(captions.values())))


def _check_image(path: Path, place: str) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{place}: {path.name} cannot be read: convert it to {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{place}: there is no image {path}.")


def _read_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields place, image and caption of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                yield from _read_json(path, file)
            else:
                yield from _read_table(path, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text of UTF-8 ({error.reason}): convert it.") from error


def _read_table(path: Path, file: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    if path.suffix == ".tsv":
        separator, quoting = "\t", csv.QUOTE_NONE
    else:
        separator, quoting = ",", csv.QUOTE_MINIMAL
    rows = csv.reader(file, delimiter=separator, quoting=quoting)
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        is_head = rows.line_num == 1 and len(row) == 2
        is_head = is_head and row[0] in _FILE_NAMES and row[1] in _CAPTION_NAMES
        if is_head or not any(cell.strip() for cell in row):
            continue
        if len(row) != 2:
            kind = "a tab" if separator == "\t" else "a comma"
            more = ' (quote captions with commas: "a cat, asleep")' if len(row) > 2 else ""
            raise ValueError(
                f"{place}: expected a file name, {kind} and a caption, got {len(row)} columns"
                f"{more}: {separator.join(row)[:60]!r}."
            )
        yield place, row[0].strip(), row[1]


def _read_json(path: Path, file: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(file, 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: this is no JSON ({error.msg}): {line[:60]!r}.") from error
        names, captions = (
            [row[key] for key in keys if isinstance(row, dict) and key in row]
            for keys in (_FILE_NAMES, _CAPTION_NAMES)
        )
        if not names or not captions:
            raise ValueError(
                f'{place}: expected {{"file": ..., "caption": ...}}, got {line.strip()[:60]!r}.'
            )
        several = captions[0] if isinstance(captions[0], list) and captions[0] else [captions[0]]
        yield from ((place, names[0], caption) for caption in several)
