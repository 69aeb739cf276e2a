"""From a confusion matrix to super-classes."""

import numpy as np
import pytest

from keras_vmoe import superclass
from keras_vmoe.superclass.communities import number_by_first
from tests.superclass import made


def names(count):
    return [f"class {i}" for i in range(count)]


# Of logistic regression on 6,000 images of Fashion-MNIST, in thousandths, on 10,000 others.
GARMENTS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat")
GARMENTS += ("Sandal", "Shirt", "Sneaker", "Bag", "Boot")
CONFUSION = [
    [632, 20, 46, 85, 18, 10, 164, 2, 21, 2],
    [17, 885, 13, 56, 10, 2, 12, 1, 3, 1],
    [31, 14, 522, 18, 176, 16, 190, 2, 29, 2],
    [89, 50, 31, 684, 46, 7, 73, 3, 14, 2],
    [17, 15, 193, 52, 542, 4, 155, 1, 19, 1],
    [9, 4, 12, 10, 5, 700, 16, 144, 37, 63],
    [152, 15, 188, 62, 166, 20, 352, 3, 39, 3],
    [2, 2, 3, 4, 2, 137, 4, 739, 20, 88],
    [16, 2, 34, 18, 23, 33, 46, 24, 789, 14],
    [2, 1, 4, 3, 2, 52, 6, 82, 13, 834],
]


def test_garments():
    found = superclass.find_superclasses(CONFUSION, 4, GARMENTS)
    assert [found.members(i) for i in range(4)] == [
        ("T-shirt", "Trouser", "Dress"),
        ("Pullover", "Coat", "Shirt"),
        ("Sandal", "Sneaker", "Boot"),
        ("Bag",),
    ]
    assert found.names[1:] == ("Pullover, Shirt, Coat", "Sneaker, Sandal, Boot", "Bag")
    assert found.modularity == pytest.approx(0.245, abs=2e-3)
    assert found.inside_confusion == pytest.approx(0.588, abs=2e-3)
    three = superclass.find_superclasses(CONFUSION, 3, GARMENTS)
    assert three.members(2) == ("Sandal", "Sneaker", "Bag", "Boot")
    shoes = superclass.find_superclasses(CONFUSION, 3, GARMENTS, method="spectral")
    assert ("Sandal", "Sneaker", "Boot") in [shoes.members(i) for i in range(3)]


@pytest.mark.parametrize("method", superclass.METHODS)
def test_planted_ones_are_found_with_what_is_to_be_known_of_them(method):
    confusion, blocks = made.planted(30, 5)
    found = superclass.find_superclasses(confusion, 5, names(30), method, 7, origin="vit; test")
    assert found.ids == tuple(number_by_first(blocks).tolist())
    assert (found.method, found.seed, found.origin) == (method, 7, "vit; test")
    graph = superclass.confusion_graph(confusion, neighbours=20)
    assert found.modularity == pytest.approx(superclass.modularity(graph, found.ids), rel=1e-12)
    inside = superclass.inside_confusion(confusion, found.ids)
    assert found.inside_confusion == pytest.approx(inside, rel=1e-12)
    assert found.inside_confusion > 2 * superclass.random_inside_confusion(found.ids)


def test_they_are_called_by_their_central_classes():
    confusion, _ = made.planted(30, 5)
    found = superclass.find_superclasses(confusion, 5, names(30), neighbours=None)
    graph, ids = superclass.confusion_graph(confusion), np.array(found.ids)
    central = superclass.central_classes(graph, ids)
    for number, classes in enumerate(central):
        inside = {
            i: sum(graph[i, j] for j in range(30) if ids[j] == number)
            for i in range(30)
            if ids[i] == number
        }
        assert classes == sorted(inside, key=lambda i: (-inside[i], i))
        assert found.names[number] == ", ".join(f"class {i}" for i in classes[:3])


def test_the_order_of_the_classes_changes_nothing():
    confusion, _ = made.planted(30, 5, outside=0.5)
    order = np.random.default_rng(2).permutation(30)
    found = superclass.find_superclasses(confusion, 6, names(30))
    other = superclass.find_superclasses(
        confusion[np.ix_(order, order)], 6, [f"class {i}" for i in order]
    )
    members = [set(found.members(i)) for i in range(6)]
    assert all(set(other.members(i)) in members for i in range(6))
    assert other.inside_confusion == pytest.approx(found.inside_confusion, rel=1e-12)


def test_the_balance_is_kept():
    confusion, _ = made.planted(20, 2)
    assert max(superclass.find_superclasses(confusion, 4, names(20)).sizes) > 5
    balanced = superclass.find_superclasses(confusion, 4, names(20), balance=1)
    assert balanced.sizes == (5, 5, 5, 5)


def test_one_class_each():
    found = superclass.find_superclasses(np.eye(3), 3, names(3))
    assert found.ids == (0, 1, 2)
    assert found.modularity is found.inside_confusion is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 3)), 4, names(3)), "at most the number of classes, 3. Received: num_super"),
        ((np.ones((3, 3)), 0, names(3)), "num_superclasses must be an integer of at least 1"),
        ((np.ones((3, 3)), 2, names(4)), "class_names must hold one name a class, 3. Received: 4"),
        ((np.diag([1, 0, 1]), 2, names(3)), r"none of 1 of 3 classes, class 1 \(class 1\)"),
        ((np.eye(4), 2, names(4)), "Received: 0 such classes of 4"),
        ((np.ones((3, 3)), 2, names(3), "walktrap"), "method must be one of"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        superclass.find_superclasses(*arguments)
