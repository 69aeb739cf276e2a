"""Files of weights by their names: archives of ViTs, of the reference, of this package."""

import io
import random
import zipfile

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


def with_header(shape):
    """An archive of one array whose header says a shape, and that has eight bytes of values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + bytes(8)


@pytest.mark.parametrize("shape", [(2**50,), (2**31, 2**31), (3,), (1,)])
def test_a_header_that_lies(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", with_header(shape))
    with pytest.raises(CheckpointError, match="a.npz: it cannot be read.*bytes of values"):
        checkpoints.open_arrays(tmp_path / "a.npz")


def test_an_archive_that_unpacks_to_far_more(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    assert checkpoints.open_arrays(tmp_path / "a.npz")["a"].shape == (10**6,)
    monkeypatch.setattr("keras_vmoe.checkpoints.sources._UNPACKED", 10**6)
    with pytest.raises(CheckpointError, match=r"8,000,\d+ bytes in"):
        checkpoints.open_arrays(tmp_path / "a.npz")


def test_no_mutated_archive_raises_anything_else(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(12.0).reshape(3, 4), b=np.ones(2, "float32"))
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        try:
            found = checkpoints.open_arrays(path)
        except CheckpointError:
            refused += 1
            continue
        # An archive's list may lose a member or rename it: a model tells what is missing.
        assert {array.shape for array in found.values()} <= {(2,), (3, 4)}
    assert refused > 750
