"""Reading the format of the released checkpoints: the reference's own files, and damaged ones."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

from keras_vmoe import checkpoints
from keras_vmoe.checkpoints import CheckpointError
from keras_vmoe.checkpoints.vmoe_files import MAGIC
from tests.support import golden
from tests.support.vmoe_mutations import mutations

TINY = ("vmoe_tiny", "vmoe_tiny_prelogits", "eee_tiny")
FOLDER = golden.FOLDER / "ckpt_tiny"


def small_arrays():
    rng = np.random.default_rng(0)
    return {
        "Encoder/encoderblock_10/a": rng.normal(size=(4, 6)).astype("float32"),
        "Encoder/encoderblock_2/a": rng.normal(size=(4, 6)).astype("float32"),
        "Encoder/encoderblock_2/b": rng.normal(size=(2, 3, 5)).astype("float32"),
        "cls": rng.normal(size=(1, 1, 8)).astype("float32"),
        "count": np.array(7, "int32"),
        "empty": np.zeros((0, 3), "float32"),
    }


def write(folder, files):
    folder = Path(folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "ckpt"


def read_files(prefix):
    prefix = Path(prefix)
    return {
        p.name.replace(prefix.name, "ckpt"): p.read_bytes()
        for p in prefix.parent.glob(f"{prefix.name}.*")
        if p.suffix != ".npz"
    }


@pytest.mark.parametrize("name", TINY)
def test_files_of_the_reference_are_read_to_the_bit(name):
    wanted = golden.load(f"ckpt_tiny/{name}").under("params")
    found = checkpoints.load_vmoe(FOLDER / name)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_the_order_of_blocks_is_that_of_strings():
    names = list(checkpoints.load_vmoe(FOLDER / "vmoe_tiny"))
    blocks = [n.split("/")[1] for n in names if n.startswith("Encoder/encoderblock")]
    assert list(dict.fromkeys(blocks))[:4] == [f"encoderblock_{i}" for i in (0, 1, 10, 11)]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_any_number_of_shards(tmp_path, shards):
    arrays = small_arrays()
    checkpoints.save_vmoe(tmp_path / "ckpt", arrays, shards)
    assert len(list(tmp_path.glob("ckpt.data-*"))) == shards
    found = checkpoints.load_vmoe(str(tmp_path / "ckpt.index"))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def packed_checkpoint(array, boxes, shards, piece_sizes, version=True):
    """A checkpoint of one array, packed here from the format's description alone."""

    def box(ends):
        return msgpack.packb([msgpack.packb(e) for e in ends])

    described = msgpack.packb((array.shape, str(array.dtype), False, {}))
    places = msgpack.packb((described, [box(b) for b in boxes], shards))
    index = {"shard_count": max(shards) + 1, "index": {"a": msgpack.ExtType(8, places)}}
    if version:
        index["version"] = "20220622"
    files = {"ckpt.index": msgpack.packb(index)}
    for shard in range(max(shards) + 1):
        parts = []
        for ends, where in zip(boxes, shards, strict=True):
            if where != shard:
                continue
            flat = array[tuple(slice(*e) for e in ends)].reshape(-1)
            pieces = np.split(flat, np.cumsum(piece_sizes)[: len(piece_sizes)])
            packed = [
                msgpack.ExtType(1, msgpack.packb((p.shape, str(p.dtype), p.tobytes())))
                for p in pieces
            ]
            parts.append([packed, msgpack.ExtType(6, box(ends))])
        name = f"ckpt.data-{shard:05d}-of-{max(shards) + 1:05d}"
        files[name] = msgpack.packb({MAGIC: True, "0": parts})
    return files


@pytest.mark.parametrize("version", [True, False])
def test_an_array_in_boxes_and_pieces(tmp_path, version):
    array = np.arange(48, dtype="float32").reshape(6, 8)
    boxes = [
        ((0, 2, None), (None, 8, 1)),
        ((2, 6, None), (0, 5, None)),
        ((2, None, None), (5, 8, None)),
    ]
    files = packed_checkpoint(array, boxes, [1, 0, 1], [3, 4], version)
    found = checkpoints.load_vmoe(write(tmp_path, files))
    np.testing.assert_array_equal(found["a"], array)


def test_bfloat16_becomes_float32_exactly(tmp_path):
    import ml_dtypes

    array = np.array([[1.5, -2.25e-38], [3e38, np.inf]], ml_dtypes.bfloat16)
    files = packed_checkpoint(array, [((0, 2, None), (0, 2, None))], [0], [])
    found = checkpoints.load_vmoe(write(tmp_path, files))["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype("float32"))


def test_arrays_are_read_when_they_are_asked_for(tmp_path):
    read = []
    arrays = small_arrays()
    checkpoints.save_vmoe(tmp_path / "ckpt", arrays, 2)
    opened = checkpoints.VMoECheckpoint(
        tmp_path / "ckpt", lambda done, total: read.append((done, total))
    )
    assert opened.nbytes == sum(a.nbytes for a in arrays.values())
    assert opened["cls"].shape == (1, 1, 8)
    assert len(opened) == len(arrays)
    assert not read
    np.testing.assert_array_equal(np.asarray(opened["cls"]), arrays["cls"])
    assert read == [(32, opened.nbytes)]


def test_progress_is_shown_of_large_files(tmp_path, capsys):
    arrays = {f"a{i}": np.zeros((4 * 2**20,), "float32") for i in range(8)}
    checkpoints.save_vmoe(tmp_path / "ckpt", arrays)
    checkpoints.load_vmoe(tmp_path / "ckpt", progress=False)
    assert capsys.readouterr().err == ""
    checkpoints.load_vmoe(tmp_path / "ckpt")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "ckpt: 128 of 128 MiB read"
    assert len(lines) == 8


READ_ALL = """
import re, sys
from pathlib import Path
from keras_vmoe import checkpoints

def mebibytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = mebibytes("VmRSS")
arrays = checkpoints.load_vmoe(sys.argv[1])
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_model_and_at_most_one_shard(tmp_path):
    arrays = {f"a{i}": np.ones((8, 2**20), "float32") for i in range(8)}
    checkpoints.save_vmoe(tmp_path / "ckpt", arrays, 4)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    model, shard = 256, 64
    assert model - 8 < float(done.stdout) < model + shard


# --- what is wrong with files ---


@pytest.fixture(scope="module")
def files():
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save_vmoe(Path(folder) / "ckpt", small_arrays(), 2)
        return read_files(Path(folder) / "ckpt")


def changed_index(files, change):
    index = msgpack.unpackb(files["ckpt.index"])
    change(index)
    return {**files, "ckpt.index": msgpack.packb(index)}


def places(shape, dtype="float32", boxes=None, shards=(0,)):
    boxes = [[(0, n, None) for n in shape]] if boxes is None else boxes
    packed = [msgpack.packb([msgpack.packb(ends) for ends in box]) for box in boxes]
    described = msgpack.packb((shape, dtype, False, {}))
    return msgpack.ExtType(8, msgpack.packb((described, packed, list(shards))))


def with_array(name, *args, **kwargs):
    return lambda files: changed_index(
        files, lambda index: index["index"].update({name: places(*args, **kwargs)})
    )


FIRST, SECOND = "ckpt.data-00000-of-00002", "ckpt.data-00001-of-00002"
DAMAGES = {
    "no index": (
        lambda f: {n: d for n, d in f.items() if n != "ckpt.index"},
        "ckpt.index: there is no such file",
    ),
    "missing shard": (
        lambda f: {n: d for n, d in f.items() if n != SECOND},
        f"{SECOND}: this file of the checkpoint is missing",
    ),
    "empty shard": (lambda f: {**f, FIRST: b""}, f"{FIRST}: it is empty"),
    "cut off": (lambda f: {**f, SECOND: f[SECOND][:-30]}, f"{SECOND}: .*it ends at byte"),
    "bytes behind": (lambda f: {**f, FIRST: f[FIRST] + b"x"}, "1 bytes follow"),
    "another file": (
        lambda f: {**f, FIRST: msgpack.packb({"a": 1}) + bytes(2000)},
        f"{FIRST}: 'a' is not the number of an array",
    ),
    "no magic": (
        lambda f: {**f, FIRST: f[FIRST].replace(MAGIC.encode(), MAGIC[:-1].encode() + b"x")},
        "is not the number of an array",
    ),
    "not msgpack": (lambda f: {**f, "ckpt.index": b"hello, world"}, "map is needed at byte 0"),
    "no index key": (
        lambda f: {**f, "ckpt.index": msgpack.packb({"shard_count": 1})},
        "index of a",
    ),
    "version": (
        lambda f: changed_index(f, lambda i: i.update(version="20300101")),
        "version '20300101' is not known",
    ),
    "no shards": (
        lambda f: changed_index(f, lambda i: i.update(shard_count=0)),
        "shard_count must be from 1",
    ),
    "memory bomb": (
        with_array("bomb", (2**20, 2**30)),
        "its arrays need 4,503,599,627,.* bytes, the data files have",
    ),
    "data that is not there": (with_array("more", (2,)), "array 'more': the part .* is missing"),
    "shard beyond": (with_array("more", (2,), shards=(2,)), "more lies in shard 2 of 2"),
    "sizes": (
        with_array("more", (4,), boxes=[[(0, 3, None)]]),
        "array 'more': its parts hold 3 values, its shape",
    ),
    "no values, another shape": (
        with_array("more", (0, 5), boxes=[[(0, 0, None), (0, 3, None)]]),
        r"array 'more': its parts end at \(0, 3\), its shape is \(0, 5\)",
    ),
    "overlap": (
        with_array(
            "more", (4,), boxes=[[(0, 1, None)], [(0, 1, None)], [(2, 4, None)]], shards=(0, 1, 0)
        ),
        "array 'more': its parts overlap",
    ),
    "beyond the array": (
        with_array("more", (4,), boxes=[[(0, 5, None)]]),
        "the slice 0:5:None is not of an axis of 4",
    ),
    "no number of values": (
        with_array("more", (0, 2**61), boxes=[[(0, 0, None), (0, 2**61, None)]]),
        r"array 'more': no array has the shape \(0, 2305843009213693952\)",
    ),
    "a step": (with_array("more", (4,), boxes=[[(0, 4, 2)]]), "the slice 0:4:2"),
    "a word as type": (with_array("more", (4,), "object"), "the type of values 'object' is not"),
    "path traversal": (with_array("../../etc/passwd", (4,)), "'../../etc/passwd' cannot be part"),
    "dots": (with_array("..", (4,)), "'..' cannot be part"),
    "too many axes": (with_array("more", (1,) * 17), "an array of 17 axes"),
    "unknown extension": (
        lambda f: changed_index(f, lambda i: i["index"].update(a=msgpack.ExtType(99, b"x"))),
        "extension type 8 is needed at byte .*, it is 99",
    ),
    "deep": (
        lambda f: {**f, "ckpt.index": msgpack.packb({"index": None})[:-1] + b"\x81\xa1a" * 10_000},
        "nested more than 64 deep",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_its_file(tmp_path, files, damage):
    change, message = DAMAGES[damage]
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.load_vmoe(write(tmp_path, change(files)))
    assert str(error.value).startswith(str(tmp_path))


def test_the_same_name_twice_is_refused(tmp_path, files):
    leaf = msgpack.packb(places((2,)))
    tree = b"\x82" + 2 * (msgpack.packb("a") + leaf)
    index = b"\x82" + msgpack.packb("shard_count") + b"\x01" + msgpack.packb("index") + tree
    with pytest.raises(CheckpointError, match="the name 'a' is there twice"):
        checkpoints.load_vmoe(write(tmp_path, {**files, "ckpt.index": index}))


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path, files):
    opened = checkpoints.VMoECheckpoint(write(tmp_path, files))
    (tmp_path / FIRST).write_bytes(files[FIRST][:40])
    with pytest.raises(CheckpointError, match=f"{FIRST}: it was cut off after it was opened"):
        dict(zip(opened, map(np.asarray, opened.values()), strict=True))


def test_an_index_beyond_all_measure(tmp_path, files, monkeypatch):
    monkeypatch.setattr("keras_vmoe.checkpoints.vmoe_files._MAX_INDEX", 100)
    with pytest.raises(CheckpointError, match="ckpt.index: no index has [0-9]+ bytes"):
        checkpoints.load_vmoe(write(tmp_path, files))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ckpt.data-00000-of-00002", "one of a checkpoint's files; give its prefix, .*/ckpt"),
        (".", "this is a folder; give the prefix of a checkpoint in it, .*/ckpt for one"),
        ("empty", "this is a folder; give the prefix of a checkpoint in it$"),
        ("model.keras", "a .keras file is read by keras.models.load_model"),
        ("none", "none.index: there is no such file"),
    ],
)
def test_what_is_no_prefix(tmp_path, files, name, message):
    write(tmp_path, files)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.keras").touch()
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_model(tmp_path / name)


def test_a_bucket_is_named_with_its_mend():
    with pytest.raises(CheckpointError, match="gcloud storage cp 'gs://vmoe_checkpoints/x"):
        checkpoints.load_vmoe("gs://vmoe_checkpoints/x")


@pytest.mark.slow
def test_no_mutated_file_makes_a_wrong_model(tmp_path):
    """A model is built of few of the mutants; of each, the arrays are those of the file or its
    names are an error."""
    prefix = FOLDER / "vmoe_tiny_prelogits"
    whole = {
        f"ckpt{ending}": Path(f"{prefix}{ending}").read_bytes()
        for ending in (".index", ".data-00000-of-00001")
    }
    wanted = golden.load("ckpt_tiny/vmoe_tiny_prelogits").under("params")
    built = 0
    for damaged in mutations(whole, seed=1, count=400):
        for path in tmp_path.iterdir():
            path.unlink()
        try:
            model = checkpoints.load_model(write(tmp_path, damaged.files))
        except ValueError:  # a CheckpointError, or what the model says of such arguments
            continue
        built += 1
        found = checkpoints.reference_variables(model)
        assert found.keys() == wanted.keys(), damaged.what
        different = 0
        for name, array in wanted.items():
            values = np.asarray(found[name])
            assert values.shape == array.shape, damaged.what
            different += np.count_nonzero(values.view("u1") != array.view("u1"))
        assert different <= damaged.changed, damaged.what
    assert built > 4


@pytest.mark.parametrize("count", [600, pytest.param(20_500, marks=pytest.mark.slow)])
def test_no_mutated_file_is_loaded_wrong(tmp_path, files, count):
    """Each is refused, or loads with the arrays that it had: the format has no checksum of values,
    so bytes of values that changed in place are all that may differ."""
    wanted, loaded, refused = small_arrays(), 0, 0
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 200 * 1024
    for damaged in mutations(files, seed=count, count=count):
        for path in tmp_path.iterdir():
            path.unlink()
        try:
            found = checkpoints.load_vmoe(write(tmp_path, damaged.files))
        except CheckpointError:
            refused += 1
            continue
        loaded += 1
        if found.keys() != wanted.keys():
            # Names are free in this format; what a model lacks and has too many is an error.
            assert len(found) == len(wanted), damaged.what
            continue
        different = 0
        for name, array in wanted.items():
            assert found[name].shape == array.shape, damaged.what
            assert found[name].dtype == array.dtype, damaged.what
            different += np.count_nonzero(
                found[name].reshape(-1).view("u1") != array.reshape(-1).view("u1")
            )
        assert different <= damaged.changed, damaged.what
    assert refused > count // 2
    assert loaded > count // 100
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit
