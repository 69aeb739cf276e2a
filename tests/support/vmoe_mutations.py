"""Damaged checkpoints: bytes changed at random, and fields changed where they parse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

Files = dict[str, bytes]


class Damaged(NamedTuple):
    """A damaged version of the files of a checkpoint.

    Attributes:
        what: what was done to them.
        files: by name.
        changed: how many bytes of values may differ in what still loads.
    """

    what: str
    files: Files
    changed: int


def mutations(files: Files, seed: int, count: int) -> Iterator[Damaged]:
    """`count` damaged versions of the files of a checkpoint."""
    draw = random.Random(seed)
    for _ in range(count):
        name = draw.choice(sorted(files))
        if draw.random() < 0.5:
            how = draw.choice(_ON_BYTES)
            changed = how(draw, files[name], files)
            touched = {_flip_bit: 1, _set_byte: 1, _swap: 2048}.get(how, 0)
        else:
            how, touched = _change_index if name.endswith(".index") else _change_data, 0
            changed = how(draw, files[name])
        yield Damaged(f"{how.__name__} of {name}", {**files, name: changed}, touched)


def _flip_bit(draw: random.Random, data: bytes, files: Files) -> bytes:
    at = _place(draw, data)
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _set_byte(draw: random.Random, data: bytes, files: Files) -> bytes:
    at = _place(draw, data)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _cut_off(draw: random.Random, data: bytes, files: Files) -> bytes:
    return data[: draw.randrange(len(data))]


def _leave_out(draw: random.Random, data: bytes, files: Files) -> bytes:
    at = _place(draw, data)
    return data[:at] + data[at + draw.choice((1, 2, 4, 64)) :]


def _insert(draw: random.Random, data: bytes, files: Files) -> bytes:
    at = _place(draw, data)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 64))) + data[at:]


def _swap(draw: random.Random, data: bytes, files: Files) -> bytes:
    size = draw.choice((1, 4, 64, 1024))
    if len(data) < 2 * size:
        return data
    a = draw.randrange(len(data) - 2 * size + 1)
    b = draw.randrange(a + size, len(data) - size + 1)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def _another_file(draw: random.Random, data: bytes, files: Files) -> bytes:
    return files[draw.choice(sorted(files))]


_ON_BYTES = (_flip_bit, _set_byte, _cut_off, _leave_out, _insert, _swap, _another_file)


def _place(draw: random.Random, data: bytes) -> int:
    """A byte; half of the time where the structure is, which the values outweigh by far."""
    if draw.random() < 0.5:
        return draw.randrange(len(data))
    marks = (b"\xc7", b"\xc8", b"\xc4", b"\x93", b"\x92", b"\x91", b"float")
    at = data.find(draw.choice(marks), draw.randrange(len(data)))
    return min(max(at, 0) + draw.randrange(8), len(data) - 1)


def _numbers(draw: random.Random, value: Any) -> Any:
    if isinstance(value, int):
        return draw.choice((0, 1, value + 1, value - 1, 2 * value, 2**31, 2**40, 2**63, -1, None))
    return draw.choice((0, 1, 7))


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False)


def _change_slice(draw: random.Random, box: bytes) -> bytes:
    """One number of one axis of a packed box."""
    axes = _unpack(box)
    if not axes:
        return msgpack.packb([msgpack.packb((0, 1, None))])
    at = draw.randrange(len(axes))
    ends = _unpack(axes[at])
    which = draw.randrange(3)
    ends[which] = _numbers(draw, ends[which])
    axes[at] = msgpack.packb(ends)
    return msgpack.packb(axes)


def _change_index(draw: random.Random, data: bytes) -> bytes:
    index = _unpack(data)
    what = draw.choice(
        ("count", "version", "name", "shape", "dtype", "box", "shard", "swap", "boxes")
    )
    if what == "count":
        index["shard_count"] = draw.choice((0, -1, 1, 2, 3, 10**6, 2**63, None, "1"))
    elif what == "version":
        index["version"] = draw.choice(("20220623", "", None, 1, "x" * 1000))
    else:
        _change_leaf(draw, index["index"], what)
    return msgpack.packb(index)


def _change_leaf(draw: random.Random, tree: dict[str, Any], what: str) -> None:
    branch, key = tree, draw.choice(sorted(tree))
    while isinstance(branch[key], dict) and branch[key]:
        branch = branch[key]
        key = draw.choice(sorted(branch))
    if what == "name":
        other = draw.choice(("../../etc/passwd", "a/b", "", "zzz", "aaa", key + "x", "\x00", ".."))
        branch[other] = branch.pop(key)
        return
    if what == "swap":
        other = draw.choice(sorted(branch))
        branch[key], branch[other] = branch[other], branch[key]
        return
    described, boxes, shards = _unpack(branch[key].data)
    shape, dtype, weak, rest = _unpack(described)
    if what == "shape":
        at = draw.randrange(len(shape) + 1)
        shape = shape[:at] + [_numbers(draw, (shape + [1])[at])] + shape[at + draw.randrange(2) :]
    elif what == "dtype":
        dtype = draw.choice(("float16", "int32", "object", "O", "bfloat16", "float64", "V8", ""))
    elif what == "box":
        at = draw.randrange(len(boxes))
        boxes[at] = _change_slice(draw, boxes[at])
    elif what == "boxes":
        boxes, shards = draw.choice(((boxes[1:], shards[1:]), (boxes * 2, shards * 2)))
    else:
        at = draw.randrange(len(shards))
        shards[at] = _numbers(draw, shards[at])
    described = msgpack.packb((shape, dtype, weak, rest))
    code = draw.choice((8,) * 9 + (1,))
    branch[key] = msgpack.ExtType(code, msgpack.packb((described, boxes, shards)))


def _change_data(draw: random.Random, data: bytes) -> bytes:
    shard = _unpack(data)
    magic = next(iter(shard))
    what = draw.choice(("magic", "drop", "rename", "box", "piece", "twice"))
    leaves = [key for key in shard if key != magic]
    key, other = draw.choice(leaves), draw.choice(leaves)
    if what == "magic":
        shard[draw.choice(("magic", magic[:-1] + "x"))] = shard.pop(magic)
    elif what == "drop":
        del shard[key]
    elif what == "rename":
        shard[draw.choice(("-1", "01", "999", "x", "", other, "1e1", "²"))] = shard.pop(key)
    elif what == "twice":
        shard[key] = shard[key] * 2
    else:
        _change_part(draw, shard[key], what)
    return msgpack.packb(shard)


def _change_part(draw: random.Random, parts: list[Any], what: str) -> None:
    """A box of an array, or a piece of its values; values themselves stay as they are."""
    part = draw.choice(parts)
    pieces, box = part
    if what == "box":
        part[1] = msgpack.ExtType(box.code, _change_slice(draw, box.data))
        return
    shape, dtype, values = _unpack(pieces[0].data)
    change = draw.randrange(4)
    if change == 0:
        values = values[: draw.randrange(len(values) + 1)] if values else b"0"
    elif change == 1:
        shape = [_numbers(draw, n) for n in shape]
    elif change == 2:
        dtype = draw.choice(("float16", "int32", "O", "float64", "object"))
    else:
        part[0] = []
        return
    pieces[0] = msgpack.ExtType(1, msgpack.packb((shape, dtype, values)))
