"""Mappings from classes to super-classes: checked, saved, loaded, fitted to a dataset."""

import dataclasses
import json

import pytest

from keras_vmoe import superclass
from keras_vmoe.superclass import Superclasses

NAMES = ("cat", "car", "dog", "van")
PETS = Superclasses((0, 1, 0, 1), NAMES, ("pets", "vehicles"))


def test_what_it_holds():
    assert PETS.num_superclasses == 2
    assert PETS.sizes == (2, 2)
    assert PETS.members(1) == ("car", "van")
    assert PETS.method == "given"
    assert Superclasses([0, 1], ["a", "b"]).names == ("super-class 0", "super-class 1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        PETS.seed = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], ["a", "b"]), "number them anew. Received: no class of super-class 1"),
        (([1, 1], ["a", "b"]), "no class of super-class 0"),
        (([0, -1], ["a", "b"]), "Received: -1 among ids"),
        (([0, 0.5], ["a", "b"]), "ids must be a whole number for each class"),
        (([], []), "ids must be a whole number for each class"),
        ((["pets"], ["cat"]), r"Received: ids=\['pets'\]"),
        (([0, 1], ["a"]), "class_names must hold one name a class, 2. Received: 1"),
        (([0, 1], "ab"), "class_names must hold one name a class"),
        (([0, 1], ["a", "b"], ["one"]), "names must hold one name a super-class, 2. Received: 1"),
    ],
)
def test_wrong_mappings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Superclasses(*arguments)


def test_a_file_holds_everything(tmp_path):
    path = tmp_path / "superclasses.json"
    whole = Superclasses(
        (0, 1, 0), ("é", "b, c", "d"), ("x", "y"), "louvain", 0.25, 0.5, 3, "vit; cifar100, test"
    )
    whole.save(path)
    assert Superclasses.load(path) == whole
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["ids"] == [0, 1, 0]
    assert content["class_names"] == ["é", "b, c", "d"]
    assert content["modularity"] == 0.25
    assert len(path.read_text().splitlines()) == 2 + len(dataclasses.fields(whole))
    assert [file.name for file in tmp_path.iterdir()] == ["superclasses.json"]
    PETS.save(path)
    assert Superclasses.load(path) == PETS


def test_a_file_by_hand(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"cat": "pets", "car": "vehicles", "dog": "pets", "van": "vehicles"}')
    assert Superclasses.load(path) == PETS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON file"),
        (" \n", "mine.json is empty; keras-vmoe superclass writes such a file"),
        ('{"cat": "pets", "dog": null}', "Received: 'dog': null"),
        ("[0, 1]", "holds no super-classes: expected what keras-vmoe superclass writes"),
        ("{}", "holds no super-classes"),
        ('{"cat": 0, "dog": 1}', "holds no super-classes"),
        ('{"ids": [0]}', "holds no super-classes"),
        ('{"ids": [0], "class_names": ["cat"], "sizes": [1]}', "holds no super-classes"),
        ('{"ids": [1], "class_names": ["cat"]}', r"mine.json: ids must be every number"),
        ('{"ids": [0], "class_names": 3}', r"mine.json: "),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Superclasses.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        Superclasses.load(tmp_path / "none.json")


# The classes of a dataset.


def test_other_orders_of_the_classes():
    other = PETS.for_classes(("van", "dog", "car", "cat"))
    assert other.ids == (1, 0, 1, 0)
    assert other.class_names == ("van", "dog", "car", "cat")
    assert other.names == PETS.names
    assert PETS.for_classes(list(NAMES)) is PETS
    assert other.for_classes(NAMES) == PETS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "car", "dog", "van", "bus"), "5 classes once. Received: no super-class of 'bus'"),
        (("cat", "car", "dog"), "classes that the dataset does not have, 'van'"),
        ((*NAMES, *"abcdefg"), "'a', 'b', 'c', 'd', 'e' and 2 more"),
        (("cat", "cat", "dog", "van"), "class_names with 'cat' twice"),
    ],
)
def test_classes_that_do_not_fit(names, message):
    with pytest.raises(ValueError, match=message):
        PETS.for_classes(names)


def test_names_that_come_twice_keep_their_order():
    cranes = Superclasses([0, 1], ["crane", "crane"])
    assert cranes.for_classes(("crane", "crane")) is cranes
    with pytest.raises(ValueError, match="the mapping with 'crane' twice"):
        cranes.for_classes(("crane", "bird"))


def test_names_make_super_classes():
    mapping = {"van": "vehicles", "cat": "pets", "dog": "pets", "car": "vehicles"}
    found = superclass.from_names(mapping, NAMES)
    assert found.ids == (1, 0, 1, 0)
    assert found.names == ("vehicles", "pets")
    with pytest.raises(ValueError, match="no super-class of 'bus'"):
        superclass.from_names(mapping, (*NAMES, "bus"))
    with pytest.raises(ValueError, match="does not have, 'van'"):
        superclass.from_names(mapping, NAMES[:3])


# Random ones.


@pytest.mark.parametrize(("classes", "count"), [(10, 3), (7, 7), (5, 1), (100, 20)])
def test_random_ones_are_even(classes, count):
    found = superclass.random_superclasses(classes, count, seed=4)
    assert found.num_superclasses == count
    assert max(found.sizes) - min(found.sizes) <= 1
    assert found.method == "random"
    assert found.seed == 4
    assert found == superclass.random_superclasses(classes, count, seed=4)


def test_random_ones_differ_by_seed_and_are_the_same_each_time():
    assert superclass.random_superclasses(10, 3, seed=0).ids == (2, 2, 1, 0, 1, 0, 1, 0, 0, 2)
    assert len({superclass.random_superclasses(10, 3, seed).ids for seed in range(5)}) == 5


def test_random_ones_like_others():
    like = Superclasses([0, 0, 0, 0, 1, 2, 2], list("abcdefg"), ["x", "y", "z"], "louvain", 0.3)
    found = superclass.random_superclasses(7, 3, seed=2, like=like)
    assert found.sizes == (4, 1, 2)
    assert found.ids != like.ids
    assert found.class_names == like.class_names
    assert found.modularity is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4), "at most num_classes=3. Received: num_superclasses=4"),
        ((0, 1), "num_classes must be an integer of at least 1"),
        ((3, 0), "num_superclasses must be an integer of at least 1"),
        ((5, 2, 0, PETS), "like must have 5 classes and 2 super-classes. Received: 4 and 2"),
        ((4, 3, 0, PETS), "like must have 4 classes and 3 super-classes"),
    ],
)
def test_wrong_random_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        superclass.random_superclasses(*arguments)
