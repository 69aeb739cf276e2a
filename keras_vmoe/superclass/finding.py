"""From a confusion matrix to super-classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require, require_positive_int
from keras_vmoe.superclass.communities import find_communities
from keras_vmoe.superclass.confusion import inside_confusion
from keras_vmoe.superclass.graph import confusion_graph, modularity
from keras_vmoe.superclass.mapping import Superclasses

#: Edges of a class that are kept. Where there are hundreds of classes the rest is mostly noise.
NEIGHBOURS = 20


def find_superclasses(
    confusion: Any,
    num_superclasses: int,
    class_names: Sequence[str],
    method: str = "louvain",
    seed: int = 0,
    neighbours: int | None = NEIGHBOURS,
    balance: float | None = None,
    origin: str = "",
) -> Superclasses:
    """Puts classes that a dense model takes for each other into one super-class.

    The confusion matrix becomes a graph (`confusion_graph`), whose communities
    (`find_communities`) are the super-classes. Each is called by up to three of its classes, those
    first that share most confusion with the others of it.

    Args:
        confusion: `[n, n]` as `confusion_matrix` gives it, of images that the model was not
            trained on and that no result is reported on.
        num_superclasses: how many (E): the experts of the model.
        class_names: a name a class.
        method: "louvain" or "spectral".
        seed: of its random numbers; the same input gives the same super-classes.
        neighbours: edges a class keeps in the graph at least; `None` keeps all.
        balance: the largest super-class over the mean size, at most; `None` sets no limit.
        origin: the model and the images, in words; it is kept with the mapping.

    Returns:
        The super-classes, numbered in the order of the first class of each, with the modularity in
        the graph and the share of the whole confusion that stays inside.

    Raises:
        ValueError: fewer classes than super-classes, a class without images, names that are not
            one a class, and what `find_communities` raises.
        ImportError: without networkx or scikit-learn.

    Example:
        >>> confusion = [[8, 4, 1, 0], [3, 9, 0, 1], [0, 1, 9, 2], [1, 0, 4, 8]]
        >>> found = find_superclasses(confusion, 2, ["cat", "dog", "car", "van"])
        >>> found.ids, found.names
        ((0, 0, 1, 1), ('cat, dog', 'car, van'))
        >>> round(found.inside_confusion, 2)
        0.76

    Reference: Daxberger et al. 2023, arXiv 2309.04354, section on super-classes.
    """
    class_names = tuple(class_names)
    count = len(np.asarray(confusion))
    require(
        len(class_names) == count,
        f"class_names must hold one name a class, {count}. Received: {len(class_names)}",
    )
    require_positive_int("num_superclasses", num_superclasses)
    require(
        num_superclasses <= count,
        f"num_superclasses must be at most the number of classes, {count}. "
        f"Received: num_superclasses={num_superclasses}",
    )
    graph = confusion_graph(confusion, neighbours, class_names)
    ids = find_communities(graph, num_superclasses, method, seed, balance)
    central = central_classes(graph, ids)
    return Superclasses(
        ids=ids.tolist(),
        class_names=class_names,
        names=[", ".join(class_names[i] for i in classes[:3]) for classes in central],
        method=method,
        modularity=_number(modularity(graph, ids)),
        inside_confusion=_number(inside_confusion(confusion, ids)),
        seed=seed,
        origin=origin,
    )


def central_classes(graph: Any, ids: Any) -> list[list[int]]:
    """The classes of each super-class, those first that weigh most inside of it.

    Args:
        graph: `[n, n]` symmetric weights.
        ids: `[n]` ints, the super-class of each class.

    Returns:
        A list of classes for each super-class; equal weights by class index.

    Example:
        >>> central_classes([[0, 1, 0], [1, 0, 2], [0, 2, 0]], [0, 0, 0])
        [[1, 2, 0]]
    """
    graph, ids = np.asarray(graph, "float64"), np.asarray(ids)
    inside = np.where(ids[:, None] == ids, graph, 0.0).sum(1)
    order = np.argsort(-inside, kind="stable")
    return [order[ids[order] == number].tolist() for number in range(ids.max() + 1)]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
