"""Sizes that are ints, and those that are tensors."""

import keras
import pytest

from keras_vmoe.ops import sizes


@pytest.mark.parametrize("tensors", [False, True])
def test_sizes_are_those_of_python(tensors):
    five, two = (keras.ops.convert_to_tensor(x) if tensors else x for x in (5, 2))
    assert sizes.is_known(five, two) != tensors
    assert not sizes.is_known(2, None)
    functions = (sizes.smaller, sizes.larger, sizes.ceil_divide)
    assert [int(function(five, two)) for function in functions] == [2, 5, 3]
