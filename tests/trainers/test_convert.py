"""`keras-vmoe convert`: what it writes, what it tells, what it refuses."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import checkpoints, models
from keras_vmoe.trainers import cli
from tests.models import tiny
from tests.support import golden

VMOE = str(golden.FOLDER / "ckpt_tiny" / "vmoe_tiny")


def run(capsys, *words):
    code = cli.main(["convert", *map(str, words)])
    streams = capsys.readouterr()
    return code, streams.out.splitlines(), streams.err


def test_a_released_checkpoint_becomes_a_keras_file(tmp_path, capsys):
    target = tmp_path / "vmoe.keras"
    code, out, _ = run(capsys, VMOE, target, "batch_priority=True", "images_per_group=2")
    assert code == 0
    rows = [line.split() for line in out if line.startswith("Encoder/")]
    stored = golden.load("ckpt_tiny/vmoe_tiny").under("params")
    assert {row[0] for row in rows} == {name for name in stored if name.startswith("Encoder/")}
    assert all(row[1] == "copied" for row in rows)
    router = ["Encoder/encoderblock_3/Moe/Router/dense/kernel", "copied"]
    assert [*router, "encoder_block_3/encoder_block_3_moe/router/kernel", "16x4"] in rows
    assert "VMoE: 203 arrays copied" in out
    assert out[-1] == f"wrote  {target}  40,106 parameters"
    told = next(line for line in out if line.startswith("arguments: "))
    assert "placement=(1, 3, 11), num_experts=4, router='top_k', num_selected=2" in told
    wanted = golden.load("ckpt_tiny/vmoe_tiny")
    logits = keras.models.load_model(target)(wanted["in/images"])
    np.testing.assert_allclose(logits, wanted["det/logits"], atol=1e-5)


def test_what_the_arrays_do_not_tell_is_as_in_the_released_configs(tmp_path, capsys):
    _, out, _ = run(capsys, VMOE, tmp_path / "vmoe.keras", "--notable")
    assert "batch_priority=False" in out[1]
    assert len(out) == 3


def test_other_classes_and_sizes(tmp_path, capsys):
    words = ("image_size=48", "num_classes=3")
    code, out, _ = run(capsys, VMOE, tmp_path / "vmoe.keras", *words)
    assert code == 0
    found = {line.split()[0]: line for line in out}
    assert "resized" in found["Encoder/posembed_input/pos_embedding"]
    assert "made anew" in found["head/kernel"]
    assert "left out: head/bias, head/kernel" in next(x for x in out if x.startswith("VMoE:"))
    assert "note: the head is untrained; fine-tune the model before it predicts" in out


def test_there_and_back_again(tmp_path, capsys):
    run(capsys, VMOE, tmp_path / "vmoe.keras")
    code, out, _ = run(capsys, tmp_path / "vmoe.keras", tmp_path / "again.index")
    assert code == 0
    assert out[0].startswith("not in the file: router='top_k', num_selected=2, capacity_factor=1.")
    data = ".data-00000-of-00001"
    assert (tmp_path / f"again{data}").read_bytes() == Path(VMOE + data).read_bytes()
    dense = tiny.vit()
    dense.save(tmp_path / "vit.keras")
    assert run(capsys, tmp_path / "vit.keras", tmp_path / "vit.npz")[0] == 0
    assert run(capsys, tmp_path / "vit.npz", tmp_path / "vit2.keras")[0] == 0
    images = tiny.images(2)
    again = keras.models.load_model(tmp_path / "vit2.keras")
    np.testing.assert_allclose(again(images), dense(images), atol=1e-6)


def test_class_names_make_a_classifier(tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(10)))
    code, _, _ = run(capsys, VMOE, tmp_path / "vmoe.keras", f"--class_names={names}")
    assert code == 0
    model = keras.models.load_model(tmp_path / "vmoe.keras")
    assert isinstance(model, models.Classifier)
    assert model.class_names[3] == "class 3"


def test_a_classifier_stays_one(tmp_path, capsys):
    source, images = tmp_path / "a.keras", np.full((1, 20, 24, 3), 99.0, "float32")
    models.Classifier(tiny.vit(), ["ant", "bee", "cat"], value_range=(0.0, 1.0)).save(source)
    code, _, err = run(capsys, source, tmp_path / "b.keras")
    assert (code, err) == (0, "")
    before, after = (keras.models.load_model(tmp_path / f"{x}.keras") for x in "ab")
    assert after.class_names == ["ant", "bee", "cat"]
    np.testing.assert_allclose(after(images), before(images), atol=1e-6)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    words = (source, tmp_path / "c.keras", f"--class_names={tmp_path / 'names.txt'}")
    assert run(capsys, *words)[0] == 0
    renamed = keras.models.load_model(tmp_path / "c.keras")
    assert (renamed.class_names, renamed.value_range) == (["x", "y", "z"], (0.0, 1.0))
    code, _, err = run(capsys, source, tmp_path / "a.npz")
    assert code == 0
    assert "a.npz holds weights alone; the class names and the preprocessing are left out" in err


def test_a_damaged_keras_file_is_no_missing_one(tmp_path, capsys):
    tiny.vit().save(tmp_path / "a.keras")
    content = (tmp_path / "a.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(content[: len(content) // 2])
    code, _, err = run(capsys, tmp_path / "half.keras", tmp_path / "b.keras")
    assert code == 1
    assert "half.keras cannot be loaded as a Keras model: it is damaged" in err


def test_every_name_without_a_partner_is_told(tmp_path, capsys):
    arrays = dict(golden.load("ckpt_tiny/vmoe_tiny").under("params"))
    for i in range(6):
        arrays[f"extra/{i}"] = np.zeros(2)
        del arrays[f"Encoder/encoderblock_{2 * i}/LayerNorm_0/bias"]
    checkpoints.save_vmoe(tmp_path / "odd", arrays)
    code, _, err = run(capsys, tmp_path / "odd", tmp_path / "odd.keras")
    assert code == 1
    assert all(f"left over: extra/{i}" in err for i in range(6))
    assert all(f"missing: Encoder/encoderblock_{2 * i}/LayerNorm_0/bias" in err for i in range(6))
    assert not (tmp_path / "odd.keras").exists()
    code, out, _ = run(capsys, tmp_path / "odd", tmp_path / "odd.keras", "--allow_unmatched")
    assert code == 0
    found = {line.split()[0]: line for line in out}
    assert "left out" in found["extra/5"]
    assert "made anew" in found["Encoder/encoderblock_10/LayerNorm_0/bias"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "give SOURCE and TARGET"),
        ((VMOE,), 2, "give SOURCE and TARGET"),
        ((VMOE, "model.h5"), 2, "TARGET must end in .keras, .npz or .index. Received: 'model.h5'"),
        ((VMOE, "FOLDER/nowhere/a.keras"), 1, "there is no folder"),
        ((VMOE, "FOLDER/there.keras"), 1, "there.keras exists; give another TARGET"),
        (("FOLDER/none", "FOLDER/a.keras"), 1, "none.index: there is no such file"),
        (("FOLDER/none.npz", "FOLDER/a.keras"), 1, "none.npz: there is no such file"),
        (("FOLDER/none.keras", "FOLDER/a.npz"), 1, "none.keras: there is no such file"),
        ((VMOE, "FOLDER/a.npz"), 1, "has sparse blocks; write it with save_vmoe"),
        ((VMOE, "FOLDER/a.keras", "depth=3"), 1, "VMoE has no argument depth"),
        ((VMOE, "FOLDER/a.keras", "depth"), 2, "convert: 'depth' is not NAME=VALUE"),
        ((VMOE, "FOLDER/a.keras", "--class_names=x"), 1, "--class_names=x: there is no such file"),
        ((VMOE, "FOLDER/a.keras", "--class_names=FOLDER/there.keras"), 1, "all different: none"),
        ((VMOE, "FOLDER/a.npz", "--class_names=x"), 2, "--class_names is for a TARGET that ends"),
        (("FOLDER/there.keras", "FOLDER/a.npz", "num_classes=3"), 2, "cannot be changed in a .ker"),
        (
            ("FOLDER/there.keras", "FOLDER/a.npz", "--allow_unmatched"),
            2,
            "convert: --allow_unmatched is for arrays by name; a .keras file is taken as it is",
        ),
        (("FOLDER/there.keras", "FOLDER/a.npz", "--notable"), 2, "convert: --table is for arrays"),
    ],
)
def test_what_is_refused(tmp_path, capsys, words, code, message):
    (tmp_path / "there.keras").touch()
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    found, _, err = run(capsys, *words)
    assert found == code
    assert message in err
    assert len(list(tmp_path.iterdir())) == 1
