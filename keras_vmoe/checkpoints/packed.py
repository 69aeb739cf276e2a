"""MessagePack read in place: views of the buffer instead of copies of what is in it.

A library that unpacks copies every array twice, and makes objects of whatever a file says. Here a
caller names what must come next; a file that holds something else is an error before anything is
allocated.
"""

from __future__ import annotations

from typing import NamedTuple


class Malformed(ValueError):
    """What does not follow the format; the message says where and why."""


class _Kind(NamedTuple):
    """How one kind of object begins.

    Attributes:
        short: first bytes `low` to `high` that hold the length themselves, as `byte - low`.
        long: first bytes that are followed by the length, in so many bytes.
    """

    short: tuple[int, int] | None
    long: dict[int, int]


_KINDS = {
    "map": _Kind((0x80, 0x8F), {0xDE: 2, 0xDF: 4}),
    "array": _Kind((0x90, 0x9F), {0xDC: 2, 0xDD: 4}),
    "text": _Kind((0xA0, 0xBF), {0xD9: 1, 0xDA: 2, 0xDB: 4}),
    "bytes": _Kind(None, {0xC4: 1, 0xC5: 2, 0xC6: 4}),
    "extension": _Kind(None, {0xC7: 1, 0xC8: 2, 0xC9: 4}),
    "integer": _Kind((0x00, 0x7F), {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}),
}
_FIRST_OF_FIXED_EXTENSIONS, _LAST_OF_FIXED_EXTENSIONS = 0xD4, 0xD8
_NONE, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3


class Packed:
    """A cursor over MessagePack bytes.

    Args:
        buffer: the bytes; a memory map will do.
        offset: where the buffer begins in its file.

    Attributes:
        position: of the next object, in bytes from the buffer's beginning.

    Example:

    >>> from keras_vmoe.checkpoints.packed import Packed
    >>> packed = Packed(bytes([0x92, 0x07, 0xA2]) + b"id")  # what [7, "id"] is packed as
    >>> packed.array(), packed.integer(), packed.text()
    (2, 7, 'id')
    """

    def __init__(self, buffer: bytes | memoryview, offset: int = 0) -> None:
        self.buffer = memoryview(buffer)
        self.offset = offset
        self.position = 0

    def begin_of(self, view: memoryview) -> int:
        """Where in the file a view begins that was just taken."""
        return self.offset + self.position - len(view)

    @property
    def remaining(self) -> int:
        """Bytes behind the cursor."""
        return len(self.buffer) - self.position

    def end(self) -> None:
        """Raises `Malformed` unless all was read."""
        if self.remaining:
            raise Malformed(f"{self.remaining} bytes follow what should be its end")

    def map(self) -> int:
        """The number of pairs of the map that begins here."""
        return self._count("map", 2)

    def array(self, length: int | None = None) -> int:
        """The number of objects of the array that begins here, which may have to be `length`."""
        at, count = self.position, self._count("array", 1)
        if length is not None and count != length:
            raise Malformed(f"an array of {length} is needed at byte {at}, there are {count}")
        return count

    def text(self) -> str:
        """A string."""
        at, view = self.position, self._take(self._length("text"))
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError:
            raise Malformed(f"the string at byte {at} is not UTF-8") from None

    def bytes(self) -> memoryview:
        """A view of a byte string."""
        return self._take(self._length("bytes"))

    def extension(self, code: int) -> memoryview:
        """A view of the payload of an extension of type `code`."""
        at, first = self.position, self._peek()
        if _FIRST_OF_FIXED_EXTENSIONS <= first <= _LAST_OF_FIXED_EXTENSIONS:
            self.position += 1
            length = 1 << (first - _FIRST_OF_FIXED_EXTENSIONS)
        else:
            length = self._length("extension")
        found = self._take(1)[0]
        if found != code:
            raise Malformed(f"extension type {code} is needed at byte {at}, it is {found}")
        return self._take(length)

    def integer(self) -> int:
        """An integer that is not negative."""
        return self._length("integer")

    def optional_integer(self) -> int | None:
        """An integer that is not negative, or none."""
        if self._peek() != _NONE:
            return self.integer()
        self.position += 1
        return None

    def boolean(self) -> bool:
        """True or false."""
        first = self._peek()
        if first not in (_FALSE, _TRUE):
            raise Malformed(f"true or false is needed at byte {self.position}")
        self.position += 1
        return first == _TRUE

    def at(self, kind: str) -> bool:
        """Whether an object of a kind, such as `"map"`, begins here."""
        first, forms = self._peek(), _KINDS[kind]
        if kind == "extension" and _FIRST_OF_FIXED_EXTENSIONS <= first <= _LAST_OF_FIXED_EXTENSIONS:
            return True
        low, high = forms.short or (256, 256)
        return low <= first <= high or first in forms.long

    def _peek(self) -> int:
        if not self.remaining:
            raise Malformed(f"it ends at byte {self.position}, in the middle of something")
        return self.buffer[self.position]

    def _take(self, count: int) -> memoryview:
        if count > self.remaining:
            raise Malformed(
                f"it ends at byte {len(self.buffer)}, where {count} bytes are needed from byte "
                f"{self.position} on"
            )
        self.position += count
        return self.buffer[self.position - count : self.position]

    def _length(self, kind: str) -> int:
        at, first = self.position, self._peek()
        if not self.at(kind):
            raise Malformed(f"{kind} is needed at byte {at}, where 0x{first:02x} is no such thing")
        self.position += 1
        short, long = _KINDS[kind]
        if first in long:
            return int.from_bytes(self._take(long[first]), "big")
        return first - short[0]

    def _count(self, kind: str, least: int) -> int:
        """A number of objects of at least `least` bytes, which must have room behind it."""
        at, count = self.position, self._length(kind)
        if count * least > self.remaining:
            raise Malformed(f"the {kind} at byte {at} says that it holds {count}, more than follow")
        return count
