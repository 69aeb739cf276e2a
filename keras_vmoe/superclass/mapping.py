"""The mapping from classes to super-classes: checked, saved, loaded, fitted to a dataset."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require, require_positive_int

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Superclasses:
    """Which super-class each class belongs to.

    Args:
        ids: a super-class for each class, in the order of the labels: every number from 0 to the
            number of super-classes - 1.
        class_names: a name a class, in the same order.
        names: a name a super-class; "super-class 0" and so on by default.
        method: how it was made: "louvain", "spectral", "random", "given" or a hierarchy's name.
        modularity: of these communities in the graph that was clustered; `None` without one.
        inside_confusion: the share of the dense model's confusion that stays inside of
            super-classes, 0 to 1; `None` without a confusion matrix.
        seed: of what was random; `None` where nothing was.
        origin: the model and the images of the confusion matrix, in words.

    Raises:
        ValueError: an id without a class between 0 and the largest, or counts that do not fit.

    Example:
        >>> pets = Superclasses([0, 0, 1], ["cat", "tiger", "dog"], ["cats", "dogs"])
        >>> pets.num_superclasses, pets.sizes, pets.members(0)
        (2, (2, 1), ('cat', 'tiger'))
        >>> pets.for_classes(["dog", "cat", "tiger"]).ids
        (1, 0, 0)
    """

    ids: Sequence[int]
    class_names: Sequence[str]
    names: Sequence[str] = ()
    method: str = "given"
    modularity: float | None = None
    inside_confusion: float | None = None
    seed: int | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        ids = _checked_ids(self.ids)
        count = max(ids) + 1
        names = tuple(self.names) or tuple(f"super-class {i}" for i in range(count))
        for name, given, wanted, what in (
            ("class_names", self.class_names, len(ids), "class"),
            ("names", names, count, "super-class"),
        ):
            require(
                not isinstance(given, str) and len(given) == wanted,
                f"{name} must hold one name a {what}, {wanted}. Received: {len(given)}",
            )
        for name, value in (("ids", ids), ("class_names", self.class_names), ("names", names)):
            object.__setattr__(self, name, tuple(value))

    @property
    def num_superclasses(self) -> int:
        """How many super-classes there are (E)."""
        return len(self.names)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many classes each super-class has."""
        return tuple(np.bincount(self.ids).tolist())

    def members(self, superclass: int) -> tuple[str, ...]:
        """The names of the classes of one super-class, in the order of the labels."""
        pairs = zip(self.class_names, self.ids, strict=True)
        return tuple(name for name, number in pairs if number == superclass)

    def for_classes(self, class_names: Sequence[str]) -> Superclasses:
        """The same mapping for classes in another order.

        Args:
            class_names: the names of a dataset's classes, in the order of its labels.

        Raises:
            ValueError: classes that one of both sides lacks, or names that come twice.
        """
        wanted = tuple(class_names)
        if wanted == self.class_names:
            return self
        ids = dict(zip(self.class_names, self.ids, strict=True))
        for name, names in (("class_names", wanted), ("the mapping", self.class_names)):
            require(
                len(set(names)) == len(names),
                f"class_names must differ, or be those of the mapping in the same order. "
                f"Received: {name} with {_repeated(names)!r} twice",
            )
        _require_same(ids, wanted)
        return dataclasses.replace(self, ids=[ids[name] for name in wanted], class_names=wanted)

    def save(self, path: str | Path) -> None:
        """Writes the mapping as a JSON file, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".new-{os.getpid()}-{path.name}")
        try:
            # A line for each field: one for each class would make them long.
            fields = {name: _dumps(value) for name, value in dataclasses.asdict(self).items()}
            lines = ",\n".join(f'  "{name}": {value}' for name, value in fields.items())
            temporary.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Superclasses:
        """Reads a mapping of a JSON file.

        Args:
            path: what `save` wrote; or a file by hand, one object from the name of each class, in
                the order of the labels, to the name of its super-class.

        Raises:
            OSError: if it cannot be read.
            ValueError: a file that holds something else.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "superclasses.json"
            >>> _ = path.write_text('{"cat": "pets", "lorry": "vehicles", "dog": "pets"}')
            >>> found = Superclasses.load(path)
            >>> found.ids, found.names
            ((0, 1, 0), ('pets', 'vehicles'))
            >>> found.save(path)
            >>> Superclasses.load(path) == found
            True
        """
        written = Path(path).read_bytes()
        require(bool(written.strip()), f"{path} is empty; keras-vmoe superclass writes such a file")
        try:
            content = json.loads(written)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON file: {error}") from error
        if not isinstance(content, dict) or not content:
            raise ValueError(_WRONG_FILE.format(path=path))
        words = [isinstance(value, str) for value in content.values()]
        if all(words):
            return from_names(content, list(content))
        known = {field.name for field in dataclasses.fields(cls)}
        if set(content) - known or not {"ids", "class_names"} <= set(content):
            name, value = list(content.items())[words.index(False)]
            found = f"{name!r}: {json.dumps(value):.60}"
            raise ValueError(f"{_WRONG_FILE.format(path=path)}. Received: {found}")
        try:
            return cls(**content)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_WRONG_FILE = (
    "{path} holds no super-classes: expected what keras-vmoe superclass writes, or one object from "
    'the name of each class to that of its super-class, {{"cat": "animals", "car": "vehicles"}}'
)


def from_names(mapping: Mapping[str, str], class_names: Sequence[str]) -> Superclasses:
    """Makes super-classes of names.

    Args:
        mapping: the name of each class to the name of its super-class.
        class_names: the classes in the order of the labels.

    Returns:
        The super-classes, numbered in the order in which their names come first in `mapping`.

    Raises:
        ValueError: a class that the mapping misses, or one that is not among `class_names`.

    Example:
        >>> from_names({"cat": "pets", "lorry": "vehicles"}, ["lorry", "cat"]).ids
        (1, 0)
    """
    _require_same(mapping, class_names)
    names = list(dict.fromkeys(mapping.values()))
    return Superclasses([names.index(mapping[name]) for name in class_names], class_names, names)


def random_superclasses(
    num_classes: int,
    num_superclasses: int,
    seed: int = 0,
    like: Superclasses | None = None,
) -> Superclasses:
    """Super-classes that mean nothing, against which meaningful ones are measured.

    Args:
        num_classes: how many classes.
        num_superclasses: how many super-classes, at most as many.
        seed: other seeds give other mappings; the same one gives the same each time.
        like: super-classes whose sizes and class names are kept; without, sizes differ by one at
            most, and classes are called by their numbers.

    Raises:
        ValueError: fewer classes than super-classes, or others than `like` has.

    Example:
        >>> random_superclasses(7, 3, seed=1).sizes
        (3, 2, 2)
        >>> pets = Superclasses([0, 0, 1], ["cat", "tiger", "dog"])
        >>> random_superclasses(3, 2, seed=1, like=pets).sizes
        (2, 1)

    Reference: Daxberger et al. 2023, arXiv 2309.04354, table of routing strategies.
    """
    require_positive_int("num_classes", num_classes)
    require_positive_int("num_superclasses", num_superclasses)
    require(
        num_superclasses <= num_classes,
        f"num_superclasses must be at most num_classes={num_classes}. "
        f"Received: num_superclasses={num_superclasses}",
    )
    ids = np.arange(num_classes) % num_superclasses
    class_names: Sequence[str] = [str(i) for i in range(num_classes)]
    if like is not None:
        require(
            (len(like.ids), like.num_superclasses) == (num_classes, num_superclasses),
            f"like must have {num_classes} classes and {num_superclasses} super-classes. "
            f"Received: {len(like.ids)} and {like.num_superclasses}",
        )
        ids, class_names = np.asarray(like.ids), like.class_names
    # RandomState, because its stream of numbers never changes.
    shuffled = np.random.RandomState(seed).permutation(ids)
    return Superclasses(shuffled.tolist(), class_names, method="random", seed=seed)


def _checked_ids(ids: Any) -> tuple[int, ...]:
    array = np.asarray(ids)
    require(
        array.ndim == 1 and len(array) > 0 and array.dtype.kind in "iu",
        f"ids must be a whole number for each class. Received: ids={_short(ids)}",
    )
    missing = np.setdiff1d(np.arange(max(array.max(), 0) + 1), array)
    require(
        array.min() >= 0 and not len(missing),
        "ids must be every number from 0 to the number of super-classes - 1; number them anew. "
        + (
            f"Received: no class of super-class {', '.join(map(str, missing[:_SHOWN]))}"
            if array.min() >= 0
            else f"Received: {array.min()} among ids"
        ),
    )
    return tuple(array.tolist())


def _short(values: Any) -> str:
    """The first of the values in words."""
    if not isinstance(values, (list, tuple)) or len(values) <= _SHOWN:
        return repr(values)
    return f"[{', '.join(map(repr, values[:_SHOWN]))}, ...], {len(values)} of them"


def _require_same(mapping: Mapping[str, Any], class_names: Sequence[str]) -> None:
    missing = [name for name in class_names if name not in mapping]
    known = set(class_names)
    unknown = [name for name in mapping if name not in known]
    for names, what in (
        (missing, "no super-class of"),
        (unknown, "classes that the dataset does not have,"),
    ):
        require(
            not names,
            f"the mapping must hold each of the {len(class_names)} classes once. "
            f"Received: {what} {', '.join(map(repr, names[:_SHOWN]))}"
            + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""),
        )


def _repeated(names: Sequence[str]) -> str:
    return next((name for i, name in enumerate(names) if name in names[:i]), "")
