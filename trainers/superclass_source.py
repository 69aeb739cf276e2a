"""Super-classes as gin files name them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from keras_vmoe import data, superclass


def superclasses(
    source: str,
    dataset: str | Callable[[], data.ImageSource] | None = None,
    num_superclasses: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    like: str | None = None,
) -> tuple[int, ...]:
    """The super-class of each class, for `MobileVMoE.superclasses`. Gin calls it `superclasses`.

    Args:
        source: a JSON file, as `keras-vmoe superclass` writes it or by hand; "cifar100" or "coco",
            what these datasets come with; or "random".
        dataset: a name, or `@dataset` in gin: the mapping is fitted to its class names, whatever
            their order. `None`: the labels are in the order of the mapping.
        num_superclasses: how many there must be. For "random" how many are made.
        num_classes: how many classes "random" maps, where neither `dataset` nor `like` tells.
        seed: of "random".
        like: of "random": a source whose sizes are kept, such as a JSON file.

    Returns:
        A number from 0 for each class, in the order of the labels.

    Raises:
        FileNotFoundError: a source that is neither a name nor a file.
        ValueError: a mapping that does not fit the dataset or the number of super-classes.
        OSError: a file or dataset that cannot be read.

    Example:
        >>> superclasses("cifar100")[:5]
        (4, 1, 14, 8, 0)
        >>> superclasses("random", dataset="digits", num_superclasses=5, seed=1)
        (2, 4, 1, 4, 0, 3, 1, 2, 3, 0)
    """
    names = None if dataset is None else _class_names(dataset)
    if source != "random":
        if like is not None:
            raise ValueError(
                f"superclasses.like is of source='random'. Received: source={source!r}, "
                f"like={like!r}"
            )
        found = _read("source", source)
    else:
        found = _random(names, num_superclasses, num_classes, seed, like)
    if names is not None and source != "random":
        try:
            found = found.for_classes(names)
        except ValueError as error:
            raise ValueError(f"superclasses.source={source!r}: {error}") from error
    if num_superclasses not in (None, found.num_superclasses):
        raise ValueError(
            f"superclasses.num_superclasses={num_superclasses}, but {source!r} holds "
            f"{found.num_superclasses} super-classes"
        )
    return found.ids


def _random(
    names: tuple[str, ...] | None,
    num_superclasses: int | None,
    num_classes: int | None,
    seed: int,
    like: str | None,
) -> superclass.Superclasses:
    model = None if like is None else _read("like", like)
    if model is not None:
        num_superclasses = num_superclasses or model.num_superclasses
        num_classes = num_classes or len(model.ids)
    if names is not None:
        num_classes = len(names)
    if num_superclasses is None or num_classes is None:
        raise ValueError(
            "superclasses.source='random' needs num_superclasses, and num_classes or dataset; or "
            f"like. Received: num_superclasses={num_superclasses}, num_classes={num_classes}"
        )
    return superclass.random_superclasses(num_classes, num_superclasses, seed, model)


def _read(argument: str, source: str) -> superclass.Superclasses:
    if source in superclass.HIERARCHIES:
        return superclass.hierarchy(source)
    path = Path(source).expanduser()
    if not path.is_file():
        known = ", ".join(map(repr, (*superclass.HIERARCHIES, "random")))
        raise FileNotFoundError(
            f"superclasses.{argument}={source!r} is neither a file nor one of {known}; "
            "keras-vmoe superclass makes such a file"
        )
    return superclass.Superclasses.load(path)


def _class_names(dataset: str | Callable[[], data.ImageSource]) -> tuple[str, ...]:
    source = data.load(dataset) if isinstance(dataset, str) else dataset()
    if not isinstance(source, data.ImageSource):
        raise ValueError(f"superclasses.dataset={source.name!r} holds no classes")
    return tuple(source.class_names)
