"""Files of weights of any kind that is read here, as arrays by the reference's names."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.checkpoints.errors import CheckpointError
from keras_vmoe.checkpoints.vit_npz import reference_name
from keras_vmoe.checkpoints.vmoe_files import Progress, VMoECheckpoint

# An archive of zeros packs well: up to so much, whatever its size.
_UNPACKED = 2**30


def open_arrays(
    source: str | os.PathLike[str], progress: bool | Progress = False
) -> Mapping[str, Any]:
    """The arrays of a file of weights, by the reference's names.

    Args:
        source: the prefix of a checkpoint in the format of the released V-MoE models, or an
            `.npz` file with google-research/vision_transformer's names, the reference's, or those
            of this package's variables.
        progress: as of `VMoECheckpoint`.

    Returns:
        Arrays by name. Those of a checkpoint are read when NumPy asks for them.

    Raises:
        CheckpointError: a file that is missing or damaged.

    Example:

    >>> import numpy as np, tempfile
    >>> from keras_vmoe import checkpoints
    >>> path = tempfile.mkdtemp() + "/vit.npz"
    >>> np.savez(path, **{"Transformer/encoder_norm/scale": np.ones(4)})
    >>> list(checkpoints.open_arrays(path))
    ['Encoder/encoder_norm/scale']
    """
    if Path(source).suffix == ".npz":
        arrays = {reference_name(name): array for name, array in _read_npz(source).items()}
    else:
        arrays = VMoECheckpoint(source, progress)
    if all(name.startswith("params/") for name in arrays):
        arrays = {name.removeprefix("params/"): array for name, array in arrays.items()}
    return arrays


def _read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an archive; nothing is unpickled."""
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as arrays:
            # The reference's numbers come with the configuration of their model.
            return {name: arrays[name] for name in arrays.files if name != "config_json"}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except Exception as error:
        # Of damaged archives come errors of many kinds: of zipfile, zlib, NumPy's headers, ...
        raise CheckpointError(
            f"{path}: it cannot be read as a NumPy archive of numbers ({error})"
        ) from error


def _check_sizes(path: str | os.PathLike[str]) -> None:
    """Refuses arrays that are not as large as their headers say, and what unpacks to far more."""
    limit = max(_UNPACKED, 64 * Path(path).stat().st_size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > limit:
            raise ValueError(f"{unpacked:,} bytes in {Path(path).stat().st_size:,}")
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                # Of the two versions that NumPy writes arrays of numbers in.
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(file)
                size = math.prod(shape) * dtype.itemsize
                if file.tell() + size != member.file_size and not dtype.hasobject:
                    raise ValueError(f"{member.filename} needs {size:,} bytes of values")
