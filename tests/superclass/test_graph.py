"""The confusion graph and the modularity of its communities."""

import networkx
import numpy as np
import pytest

from keras_vmoe import superclass
from tests.superclass import made


def test_weights_are_the_mean_of_both_directions():
    confusion, _ = made.planted(6, 2)
    graph = superclass.confusion_graph(confusion)
    for i in range(6):
        for j in range(6):
            both = confusion[i, j] / confusion[i].sum() + confusion[j, i] / confusion[j].sum()
            assert graph[i, j] == pytest.approx(0 if i == j else both / 2, rel=1e-12)
    np.testing.assert_array_equal(graph, graph.T)


def test_the_scale_of_a_class_does_not_matter():
    confusion, _ = made.planted(6, 2)
    scaled = confusion * np.arange(1, 7)[:, None]
    np.testing.assert_allclose(
        superclass.confusion_graph(scaled), superclass.confusion_graph(confusion), rtol=1e-12
    )


def test_neighbours():
    confusion, _ = made.planted(12, 3)
    whole = superclass.confusion_graph(confusion)
    graph = superclass.confusion_graph(confusion, neighbours=2)
    strongest = [set(np.argsort(-row, kind="stable")[:2].tolist()) for row in whole]
    for i in range(12):
        for j in range(12):
            kept = i != j and (j in strongest[i] or i in strongest[j])
            assert graph[i, j] == (whole[i, j] if kept else 0)
    assert (graph > 0).sum(1).min() >= 2
    np.testing.assert_array_equal(superclass.confusion_graph(confusion, neighbours=50), whole)
    with pytest.raises(ValueError, match="neighbours must be an integer of at least 1"):
        superclass.confusion_graph(confusion, neighbours=0)


@pytest.mark.parametrize("resolution", [1.0, 0.3, 2.5])
def test_modularity_is_that_of_networkx(resolution):
    confusion, blocks = made.planted(20, 4)
    graph = superclass.confusion_graph(confusion)
    joined = networkx.from_numpy_array(graph)
    for ids in (blocks, np.zeros(20, int), np.arange(20), np.arange(20) % 3):
        wanted = networkx.community.modularity(joined, made.sets(ids), resolution=resolution)
        assert superclass.modularity(graph, ids, resolution) == pytest.approx(wanted, abs=1e-12)


def test_modularity_by_hand():
    # Two triangles and a bridge: 7 edges, of each triangle 3 inside and degrees 2 + 2 + 3.
    graph = np.zeros((6, 6))
    for i, j in ((0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5), (2, 3)):
        graph[i, j] = graph[j, i] = 1
    wanted = 2 * (3 / 7 - (7 / 14) ** 2)
    assert superclass.modularity(graph, [0, 0, 0, 1, 1, 1]) == pytest.approx(wanted, rel=1e-12)
    assert np.isnan(superclass.modularity(np.zeros((2, 2)), [0, 1]))


@pytest.mark.parametrize(
    ("graph", "communities", "message"),
    [
        ([[0, 1], [0, 0]], [0, 0], "graph must be symmetric"),
        ([[0, -1], [-1, 0]], [0, 0], "weights of 0 or more"),
        ([[0, 1]], [0], "graph must have shape"),
        ([[0, 1], [1, 0]], [0], "communities must hold one entry a node, 2"),
        ([[0, np.nan], [np.nan, 0]], [0, 0], "graph must be finite"),
    ],
)
def test_wrong_graphs(graph, communities, message):
    with pytest.raises(ValueError, match=message):
        superclass.modularity(graph, communities)


def test_connected_parts():
    random = np.random.default_rng(3)
    for edges in (0, 5, 12, 40):
        graph = np.zeros((15, 15))
        for i, j in random.integers(0, 15, (edges, 2)):
            graph[i, j] = graph[j, i] = i != j
        found = superclass.connected_parts(graph)
        wanted = networkx.connected_components(networkx.from_numpy_array(graph))
        assert made.sets(found) == {frozenset(part) for part in wanted}
        firsts = [int(np.flatnonzero(found == part)[0]) for part in range(found.max() + 1)]
        assert firsts == sorted(firsts)
