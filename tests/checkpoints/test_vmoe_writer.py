"""Writing the format of the released checkpoints."""

import sys

import numpy as np
import pytest

from keras_vmoe import checkpoints
from keras_vmoe.checkpoints import vmoe_writer
from tests.models import tiny
from tests.support import golden


@pytest.mark.parametrize("name", ["vmoe_tiny", "vmoe_tiny_prelogits", "eee_tiny"])
def test_the_files_of_the_reference_are_written_to_the_byte(tmp_path, name):
    theirs = golden.FOLDER / "ckpt_tiny" / name
    checkpoints.save_vmoe(tmp_path / name, golden.load(f"ckpt_tiny/{name}").under("params"))
    for ending in (".index", ".data-00000-of-00001"):
        own = (tmp_path / f"{name}{ending}").read_bytes()
        assert own == theirs.with_name(f"{name}{ending}").read_bytes()


def test_large_arrays_are_cut_into_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(vmoe_writer, "_MAX_PIECE", 100)
    array = np.arange(1000, dtype="int64").reshape(10, 100)
    checkpoints.save_vmoe(tmp_path / "a", {"a": array})
    np.testing.assert_array_equal(checkpoints.load_vmoe(tmp_path / "a")["a"], array)
    assert (tmp_path / "a.data-00000-of-00001").read_bytes().count(b"int64") == 84


def test_bfloat16_is_kept(tmp_path):
    import ml_dtypes

    array = np.arange(4).astype(ml_dtypes.bfloat16)
    checkpoints.save_vmoe(tmp_path / "a", {"a": array})
    assert b"bfloat16" in (tmp_path / "a.index").read_bytes()
    np.testing.assert_array_equal(checkpoints.load_vmoe(tmp_path / "a")["a"], np.arange(4.0))


def test_nothing_is_replaced_unasked(tmp_path):
    checkpoints.save_vmoe(tmp_path / "a", {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="exists; give another prefix, or overwrite=True"):
        checkpoints.save_vmoe(tmp_path / "a", {"a": np.ones(3)})
    checkpoints.save_vmoe(tmp_path / "a", {"a": np.ones(3)}, overwrite=True)
    assert checkpoints.load_vmoe(tmp_path / "a")["a"].sum() == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_data_without_an_index_is_not_replaced_either(tmp_path):
    checkpoints.save_vmoe(tmp_path / "a", {"a": np.zeros(3)})
    (tmp_path / "a.index").unlink()
    with pytest.raises(ValueError, match="a.data-00000-of-00001 exists"):
        checkpoints.save_vmoe(tmp_path / "a", {"a": np.ones(3)}, 2)


def test_files_of_more_shards_are_gone_after_fewer(tmp_path):
    checkpoints.save_vmoe(tmp_path / "a", {"a": np.zeros(3)}, 3)
    checkpoints.save_vmoe(tmp_path / "b", {"a": np.zeros(3)}, 3)
    checkpoints.save_vmoe(tmp_path / "a", {"a": np.ones(3)}, 2, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("a.*")) == [
        "a.data-00000-of-00002",
        "a.data-00001-of-00002",
        "a.index",
    ]
    assert len(list(tmp_path.glob("b.*"))) == 4
    assert checkpoints.load_vmoe(tmp_path / "a")["a"].sum() == 3


def test_a_model_is_written_as_its_arrays(tmp_path):
    model = tiny.vmoe()
    checkpoints.save_vmoe(tmp_path / "a", model)
    found = checkpoints.load_vmoe(tmp_path / "a")
    wanted = checkpoints.reference_variables(model)
    assert found.keys() == wanted.keys()
    np.testing.assert_array_equal(found["cls"], wanted["cls"])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
        checkpoints.save_vmoe(tmp_path / "nowhere" / "a", {"a": np.zeros(3)})


def test_without_msgpack(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-vmoe\[train\]'"):
        checkpoints.save_vmoe(tmp_path / "a", {"a": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    class Broken:
        shape, dtype = (3,), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            raise KeyboardInterrupt

    checkpoints.save_vmoe(tmp_path / "a", {"a": np.ones(3)})
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_vmoe(tmp_path / "a", {"a": Broken()}, overwrite=True)
    assert checkpoints.load_vmoe(tmp_path / "a")["a"].sum() == 3
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "at least one array"),
        ({"a": np.array("word")}, "must have a type of .*'a' of <U4"),
        ({"a//b": np.ones(1)}, "words joined by slashes. Received: 'a//b'"),
        ({"../a": np.ones(1)}, "words joined by slashes"),
        ({"a\nb": np.ones(1)}, "words joined by slashes"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "'a' cannot be an array, as 'a/b' is one within"),
    ],
)
def test_what_the_format_cannot_hold(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.save_vmoe(tmp_path / "a", arrays)
    assert not list(tmp_path.iterdir())
