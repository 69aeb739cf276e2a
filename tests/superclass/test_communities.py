"""Exactly as many communities as are wanted: planted ones, in any order, the same each time."""

import sys

import numpy as np
import pytest

from keras_vmoe import superclass
from keras_vmoe.superclass.communities import number_by_first
from keras_vmoe.superclass.louvain import merge_communities
from keras_vmoe.superclass.spectral import _fill
from tests.superclass import made

both = pytest.mark.parametrize("method", superclass.METHODS)


def graph_of(num_classes, num_superclasses, seed=0, **options):
    confusion, blocks = made.planted(num_classes, num_superclasses, seed, **options)
    return superclass.confusion_graph(confusion), blocks


@both
@pytest.mark.parametrize("sizes", [(10, 2), (12, 3), (21, 7), (60, 10), (60, 20), (9, 9)])
def test_planted_ones_are_found(method, sizes):
    graph, blocks = graph_of(*sizes)
    found = superclass.find_communities(graph, sizes[1], method)
    np.testing.assert_array_equal(found, number_by_first(blocks))


@both
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 13, 23, 29, 30])
def test_other_numbers_are_met(method, count):
    graph, _ = graph_of(30, 5)
    found = superclass.find_communities(graph, count, method)
    assert sorted(set(found.tolist())) == list(range(count))
    again = superclass.find_communities(graph, count, method)
    np.testing.assert_array_equal(found, again)


@both
def test_the_order_of_the_classes_changes_nothing(method):
    # Weak blocks and another number than theirs: there is no obvious answer.
    graph, _ = graph_of(24, 4, outside=0.6)
    shuffled = np.random.default_rng(1).permutation(24)
    for count in (3, 4, 6):
        found = superclass.find_communities(graph, count, method)
        other = superclass.find_communities(graph[np.ix_(shuffled, shuffled)], count, method)
        np.testing.assert_array_equal(other, number_by_first(found[shuffled]))


def test_louvain_finds_more_modularity_than_chance():
    graph, _ = graph_of(30, 5, outside=0.5)
    random = np.random.default_rng(0)
    found = superclass.find_communities(graph, 6)
    best = max(
        superclass.modularity(graph, random.permutation(np.arange(30) % 6)) for _ in range(200)
    )
    assert superclass.modularity(graph, found) > best


def test_numbers_are_those_of_the_first_nodes():
    ids = np.array([3, 1, 3, 0, 1, 7])
    assert number_by_first(ids).tolist() == [0, 1, 0, 2, 1, 3]


# Merging.


def test_the_best_union_is_merged():
    graph, _ = graph_of(9, 3)
    ids = np.arange(9)
    for count in range(8, 0, -1):
        best, wanted = -np.inf, None
        for a in range(count + 1):
            for b in range(a + 1, count + 1):
                merged = np.where(ids == b, a, ids)
                if (q := superclass.modularity(graph, merged)) > best + 1e-12:
                    best, wanted = q, merged
        found = merge_communities(graph, ids, count)
        assert made.sets(found) == made.sets(wanted)
        assert sorted(set(found.tolist())) == list(range(count))
        ids = found


# Graphs in pieces.


@both
def test_more_parts_than_communities(method):
    graph = np.kron(np.eye(6), np.ones((3, 3))) - np.eye(18)
    with pytest.warns(UserWarning, match="falls into 6 parts .* more than num_communities=4"):
        found = superclass.find_communities(graph, 4, method)
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]
    # No part is torn.
    assert all(len(set(part)) == 1 for part in found.reshape(6, 3).tolist())


@both
@pytest.mark.parametrize("count", [6, 8])
def test_as_many_parts_as_communities_or_fewer(method, count, recwarn):
    graph = np.kron(np.eye(6), np.ones((3, 3))) - np.eye(18)
    found = superclass.find_communities(graph, count, method)
    assert sorted(set(found.tolist())) == list(range(count))
    if count == 6:
        np.testing.assert_array_equal(found, np.arange(18) // 3)
    assert not recwarn.list


@both
def test_classes_without_edges_join_the_smallest(method):
    graph = np.zeros((9, 9))
    graph[np.ix_([0, 2, 4, 6], [0, 2, 4, 6])] = 1
    graph[np.ix_([1, 3], [1, 3])] = 1
    np.fill_diagonal(graph, 0)
    with pytest.warns(UserWarning, match=r"3 of 9 classes are never .* \(class 5, 7, 8\)"):
        found = superclass.find_communities(graph, 2, method)
    assert found.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


@both
def test_as_many_classes_with_edges_as_communities(method):
    graph = np.zeros((4, 4))
    graph[0, 2] = graph[2, 0] = 1
    with pytest.warns(UserWarning, match="never confused"):
        found = superclass.find_communities(graph, 2, method)
    assert found[0] != found[2]


def test_a_graph_without_edges_is_an_error():
    message = "Received: 0 such classes of 5; sum probabilities in place of counts"
    with pytest.raises(ValueError, match=message):
        superclass.find_communities(np.zeros((5, 5)), 2)


# Balance.


@both
@pytest.mark.parametrize("balance", [1, 1.5])
def test_no_community_is_larger_than_the_balance_allows(method, balance):
    confusion, _ = made.planted(20, 2)
    confusion[:14, :14] += 5
    graph = superclass.confusion_graph(confusion)
    free = superclass.find_communities(graph, 4, method)
    found = superclass.find_communities(graph, 4, method, balance=balance)
    most = int(np.ceil(balance * 20 / 4))
    assert np.bincount(free).max() > most
    assert np.bincount(found, minlength=4).max() <= most
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]


def test_the_node_that_loses_least_moves():
    graph = np.zeros((6, 6))
    for i, j, weight in ((0, 1, 9), (0, 2, 9), (1, 2, 9), (2, 3, 5), (3, 4, 4), (4, 5, 9)):
        graph[i, j] = graph[j, i] = weight
    assert superclass.find_communities(graph, 2).tolist() == [0, 0, 0, 1, 1, 1]
    graph[2, 3] = graph[3, 2] = 20
    assert superclass.find_communities(graph, 2).tolist() == [0, 0, 0, 0, 1, 1]
    # Node 3 loses 20 and gains 4; nodes 0 and 1 would lose 18.
    assert superclass.find_communities(graph, 2, balance=1).tolist() == [0, 0, 0, 1, 1, 1]


def test_empty_clusters_of_kmeans_are_filled():
    graph, _ = graph_of(6, 2)
    filled = _fill(graph, np.array([0, 0, 0, 2, 2, 0]), 4)
    assert sorted(set(filled.tolist())) == [0, 1, 2, 3]


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_communities": 7}, "at most the number of classes, 6. Received: num_communities=7"),
        ({"num_communities": 0}, "num_communities must be an integer of at least 1"),
        ({"method": "leiden"}, "method must be one of 'louvain', 'spectral'"),
        ({"seed": -1}, "seed must be a whole number of 0 or more. Received: seed=-1"),
        ({"seed": True}, "seed must be"),
        ({"balance": 0.5}, "balance must be 1 or more, or None. Received: balance=0.5"),
        ({"balance": float("nan")}, "balance must be 1 or more"),
    ],
)
def test_wrong_arguments(arguments, message):
    graph, _ = graph_of(6, 2)
    with pytest.raises(ValueError, match=message):
        superclass.find_communities(graph, **{"num_communities": 2, **arguments})


@pytest.mark.parametrize(
    ("method", "module", "library"),
    [("louvain", "networkx", "networkx"), ("spectral", "sklearn.cluster", "scikit-learn")],
)
def test_a_missing_library_is_named(monkeypatch, method, module, library):
    monkeypatch.setitem(sys.modules, module, None)
    graph, _ = graph_of(6, 2)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'keras_vmoe\[train\]'"):
        superclass.find_communities(graph, 2, method)
