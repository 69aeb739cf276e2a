"""Files of weights by their names: archives of ViTs, of the reference, of this package."""

import numpy as np
import pytest

from keras_vmoe import checkpoints
from keras_vmoe.checkpoints import CheckpointError


def test_a_tree_below_params(tmp_path):
    np.savez(tmp_path / "a.npz", **{"params/cls": np.ones(1), "params/head/bias": np.ones(1)})
    assert set(checkpoints.open_arrays(tmp_path / "a.npz")) == {"cls", "head/bias"}


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("unpickled",))

    np.savez(tmp_path / "a.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(CheckpointError, match="a.npz: it cannot be read as a NumPy archive"):
        checkpoints.open_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("damage", ["cut", "zeros", "text", "flip"])
def test_damaged_archives(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 255
    path.write_bytes({"cut": data[:200], "zeros": bytes(50), "text": b"hello"}.get(damage, data))
    with pytest.raises(CheckpointError, match="a.npz: it cannot be read"):
        checkpoints.open_arrays(path)


def test_a_missing_archive(tmp_path):
    with pytest.raises(CheckpointError, match="a.npz: there is no such file"):
        checkpoints.open_arrays(tmp_path / "a.npz")
