"""The confusion graph: classes joined by how often each is taken for the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require, require_finite, require_positive_int
from keras_vmoe.superclass.confusion import row_shares


def confusion_graph(
    confusion: Any, neighbours: int | None = None, class_names: Any = None
) -> np.ndarray:
    """The weights between classes: the mean of both directions of their confusion.

    The rows of the matrix are scaled to a sum of 1, `weight = (C + C^T) / 2`, the diagonal is 0.

    Args:
        confusion: `[n, n]` as `confusion_matrix` gives it.
        neighbours: keep an edge only where it is among so many strongest of one of its two
            classes; `None` keeps all.
        class_names: `[n]` names for messages.

    Returns:
        `[n, n]` float64, symmetric.

    Raises:
        ValueError: as `confusion.row_shares` does, or `neighbours` below 1.

    Example:
        >>> confusion_graph([[6, 3, 1], [2, 8, 0], [0, 1, 9]])
        array([[0.  , 0.25, 0.05],
               [0.25, 0.  , 0.05],
               [0.05, 0.05, 0.  ]])

    Reference: Daxberger et al. 2023, arXiv 2309.04354; Jin et al., "Confusion graph", IJCAI 2017.
    """
    shares = row_shares(confusion, class_names)
    graph = (shares + shares.T) / 2
    np.fill_diagonal(graph, 0.0)
    if neighbours is None:
        return graph
    require_positive_int("neighbours", neighbours)
    order = np.argsort(-graph, axis=1, kind="stable")[:, :neighbours]
    kept = np.zeros(graph.shape, bool)
    np.put_along_axis(kept, order, True, axis=1)
    return np.where(kept | kept.T, graph, 0.0)


def modularity(graph: Any, communities: Any, resolution: float = 1.0) -> float:
    """How much more weight lies inside of communities than chance would put there.

    `Q = sum_c [ W_c / W - resolution * (S_c / W)^2 ]` with `W` the sum of all weights, `W_c` of
    those with both ends in c, each edge in both directions, and `S_c` of all that leave nodes of c.

    Args:
        graph: `[n, n]` symmetric weights, as `confusion_graph` gives them.
        communities: `[n]` ints.
        resolution: larger values favour smaller communities.

    Returns:
        At most 1; 0 for one community of all. NaN where there is no edge.

    Raises:
        ValueError: a graph that is not symmetric or has negative weights, or communities that are
            not one a node.

    Example:
        >>> two_pairs = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
        >>> modularity(two_pairs, [0, 0, 1, 1]), modularity(two_pairs, [0, 0, 0, 0])
        (0.5, 0.0)

    Reference: Newman 2006, "Modularity and community structure in networks".
    """
    graph, ids = require_graph(graph), np.asarray(communities)
    require(
        ids.shape == (len(graph),),
        f"communities must hold one entry a node, {len(graph)}. Received: shape {ids.shape}",
    )
    member = (np.unique(ids)[:, None] == ids).astype("float64")
    total = graph.sum()
    if not total:
        return float("nan")
    within = member @ graph @ member.T / total
    return float(np.trace(within) - resolution * (within.sum(1) ** 2).sum())


def connected_parts(graph: Any) -> np.ndarray:
    """Numbers the parts of a graph that no edge joins.

    Args:
        graph: `[n, n]` symmetric weights.

    Returns:
        `[n]` ints from 0, in the order of the first node of each part.

    Example:
        >>> connected_parts([[0, 0, 1], [0, 0, 0], [1, 0, 0]])
        array([0, 1, 0])
    """
    graph = np.asarray(graph)
    parts = np.full(len(graph), -1)
    for start in range(len(graph)):
        if parts[start] >= 0:
            continue
        number, fresh = parts.max() + 1, np.array([start])
        while len(fresh):
            parts[fresh] = number
            fresh = np.flatnonzero((graph[fresh] > 0).any(0) & (parts < 0))
    return parts


def require_graph(graph: Any) -> np.ndarray:
    """Returns a graph's weights as float64.

    Raises:
        ValueError: weights that are not square, finite, symmetric and 0 or more.
    """
    graph = np.asarray(graph, "float64")
    require(
        graph.ndim == 2 and graph.shape[0] == graph.shape[1] and len(graph) > 0,
        f"graph must have shape [classes, classes]. Received: shape {list(graph.shape)}",
    )
    require_finite("graph", graph)
    require(
        bool((graph >= 0).all() and np.array_equal(graph, graph.T)),
        "graph must be symmetric with weights of 0 or more, as confusion_graph gives it",
    )
    return graph
