"""Communities of a graph: exactly as many as are wanted, and the same each time."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from keras_vmoe.ops.validation import require, require_choice, require_positive_int
from keras_vmoe.superclass.graph import connected_parts, require_graph
from keras_vmoe.superclass.louvain import louvain_communities
from keras_vmoe.superclass.spectral import spectral_communities

METHODS = ("louvain", "spectral")


def find_communities(
    graph: Any,
    num_communities: int,
    method: str = "louvain",
    seed: int = 0,
    balance: float | None = None,
) -> np.ndarray:
    """Divides the nodes of a graph into exactly so many communities.

    The same graph and seed give the same communities, and another order of the nodes gives the
    same ones too, as long as no two nodes have the same sum of weights. Nodes without any edge
    join the smallest communities in the end.

    Args:
        graph: `[n, n]` symmetric weights, as `confusion_graph` gives them.
        num_communities: how many (E), 1 to n.
        method: "louvain" maximises modularity at the resolution that gives so many communities
            (`louvain_communities`); "spectral" clusters eigenvectors (`spectral_communities`).
        seed: of the method's random numbers.
        balance: no community gets more than `ceil(balance * n / num_communities)` nodes, 1 or
            more; those that lose least move out of larger ones. `None` sets no limit.

    Returns:
        `[n]` ints from 0 to `num_communities - 1`, in the order of the first node of each.

    Raises:
        ValueError: too few nodes or nodes with edges, an unknown method, a wrong balance or graph.
        ImportError: without networkx or scikit-learn.

    Warns:
        UserWarning: nodes without edges, or more unconnected parts than communities.

    Example:
        >>> graph = np.kron(np.eye(3), np.ones((2, 2))) + 0.01
        >>> np.fill_diagonal(graph, 0)
        >>> find_communities(graph, 3)
        array([0, 0, 1, 1, 2, 2])
        >>> find_communities(graph, 3, method="spectral")
        array([0, 0, 1, 1, 2, 2])
    """
    graph = require_graph(graph)
    n = len(graph)
    _check(n, num_communities, method, seed, balance)
    if num_communities in (1, n):
        return np.arange(n) if num_communities == n else np.zeros(n, int)
    # Not in the order of the nodes, which the communities should not depend on.
    strength = graph.sum(1)
    order = np.argsort(-np.round(strength / max(strength.max(), 1e-300), 9), kind="stable")
    order = order[strength[order] > 0]
    _check_edges(graph, order, num_communities)
    ids = np.full(n, -1)
    if len(order) == num_communities:
        ids[order] = np.arange(num_communities)
    else:
        find = louvain_communities if method == "louvain" else spectral_communities
        ids[order] = find(graph[np.ix_(order, order)], num_communities, seed)
    for node in np.flatnonzero(ids < 0):
        ids[node] = np.bincount(ids[ids >= 0], minlength=num_communities).argmin()
    if balance is not None:
        ids = _balanced(graph, ids, math.ceil(balance * n / num_communities))
    return number_by_first(ids)


def number_by_first(ids: np.ndarray) -> np.ndarray:
    """Renumbers communities in the order of the first node of each.

    Example:
        >>> number_by_first(np.array([7, 2, 7, 0]))
        array([0, 1, 0, 2])
    """
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _check(n: int, num_communities: int, method: str, seed: int, balance: float | None) -> None:
    require_positive_int("num_communities", num_communities)
    require(
        num_communities <= n,
        f"num_communities must be at most the number of classes, {n}. "
        f"Received: num_communities={num_communities}",
    )
    require_choice("method", method, METHODS)
    require(
        isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0,
        f"seed must be a whole number of 0 or more. Received: seed={seed!r}",
    )
    if balance is not None:
        number = isinstance(balance, (int, float)) and 1 <= balance < math.inf
        require(number, f"balance must be 1 or more, or None. Received: balance={balance!r}")


def _check_edges(graph: np.ndarray, joined: np.ndarray, num_communities: int) -> None:
    """Says what cannot be done with a graph in pieces, and what will be."""
    n = len(graph)
    require(
        len(joined) >= num_communities,
        f"num_communities={num_communities} communities need as many classes that are confused "
        f"with another. Received: {len(joined)} such classes of {n}; sum probabilities in place of "
        "counts, take a larger split, or fewer communities",
    )
    if len(joined) < n:
        alone = sorted(set(range(n)) - set(joined.tolist()))
        shown = ", ".join(map(str, alone[:5])) + (", …" if len(alone) > 5 else "")
        warnings.warn(
            f"{len(alone)} of {n} classes are never confused with another (class {shown}): they "
            "join the smallest communities; sums of probabilities may tell more than counts",
            stacklevel=3,
        )
    parts = connected_parts(graph[np.ix_(joined, joined)]).max() + 1
    if parts > num_communities:
        warnings.warn(
            f"the graph falls into {parts} parts that no confusion joins, more than "
            f"num_communities={num_communities}: some communities hold several of them",
            stacklevel=3,
        )


def _balanced(graph: np.ndarray, ids: np.ndarray, most: int) -> np.ndarray:
    """Moves nodes out of communities of more than `most`, those first that lose least weight."""
    ids = ids.copy()
    member = np.eye(ids.max() + 1)[ids]
    weights = graph @ member
    while (sizes := member.sum(0)).max() > most:
        own = np.take_along_axis(weights, ids[:, None], axis=1)
        gain = np.where(sizes < most, weights - own, -np.inf)
        gain[sizes[ids] <= most] = -np.inf
        node, target = np.unravel_index(gain.argmax(), gain.shape)
        weights[:, ids[node]] -= graph[:, node]
        weights[:, target] += graph[:, node]
        member[node, [ids[node], target]] = 0.0, 1.0
        ids[node] = target
    return ids
