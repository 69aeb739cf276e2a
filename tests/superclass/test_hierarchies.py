"""Super-classes that datasets come with."""

import pytest

from keras_vmoe import superclass

# The coarse label of each fine label, as CIFAR-100's files pair them.
CIFAR100 = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
    *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
    *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
    *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
    *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def test_the_coarse_labels_of_cifar100():
    found = superclass.hierarchy("cifar100")
    assert found.ids == CIFAR100
    assert found.sizes == (5,) * 20
    assert list(found.class_names) == sorted(found.class_names)
    assert found.class_names[:3] == ("apple", "aquarium_fish", "baby")
    assert list(found.names) == sorted(found.names)
    assert found.members(14) == ("baby", "boy", "girl", "man", "woman")


def test_the_super_categories_of_coco():
    found = superclass.hierarchy("coco")
    assert len(set(found.class_names)) == 80
    assert found.sizes == (1, 8, 5, 10, 5, 10, 7, 10, 6, 6, 5, 7)
    assert found.names[:3] == ("person", "vehicle", "outdoor")
    assert found.class_names[:2] == ("person", "bicycle")
    assert found.class_names[79] == "toothbrush"
    assert found.class_names[17] == "horse"  # of id 19 in COCO's files, which leave numbers out
    assert found.names[found.ids[17]] == "animal"


def test_an_unknown_one():
    with pytest.raises(ValueError, match="name must be one of 'cifar100', 'coco'. Received: name="):
        superclass.hierarchy("imagenet")
