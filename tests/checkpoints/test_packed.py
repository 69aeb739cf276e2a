"""MessagePack in place, held against the library that packs."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vmoe.checkpoints.packed import Malformed, Packed


@given(st.integers(0, 2**64 - 1))
def test_integers(value):
    packed = Packed(msgpack.packb(value))
    assert packed.integer() == value
    packed.end()


@given(st.text(max_size=300))
def test_strings(value):
    assert Packed(msgpack.packb(value)).text() == value


@pytest.mark.parametrize("size", [0, 1, 2, 4, 8, 16, 17, 255, 256, 65_535, 65_536])
def test_bytes_and_extensions_of_any_length(size):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    assert bytes(Packed(msgpack.packb(data)).bytes()) == data
    packed = Packed(msgpack.packb(msgpack.ExtType(5, data)))
    assert packed.at("extension")
    assert bytes(packed.extension(5)) == data
    packed.end()


@pytest.mark.parametrize("size", [0, 15, 16, 65_535, 65_536])
def test_arrays_and_maps_of_any_length(size):
    packed = Packed(msgpack.packb([1] * size))
    assert packed.array() == size
    assert [packed.integer() for _ in range(size)] == [1] * size
    packed = Packed(msgpack.packb(dict.fromkeys(range(size), 1)))
    assert packed.at("map")
    assert packed.map() == size


def test_none_true_and_false():
    packed = Packed(msgpack.packb([None, 3, True, False]))
    packed.array(4)
    assert packed.optional_integer() is None
    assert packed.optional_integer() == 3
    assert packed.boolean() is True
    assert packed.boolean() is False


@pytest.mark.parametrize(
    ("data", "read", "message"),
    [
        (b"", "integer", "it ends at byte 0"),
        (msgpack.packb("abc")[:-1], "text", "it ends at byte 3, where 3 bytes are needed"),
        (b"\xa1\xff", "text", "the string at byte 0 is not UTF-8"),
        (msgpack.packb(-1), "integer", "integer is needed at byte 0, where 0xff"),
        (msgpack.packb(1.5), "integer", "integer is needed"),
        (msgpack.packb("a"), "map", "map is needed at byte 0"),
        (b"\xdd\xff\xff\xff\xff", "array", "says that it holds 4294967295, more than follow"),
        (b"\xdf\x00\x00\x00\x02\x01\x01\x01", "map", "says that it holds 2, more than follow"),
        (msgpack.packb(None), "boolean", "true or false is needed"),
    ],
)
def test_what_does_not_follow_the_format(data, read, message):
    with pytest.raises(Malformed, match=message):
        getattr(Packed(data), read)()


def test_what_is_not_what_is_needed():
    with pytest.raises(Malformed, match="extension type 5 is needed at byte 0, it is 6"):
        Packed(msgpack.packb(msgpack.ExtType(6, b"x"))).extension(5)
    with pytest.raises(Malformed, match="an array of 3 is needed at byte 0, there are 2"):
        Packed(msgpack.packb([1, 2])).array(3)
    packed = Packed(msgpack.packb(1) + b"abc")
    packed.integer()
    with pytest.raises(Malformed, match="3 bytes follow"):
        packed.end()
