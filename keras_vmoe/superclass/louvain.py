"""Louvain's method, at the resolution that gives the wanted number of communities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_vmoe.superclass.graph import connected_parts

_STEPS = 40
# Resolutions that differ by less give the same communities.
_CLOSE = 1 + 1e-6


def louvain_communities(graph: np.ndarray, num_communities: int, seed: int) -> np.ndarray:
    """Communities of high modularity, exactly so many.

    The resolution is searched by doubling and halving, then by bisection. Where the count jumps
    past the wanted one, the nearest larger count is taken, and the two communities whose union
    has the highest modularity are merged until the count is right.

    Args:
        graph: `[n, n]` symmetric weights.
        num_communities: how many, at most n.
        seed: of the order in which nodes are visited.

    Returns:
        `[n]` ints.

    Raises:
        ImportError: without networkx.

    Reference: Blondel et al. 2008, arXiv 0803.0476; resolution as Reichardt & Bornholdt 2006.
    """
    networkx = _networkx()
    joined = networkx.from_numpy_array(graph)
    parts = connected_parts(graph).max() + 1
    resolution, low, high = 1.0, 0.0, math.inf
    finer = np.arange(len(graph))
    for _ in range(_STEPS):
        ids = _communities(networkx, joined, resolution, seed)
        count = ids.max() + 1
        if count == num_communities:
            return ids
        if count > num_communities:
            high = resolution
            finer = ids if count <= finer.max() + 1 else finer
        else:
            low = resolution
        if high <= low * _CLOSE or parts > num_communities:
            break
        if not low:
            resolution /= 2
        else:
            resolution = resolution * 2 if math.isinf(high) else math.sqrt(low * high)
    return merge_communities(graph, finer, num_communities)


def merge_communities(graph: np.ndarray, ids: np.ndarray, num_communities: int) -> np.ndarray:
    """Merges the two communities whose union has the highest modularity, until so many are left.

    Args:
        graph: `[n, n]` symmetric weights.
        ids: `[n]` ints from 0 without gaps.
        num_communities: how many to leave, at most as many as there are.

    Returns:
        `[n]` ints from 0 without gaps; equal gains go to the lower numbers.

    Example:
        >>> line = np.diag([3.0, 1.0, 2.0], 1)
        >>> merge_communities(line + line.T, np.array([0, 1, 2, 3]), 2)
        array([0, 0, 1, 1])

    Reference: Clauset, Newman & Moore 2004, arXiv cond-mat/0408187, eq. 10.
    """
    ids = ids.copy()
    member = np.eye(ids.max() + 1)[ids]
    within = member.T @ graph @ member / graph.sum()
    while len(within) > num_communities:
        strength = within.sum(1)
        gain = within - np.outer(strength, strength)
        gain[np.tril_indices(len(gain))] = -np.inf
        kept, gone = np.unravel_index(gain.argmax(), gain.shape)
        within[kept] += within[gone]
        within[:, kept] += within[:, gone]
        within = np.delete(np.delete(within, gone, 0), gone, 1)
        ids[ids == gone] = kept
        ids[ids > gone] -= 1
    return ids


def _communities(networkx: Any, joined: Any, resolution: float, seed: int) -> np.ndarray:
    found = networkx.community.louvain_communities(joined, resolution=resolution, seed=int(seed))
    ids = np.empty(len(joined), int)
    for number, nodes in enumerate(found):
        ids[list(nodes)] = number
    return ids


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise ImportError(
            "method='louvain' needs networkx: pip install 'keras_vmoe[train]'."
        ) from error
    return networkx
