"""Files of weights of any kind that is read here, as arrays by the reference's names."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_vmoe.checkpoints.errors import CheckpointError
from keras_vmoe.checkpoints.vit_npz import reference_name
from keras_vmoe.checkpoints.vmoe_files import Progress, VMoECheckpoint


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
        with np.load(path, allow_pickle=False) as arrays:
            # The reference's numbers come with the configuration of their model.
            return {name: arrays[name] for name in arrays.files if name != "config_json"}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path}: it cannot be read as a NumPy archive of numbers ({error})"
        ) from error
