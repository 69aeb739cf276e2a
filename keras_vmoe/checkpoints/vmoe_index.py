"""The index of a checkpoint of the reference: which arrays there are, and where their parts lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from keras_vmoe.checkpoints.packed import Malformed, Packed

# Types of MessagePack extensions in these files.
ARRAY, BOX, PLACES = 1, 6, 8
VERSIONS = (None, "20220622")
# Types of values by name; the files have these, little end first. No other word becomes a dtype.
ITEM_SIZES = {
    **{name: np.dtype(name).itemsize for name in ("bool", "complex64", "complex128")},
    **{f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (1, 2, 4, 8)},
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}
_MAX_RANK, _MAX_DEPTH, _MAX_SHARDS = 16, 64, 99_999
# More values than NumPy can count, were there no axis of length 0.
_MAX_VALUES = 2**60


class Part(NamedTuple):
    """A box of an array, and the shard that holds it.

    Attributes:
        start: its first index on each axis.
        stop: the index behind its last on each axis.
        shard: number of the data file.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    shard: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The box's shape."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


class Entry(NamedTuple):
    """An array of a checkpoint.

    Attributes:
        name: path in the tree, joined by slashes.
        shape: its shape.
        dtype: name of its type.
        parts: boxes that make it up, each value in exactly one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of its values in the data files."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


class Index(NamedTuple):
    """What an index file tells.

    Attributes:
        shard_count: number of data files.
        entries: the arrays, in the order by which the data files number them.
    """

    shard_count: int
    entries: tuple[Entry, ...]


def parse_index(buffer: bytes) -> Index:
    """Reads an index.

    Args:
        buffer: the file.

    Raises:
        Malformed: anything that does not follow the format, names that could not be told apart,
            or parts that do not make up their array.
    """
    packed, top = Packed(buffer), {}
    for _ in range(packed.map()):
        key = packed.text()
        if key in top or key not in ("shard_count", "index", "version"):
            raise Malformed(f"no index has the key {key[:80]!r} here")
        top[key] = {"shard_count": packed.integer, "version": packed.text}.get(
            key, lambda: list(_walk(packed, ()))
        )()
    packed.end()
    if not {"shard_count", "index"} <= top.keys():
        raise Malformed("it is not the index of a checkpoint: shard_count or index is missing")
    if top.get("version") not in VERSIONS:
        raise Malformed(
            f"version {top['version'][:80]!r} is not known, only {VERSIONS[1]!r} and none"
        )
    shard_count = top["shard_count"]
    if not 1 <= shard_count <= _MAX_SHARDS:
        raise Malformed(f"shard_count must be from 1 to {_MAX_SHARDS}, it is {shard_count}")
    # Keys sort as strings at every level: "encoderblock_10" comes before "encoderblock_2".
    entries = tuple(_entry(path, view) for path, view in sorted(top["index"], key=lambda x: x[0]))
    for entry in entries:
        for part in entry.parts:
            if part.shard >= shard_count:
                raise Malformed(f"{entry.name} lies in shard {part.shard} of {shard_count}")
    return Index(shard_count, entries)


def _walk(packed: Packed, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], memoryview]]:
    """The leaves of the tree that begins at the cursor, with their paths."""
    if packed.at("extension"):
        yield path, packed.extension(PLACES)
        return
    if len(path) == _MAX_DEPTH:
        raise Malformed(f"names are nested more than {_MAX_DEPTH} deep")
    keys = set()
    for _ in range(packed.map()):
        key = packed.text()
        if key in keys:
            raise Malformed(f"the name {'/'.join((*path, key))[-200:]!r} is there twice")
        if not is_key(key):
            raise Malformed(f"{key[:80]!r} cannot be part of an array's name")
        keys.add(key)
        yield from _walk(packed, (*path, key))


def is_key(word: str) -> bool:
    """Whether a word may be a level of an array's name, which slashes join."""
    return word not in ("", ".", "..") and word.isprintable() and not set(word) & set("/\\")


def _entry(path: tuple[str, ...], view: memoryview) -> Entry:
    name = "/".join(path)
    try:
        if not name:
            raise Malformed("an array has no name")
        packed = Packed(view)
        packed.array(3)
        shape, dtype = _abstract_array(packed.bytes())
        boxes = [parse_box(packed.bytes(), shape) for _ in range(packed.array())]
        shards = [packed.integer() for _ in range(packed.array(len(boxes)))]
        packed.end()
        parts = tuple(Part(*box, shard) for box, shard in zip(boxes, shards, strict=True))
        _require_tiling(shape, parts)
    except Malformed as error:
        raise Malformed(f"array {name[-200:]!r}: {error}") from None
    return Entry(name, shape, dtype, parts)


def _abstract_array(view: memoryview) -> tuple[tuple[int, ...], str]:
    packed = Packed(view)
    packed.array(4)
    shape, dtype = parse_shape(packed), parse_dtype(packed)
    packed.boolean()  # JAX's weak type
    if packed.map():
        raise Malformed("the description of an array holds more than is known")
    packed.end()
    return shape, dtype


def parse_shape(packed: Packed) -> tuple[int, ...]:
    """A shape at the cursor."""
    rank = packed.array()
    if rank > _MAX_RANK:
        raise Malformed(f"an array of {rank} axes; at most {_MAX_RANK} are taken")
    shape = tuple(packed.integer() for _ in range(rank))
    if math.prod(max(length, 1) for length in shape) > _MAX_VALUES:
        raise Malformed(f"no array has the shape {shape}")
    return shape


def parse_dtype(packed: Packed) -> str:
    """The name of a type of values at the cursor."""
    dtype = packed.text()
    if dtype not in ITEM_SIZES:
        raise Malformed(f"the type of values {dtype[:80]!r} is not known")
    return dtype


def parse_box(view: memoryview, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and last-plus-one indices of a slice per axis, within an array of a shape."""
    packed, start, stop = Packed(view), [], []
    packed.array(len(shape))
    for length in shape:
        axis = Packed(packed.bytes())
        axis.array(3)
        low, high, step = (axis.optional_integer() for _ in range(3))
        axis.end()
        low, high = low or 0, length if high is None else high
        if not 0 <= low <= high <= length or step not in (None, 1):
            raise Malformed(f"the slice {low}:{high}:{step} is not of an axis of {length}")
        start.append(low)
        stop.append(high)
    packed.end()
    return tuple(start), tuple(stop)


def _require_tiling(shape: tuple[int, ...], parts: tuple[Part, ...]) -> None:
    """Every value lies in exactly one part."""
    volume = sum(math.prod(part.shape) for part in parts)
    if volume != math.prod(shape):
        raise Malformed(f"its parts hold {volume} values, its shape {shape} {math.prod(shape)}")
    ends = tuple(max((part.stop[axis] for part in parts), default=-1) for axis in range(len(shape)))
    if ends != shape:  # where there are no values, their number does not tell the shape
        raise Malformed(f"its parts end at {ends}, its shape is {shape}")
    filled = [part for part in parts if 0 not in part.shape]
    # With the right volume, parts that do not overlap leave no gap. Places where parts begin and
    # end make a grid, which is small for any way in which devices divide an array.
    places = []
    for axis in range(len(shape)):
        cuts = {p.start[axis] for p in filled} | {p.stop[axis] for p in filled}
        places.append({place: i for i, place in enumerate(sorted(cuts))})
    cells = [len(axis) - 1 for axis in places] if filled else [0]
    if math.prod(cells) > 16 * len(filled) + 4096:
        raise Malformed(f"its {len(filled)} parts are no division into boxes side by side")
    taken = np.zeros(cells, bool)
    for part in filled:
        box = zip(places, part.start, part.stop, strict=True)
        region = taken[(*(slice(axis[a], axis[b]) for axis, a, b in box), ...)]
        if region.any():
            raise Malformed("its parts overlap")
        region[...] = True
