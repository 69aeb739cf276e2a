"""Writing the format of the released V-MoE checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from keras_vmoe.checkpoints.drafts import draft
from keras_vmoe.checkpoints.reference import reference_variables
from keras_vmoe.checkpoints.vmoe_files import MAGIC, data_file
from keras_vmoe.checkpoints.vmoe_index import ARRAY, BOX, ITEM_SIZES, PLACES, VERSIONS, Part, is_key
from keras_vmoe.ops.validation import require, require_positive_int

# The reference cuts what it packs at once into pieces, which MessagePack's lengths need.
_MAX_PIECE = 2**30


def save_vmoe(
    prefix: str | os.PathLike[str],
    arrays: Mapping[str, Any] | keras.Model,
    shard_count: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes arrays in the format of the released V-MoE checkpoints, which the reference reads.

    Args:
        prefix: the path without `.index` and `.data-...`; its folder must exist.
        arrays: arrays by name, the tree's levels joined by slashes; or a `ViT`, `VMoE` or
            `EfficientEnsemble`, whose arrays get the reference's names. The format holds no
            arguments: choices, capacity, priority, kind of router and preprocessing are not in it.
        shard_count: data files; arrays are divided among them along their longest axis.
        overwrite: whether an existing checkpoint may be replaced.

    Raises:
        ValueError: no arrays, a name that another one goes through, a type of values that the
            format does not know, or a checkpoint that is there already.
        FileNotFoundError: a folder that is not there.

    Example:

    >>> import numpy as np, tempfile
    >>> from keras_vmoe import checkpoints
    >>> prefix = tempfile.mkdtemp() + "/tiny"
    >>> checkpoints.save_vmoe(prefix, {"cls": np.zeros((1, 1, 4), "float32")}, shard_count=2)
    >>> sorted(p.name for p in __import__("pathlib").Path(prefix).parent.iterdir())
    ['tiny.data-00000-of-00002', 'tiny.data-00001-of-00002', 'tiny.index']
    """
    require_positive_int("shard_count", shard_count)
    if isinstance(arrays, keras.Model):
        arrays = reference_variables(arrays)
    prefix = Path(prefix)
    if not prefix.parent.is_dir():
        raise FileNotFoundError(f"{prefix}: there is no folder {str(prefix.parent)!r}")
    index_path = prefix.with_name(f"{prefix.name}.index")
    there = [path for path in (index_path, *_data_files(prefix)) if path.exists()]
    require(
        overwrite or not there,
        f"{there[0] if there else ''} exists; give another prefix, or overwrite=True",
    )
    names = _in_order(arrays)
    parts = [_divide(tuple(np.shape(arrays[name])), shard_count, i) for i, name in enumerate(names)]
    targets = [data_file(prefix, shard, shard_count) for shard in range(shard_count)]
    # All is written aside before any file takes its name; the index, entered first, does so last.
    # Without one, files of which some are new cannot be taken for a checkpoint.
    with contextlib.ExitStack() as drafts:
        file = drafts.enter_context(draft(index_path))
        file.write(_msgpack().packb(_index(names, arrays, parts, shard_count)))
        for shard, target in enumerate(targets):
            file = drafts.enter_context(draft(target))
            _write_shard(file, shard, [arrays[name] for name in names], parts)
        index_path.unlink(missing_ok=True)
    for path in set(there) - {index_path, *targets}:
        path.unlink()


def _data_files(prefix: Path) -> list[Path]:
    """The data files of a checkpoint, of any number of shards."""
    pattern = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-\d{5}")
    return [path for path in prefix.parent.iterdir() if pattern.fullmatch(path.name)]


def _index(
    names: list[str], arrays: Mapping[str, Any], parts: list[list[Part]], shard_count: int
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, boxes in zip(names, parts, strict=True):
        *path, leaf = name.split("/")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[leaf] = _places(arrays[name], boxes)
    return {"shard_count": shard_count, "index": tree, "version": VERSIONS[1]}


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(
            "writing a checkpoint needs msgpack: pip install 'keras-vmoe[train]'"
        ) from error
    return msgpack


def _in_order(arrays: Mapping[str, Any]) -> list[str]:
    """The names as the format numbers them, checked."""
    require(len(arrays) > 0, "arrays must hold at least one array. Received: none")
    paths = sorted(name.split("/") for name in arrays)
    for path in paths:
        require(
            all(map(is_key, path)),
            f"names must be words joined by slashes. Received: {'/'.join(path)!r}",
        )
    for path, other in itertools.pairwise(paths):
        require(
            other[: len(path)] != path,
            f"{'/'.join(path)!r} cannot be an array, as {'/'.join(other)!r} is one within it",
        )
    names = ["/".join(path) for path in paths]
    for name in names:
        dtype = _dtype(arrays[name])
        require(
            dtype in ITEM_SIZES,
            f"arrays must have a type of {', '.join(ITEM_SIZES)}. Received: {name!r} of {dtype}",
        )
    return names


def _dtype(array: Any) -> str:
    return str(array.dtype) if hasattr(array, "dtype") else str(np.asarray(array).dtype)


def _divide(shape: tuple[int, ...], shard_count: int, number: int) -> list[Part]:
    """Boxes of an array along its longest axis, one a shard; one box where that is too short."""
    axis = max(range(len(shape)), key=lambda i: shape[i], default=None)
    if axis is None or shape[axis] < shard_count or 0 in shape:
        return [Part((0,) * len(shape), shape, number % shard_count)]
    edges = [shape[axis] * i // shard_count for i in range(shard_count + 1)]
    parts = []
    for shard in range(shard_count):
        start, stop = [0] * len(shape), list(shape)
        start[axis], stop[axis] = edges[shard], edges[shard + 1]
        parts.append(Part(tuple(start), tuple(stop), shard))
    return parts


def _write_shard(file: BinaryIO, shard: int, arrays: list[Any], parts: list[list[Part]]) -> None:
    msgpack = _msgpack()
    packer = msgpack.Packer()
    here = {
        i: own for i, boxes in enumerate(parts) if (own := [p for p in boxes if p.shard == shard])
    }
    file.write(packer.pack_map_header(1 + len(here)))
    file.write(packer.pack(MAGIC) + packer.pack(True))
    for number, own in here.items():
        array = np.asarray(arrays[number])
        file.write(packer.pack(str(number)) + packer.pack_array_header(len(own)))
        for part in own:
            box = tuple(slice(a, b) for a, b in zip(part.start, part.stop, strict=True))
            flat = np.ascontiguousarray(array[(*box, ...)]).reshape(-1)
            step = max(_MAX_PIECE // max(flat.itemsize, 1), 1)
            pieces = [flat[i : i + step] for i in range(0, max(flat.size, 1), step)]
            file.write(packer.pack_array_header(2) + packer.pack_array_header(len(pieces)))
            for piece in pieces:
                value = (piece.shape, _dtype(array), piece.tobytes())
                file.write(packer.pack(msgpack.ExtType(ARRAY, msgpack.packb(value))))
            file.write(packer.pack(msgpack.ExtType(BOX, _box(part, array.shape))))


def _places(array: Any, parts: list[Part]) -> Any:
    msgpack = _msgpack()
    shape = tuple(np.shape(array))
    described = msgpack.packb((shape, _dtype(array), False, {}))
    boxes = [_box(part, shape) for part in parts]
    shards = [part.shard for part in parts]
    return msgpack.ExtType(PLACES, msgpack.packb((described, boxes, shards)))


def _box(part: Part, shape: tuple[int, ...]) -> bytes:
    msgpack = _msgpack()
    ends = zip(part.start, part.stop, strict=True)
    return msgpack.packb([msgpack.packb((a, b, None)) for a, b in ends])
