"""Which blocks are sparse."""

import pytest

from keras_vmoe.models import moe_blocks


@pytest.mark.parametrize(
    ("placement", "num_layers", "wanted"),
    [
        ("every_2", 8, (1, 3, 5, 7)),
        ("every_2", 7, (1, 3, 5)),
        ("every_3", 7, (2, 5)),
        ("every_1", 3, (0, 1, 2)),
        ("last_2", 8, (5, 7)),
        ("last_2", 24, (21, 23)),
        ("last_5", 32, (23, 25, 27, 29, 31)),
        ("last_2", 7, (3, 5)),
        ("final_6", 12, (6, 7, 8, 9, 10, 11)),
        ("final_1", 1, (0,)),
        ("none", 4, ()),
        ((), 4, ()),
        ((3, 1), 4, (1, 3)),
        ([0], 1, (0,)),
    ],
)
def test_words_and_ids(placement, num_layers, wanted):
    assert moe_blocks(placement, num_layers) == wanted


@pytest.mark.parametrize(
    "placement",
    [
        "every_0",
        "every_9",
        "last_5",
        "final_9",
        "last",
        "every_two",
        "",
        "odd",
        (1, 1),
        (8,),
        (-1,),
    ],
)
def test_bad_placements_are_named(placement):
    with pytest.raises(ValueError, match="placement=") as error:
        moe_blocks(placement, 8)
    assert str(placement) in str(error.value)
