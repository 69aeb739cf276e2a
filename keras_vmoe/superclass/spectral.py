"""Spectral clustering."""

from __future__ import annotations

import numpy as np

# Of the mean weight: joins the parts of an unconnected graph, whose eigenvectors are not unique.
_JOINING = 1e-6


def spectral_communities(graph: np.ndarray, num_communities: int, seed: int) -> np.ndarray:
    """Communities by clustering the first eigenvectors of the graph's normalised Laplacian.

    Args:
        graph: `[n, n]` symmetric weights.
        num_communities: how many, at most n.
        seed: of the first vector of the eigenvectors' iteration, and of k-means.

    Returns:
        `[n]` ints.

    Raises:
        ImportError: without scikit-learn.

    Reference: Shi & Malik 2000, "Normalized cuts and image segmentation".
    """
    try:
        from sklearn.cluster import spectral_clustering
    except ImportError as error:
        raise ImportError(
            "method='spectral' needs scikit-learn: pip install 'keras_vmoe[train]'."
        ) from error
    joined = graph / graph.mean() + _JOINING
    np.fill_diagonal(joined, 0.0)
    ids = spectral_clustering(
        joined, n_clusters=num_communities, random_state=int(seed), n_init=10, eigen_solver="arpack"
    )
    return _fill(graph, np.asarray(ids, int), num_communities)


def _fill(graph: np.ndarray, ids: np.ndarray, num_communities: int) -> np.ndarray:
    """Where k-means left communities empty, the largest ones give away the node they hold least."""
    for empty in np.setdiff1d(np.arange(num_communities), ids):
        largest = np.bincount(ids).argmax()
        nodes = np.flatnonzero(ids == largest)
        ids[nodes[graph[np.ix_(nodes, nodes)].sum(1).argmin()]] = empty
    return ids
