"""Louvain's method, at the resolution that gives the wanted number of communities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_vmoe.superclass.graph import connected_parts, modularity

_STEPS = 40
# Resolutions that differ by less give the same communities.
_CLOSE = 1 + 1e-3


def louvain_communities(graph: np.ndarray, num_communities: int, seed: int) -> np.ndarray:
    """Communities of high modularity, exactly so many.

    The resolution is searched at which Louvain's method goes over from fewer communities than
    wanted to as many or more: by doubling and halving, then by bisection. What has too many on the
    way is merged to the wanted number (`merge_communities`), which is often better than what one
    resolution gives by itself; of all these the one is taken whose modularity at that resolution,
    but not below 1, is highest.

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
    tried, resolution = _search(graph, num_communities, seed)
    # Below 1 it would favour one large community beside small ones.
    resolution = max(resolution, 1.0)
    found = [
        merge_communities(graph, ids, num_communities, resolution)
        for ids in tried
        if ids.max() + 1 >= num_communities
    ]
    # Rounded, so that the first of equal ones is taken whatever the order of the sums.
    return max(found, key=lambda ids: round(modularity(graph, ids, resolution), 9))


def _search(graph: np.ndarray, num_communities: int, seed: int) -> tuple[list[np.ndarray], float]:
    """The communities at one resolution after the other, and the least one that gives enough."""
    networkx = _networkx()
    joined = networkx.from_numpy_array(graph)
    parts = connected_parts(graph)
    if parts.max() + 1 >= num_communities:
        # No resolution gives fewer than the parts.
        return [_communities(networkx, joined, 1.0, seed), parts], 1.0
    tried, resolution, low, high = [], 1.0, 0.0, math.inf
    while len(tried) < _STEPS and high > low * _CLOSE:
        tried.append(_communities(networkx, joined, resolution, seed))
        if tried[-1].max() + 1 >= num_communities:
            high = resolution
        else:
            low = resolution
        if not low:
            resolution /= 2
        else:
            resolution = resolution * 2 if math.isinf(high) else math.sqrt(low * high)
    # A finer one too, which may merge better than those that just give enough.
    return [*tried, _communities(networkx, joined, 2 * high, seed)], high


def merge_communities(
    graph: np.ndarray, ids: np.ndarray, num_communities: int, resolution: float = 1.0
) -> np.ndarray:
    """Merges the two communities whose union has the highest modularity, until so many are left.

    Args:
        graph: `[n, n]` symmetric weights.
        ids: `[n]` ints from 0 without gaps.
        num_communities: how many to leave, at most as many as there are.
        resolution: of the modularity.

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
        gain = within - resolution * np.outer(strength, strength)
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
