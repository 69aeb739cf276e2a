"""Checkpoints in the format of the released V-MoE models, read array by array."""

from __future__ import annotations

import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_vmoe.checkpoints.errors import CheckpointError
from keras_vmoe.checkpoints.packed import Malformed, Packed
from keras_vmoe.checkpoints.vmoe_index import (
    ARRAY,
    BOX,
    ITEM_SIZES,
    Entry,
    Part,
    parse_box,
    parse_dtype,
    parse_index,
    parse_shape,
)

# The key that tells a data file from any other.
MAGIC = "__msgpack_array_chunk_a87ca2__"
Progress = Callable[[int, int], None]
_SHOWN_FROM = 64 * 2**20
# More than the index of any model (30 MB of a thousand arrays on 512 devices): what is made of an
# index takes some 25 times its bytes.
_MAX_INDEX = 64 * 2**20


def data_file(prefix: str | os.PathLike[str], shard: int, shard_count: int) -> Path:
    """The name of a data file."""
    return Path(f"{os.fspath(prefix)}.data-{shard:05d}-of-{shard_count:05d}")


class _Piece(NamedTuple):
    """Where values lie: some of a part of an array, in a row."""

    path: Path
    offset: int
    length: int


class StoredArray:
    """An array in the files of a checkpoint, read when NumPy asks for it.

    Attributes:
        name: path in the tree, joined by slashes.
        shape: its shape.
        dtype: NumPy type of its values as they are read; bfloat16 becomes float32, exactly.
    """

    def __init__(
        self,
        entry: Entry,
        stored: Mapping[Part, list[_Piece]],
        when_read: Callable[[int], None],
    ) -> None:
        self.name, self.shape = entry.name, entry.shape
        self.dtype = np.dtype("float32" if entry.dtype == "bfloat16" else entry.dtype)
        self._entry, self._stored, self._when_read = entry, stored, when_read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        for part, pieces in self._stored.items():
            box = tuple(slice(a, b) for a, b in zip(part.start, part.stop, strict=True))
            target = array[(*box, ...)]
            in_place = target.flags.c_contiguous
            flat = target.reshape(-1) if in_place else np.empty(target.size, self.dtype)
            begin, size = 0, ITEM_SIZES[self._entry.dtype]
            for piece in pieces:
                count = piece.length // size
                _read_values(piece, self._entry.dtype, flat[begin : begin + count])
                begin += count
            if not in_place:
                target[...] = flat.reshape(part.shape)
        self._when_read(self._entry.size)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"StoredArray({self.name!r}, shape={self.shape}, dtype={self.dtype})"


def _read_values(piece: _Piece, dtype: str, into: np.ndarray) -> None:
    """Reads values from a file to where they belong."""
    is_half = dtype == "bfloat16"
    values = np.empty(into.size, "uint16") if is_half else into
    with piece.path.open("rb") as file:
        file.seek(piece.offset)
        read = file.readinto(values.view("uint8")) if piece.length else 0
    if read != piece.length:
        raise CheckpointError(
            f"{piece.path}: it was cut off after it was opened; {piece.length} bytes are needed "
            f"from byte {piece.offset} on, {read} are there"
        )
    if sys.byteorder == "big":
        values.byteswap(inplace=True)
    if is_half:  # the upper half of a float32
        into[:] = (values.astype("uint32") << 16).view("float32")


class VMoECheckpoint(Mapping[str, StoredArray]):
    """The arrays of a checkpoint by name, read from its files when they are asked for.

    All is checked at once but the values themselves, for which the format has no checksum: a
    file whose numbers were changed in place loads, with those numbers.

    Args:
        prefix: the path without `.index` and `.data-00000-of-00001`; a local one.
        progress: whether a line on standard error shows how much was read, from 64 MiB on; or a
            function of (bytes read, bytes in all).

    Attributes:
        prefix: as given.
        nbytes: bytes of all arrays in the files.

    Raises:
        CheckpointError: a file that is missing, cut off or damaged; the message names it.

    Example:

    >>> import numpy as np, tempfile
    >>> from keras_vmoe import checkpoints
    >>> prefix = tempfile.mkdtemp() + "/tiny"
    >>> checkpoints.save_vmoe(prefix, {"head/bias": np.zeros(3, "float32")})
    >>> opened = checkpoints.VMoECheckpoint(prefix)
    >>> opened["head/bias"].shape, np.asarray(opened["head/bias"]).tolist()
    ((3,), [0.0, 0.0, 0.0])
    """

    def __init__(self, prefix: str | os.PathLike[str], progress: bool | Progress = False) -> None:
        self.prefix = os.fspath(prefix).removesuffix(".index")
        self._progress = progress if callable(progress) else _Line(prefix) if progress else None
        self._read = 0
        path = Path(f"{self.prefix}.index")
        if "://" in self.prefix:
            raise CheckpointError(
                f"{self.prefix}: a checkpoint must be on a local disk; copy it first, with "
                f"`gcloud storage cp '{self.prefix}*' .`"
            )
        _require_index(path, self.prefix)
        index = _of_file(path, lambda: parse_index(_bytes(path)))
        files = [data_file(self.prefix, i, index.shard_count) for i in range(index.shard_count)]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file}: this file of the checkpoint is missing")
        # Before anything is allocated: no file can promise more than is there.
        there, needed = sum(f.stat().st_size for f in files), sum(e.size for e in index.entries)
        if needed > there:
            raise CheckpointError(
                f"{path}: its arrays need {needed:,} bytes, the data files have {there:,}"
            )
        stored: dict[tuple[int, Part], list[_Piece]] = {}
        for i, file in enumerate(files):
            stored |= _of_file(file, lambda i=i, file=file: _open_shard(file, i, index.entries))
        self._arrays = {
            entry.name: StoredArray(entry, {p: stored[i, p] for p in entry.parts}, self._count)
            for i, entry in enumerate(index.entries)
        }
        self.nbytes = sum(entry.size for entry in index.entries)

    def __getitem__(self, name: str) -> StoredArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def _count(self, size: int) -> None:
        """Takes note of an array that was read."""
        self._read += size
        if self._progress is not None:
            self._progress(min(self._read, self.nbytes), self.nbytes)

    def end_progress(self) -> None:
        """Ends the line of progress where not all arrays were wanted."""
        if isinstance(self._progress, _Line):
            self._progress.end()


class _Line:
    """How far reading is, on standard error: drawn over on a terminal, else every tenth."""

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self._name, self._tenth, self._open = Path(prefix).name, 0, False

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        terminal = sys.stderr.isatty()
        if total < _SHOWN_FROM or not (terminal or tenth > self._tenth):
            return
        self._tenth = tenth
        text = f"{self._name}: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB read"
        self._open = terminal
        print(f"\r{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        if done == total:
            self.end()

    def end(self) -> None:
        """Leaves the line."""
        if self._open:
            print(file=sys.stderr, flush=True)
        self._open = False


def load_vmoe(
    prefix: str | os.PathLike[str], progress: bool | Progress = True
) -> dict[str, np.ndarray]:
    """Reads a checkpoint in the format of the released V-MoE models.

    Needs NumPy alone, and memory for the arrays and little beside them.
    Nothing in the files is run or unpickled. `VMoECheckpoint` reads array by array instead.

    Args:
        prefix: the path without `.index` and `.data-00000-of-00001`.
        progress: as of `VMoECheckpoint`.

    Returns:
        Arrays by the reference's names, such as `"Encoder/encoderblock_0/LayerNorm_0/scale"`;
        bfloat16 as float32.

    Raises:
        CheckpointError: as `VMoECheckpoint`.

    Example:

    >>> import numpy as np, tempfile
    >>> from keras_vmoe import checkpoints
    >>> prefix = tempfile.mkdtemp() + "/tiny"
    >>> checkpoints.save_vmoe(prefix, {"head/kernel": np.ones((2, 3), "float32")})
    >>> checkpoints.load_vmoe(prefix)["head/kernel"].shape
    (2, 3)
    """
    opened = VMoECheckpoint(prefix, progress)
    return {name: np.asarray(array) for name, array in opened.items()}


def _require_index(path: Path, prefix: str) -> None:
    """Says what a path is that is the prefix of no checkpoint."""
    if path.is_file():
        return
    place, data = Path(prefix), re.search(r"\.data-\d{5}-of-\d{5}$", prefix)
    if data:
        reason = f"this is one of a checkpoint's files; give its prefix, {prefix[: data.start()]}"
    elif place.is_dir():
        found = sorted(entry.name.removesuffix(".index") for entry in place.glob("*.index"))
        mend = f", {prefix}/{found[0]} for one" if found else ""
        reason = f"this is a folder; give the prefix of a checkpoint in it{mend}"
    elif place.is_file():
        reason = (
            "this is neither the prefix of a checkpoint nor an .npz file; a .keras file is read by "
            "keras.models.load_model"
        )
    else:
        raise CheckpointError(f"{path}: there is no such file")
    raise CheckpointError(f"{prefix}: {reason}")


def _of_file(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (Malformed, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{path}: {reason}") from None


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > _MAX_INDEX:
        raise Malformed(f"no index has {path.stat().st_size:,} bytes")
    with path.open("rb") as file:
        return file.read()


def _open_shard(
    path: Path, shard: int, entries: tuple[Entry, ...]
) -> dict[tuple[int, Part], list[_Piece]]:
    """Finds every part that the index says is in a data file, and no other."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise Malformed("it is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    missing = {(i, p) for i, entry in enumerate(entries) for p in entry.parts if p.shard == shard}
    found: dict[tuple[int, Part], list[_Piece]] = {}
    packed, magic, leaves = Packed(memoryview(mapped)), False, set()
    for _ in range(packed.map()):
        key = packed.text()
        if key == MAGIC and not magic:
            magic = packed.boolean()
            continue
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= number < len(entries) or key != str(number) or number in leaves:
            raise Malformed(f"{key[:80]!r} is not the number of an array, or is there twice")
        leaves.add(number)
        try:
            for part, pieces in _parts(packed, entries[number], shard, path):
                if (number, part) not in missing:
                    raise Malformed("it holds a part that the index does not know there, or twice")
                missing.remove((number, part))
                found[number, part] = pieces
        except Malformed as error:
            raise Malformed(f"array {entries[number].name!r}: {error}") from None
    packed.end()
    if not magic:
        raise Malformed(f"it is not a data file of a checkpoint: {MAGIC!r} is missing")
    if missing:
        number, part = min(missing)
        raise Malformed(
            f"array {entries[number].name!r}: the part {part.start} to {part.stop} is missing"
        )
    return found


def _parts(
    packed: Packed, entry: Entry, shard: int, path: Path
) -> Iterator[tuple[Part, list[_Piece]]]:
    """The parts of an array at the cursor, and where their values lie, piece by piece."""
    for _ in range(packed.array()):
        packed.array(2)
        pieces = []
        for _ in range(packed.array()):
            view = packed.extension(ARRAY)
            pieces.append(_piece(Packed(view, packed.begin_of(view)), entry.dtype, path))
        part = Part(*parse_box(packed.extension(BOX), entry.shape), shard)
        held = sum(piece.length for piece in pieces)
        needed = math.prod(part.shape) * ITEM_SIZES[entry.dtype]
        if held != needed:
            raise Malformed(f"a part of shape {part.shape} needs {needed} bytes, {held} are there")
        yield part, pieces


def _piece(packed: Packed, dtype: str, path: Path) -> _Piece:
    packed.array(3)
    shape, found, values = parse_shape(packed), parse_dtype(packed), packed.bytes()
    packed.end()
    if found != dtype:
        raise Malformed(f"its values are {found}, the index says {dtype}")
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if len(values) != needed:
        raise Malformed(f"a piece of shape {shape} needs {needed} bytes, {len(values)} are there")
    return _Piece(path, packed.begin_of(values), len(values))
