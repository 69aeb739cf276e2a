"""`keras-vmoe vocabulary`: the file it writes and what it tells."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import text
from keras_vmoe.trainers import cli

TRAIN = "0.png\ta red cat\n0.png\tthe red cat\n1.png\ta red dog\n"


@pytest.fixture
def photos(tmp_path):
    for split, lines in (("train", TRAIN), ("test", "0.png\ta dog £\n1.png\t££\n")):
        (tmp_path / split).mkdir()
        for index in range(2):
            image = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
            (tmp_path / split / f"{index}.png").write_bytes(image)
        (tmp_path / split / "captions.tsv").write_text(lines, encoding="utf-8")
    return tmp_path


def run(*words):
    return cli.main(["vocabulary", *words])


def test_a_vocabulary_of_a_folder(photos, capsys):
    out = photos / "made" / "words.model"
    words = (f"--dataset=caption_folder:{photos}", "--size=60", "--length=4", f"--out={out}")
    assert run(*words) == 0
    tokenizer = text.Tokenizer.load(out, length=4)
    assert tokenizer.tokens("The red dog") == ["▁the", "▁red", "▁dog"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 captions to learn from, of 2 images")
    assert lines[1] == f"tokens   {tokenizer.vocabulary_size} of at most 60"
    fit = "{} captions: {} cut at 4 tokens, {} partly unknown, {} altogether"
    assert lines[2] == "training " + fit.format(3, "0.0%", "0.0%", "0.0%")
    assert lines[3] == "held out " + fit.format(2, "50.0%", "50.0%", "50.0%")
    assert lines[4] == f"wrote    {out}"
    content = out.read_bytes()
    assert run(*words) == 1
    assert "exists; give another, or --overwrite" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0
    assert out.read_bytes() == content


def test_the_splits_that_are_named(photos, capsys):
    words = (f"--dataset=caption_folder:{photos},test,train", "--size=60")
    assert run(*words, f"--out={photos / 'words.model'}") == 0
    assert "2 captions to learn from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "give --dataset"),
        (("--dataset=digit_grids",), 2, "give --out"),
        (("--dataset=digit_grids,train", "--out=w"), 2, "NAME,TRAIN_SPLIT,HELD_OUT_SPLIT"),
        (("digit_grids",), 2, "did you mean --dataset=digit_grids"),
        (("--dataset=digit_grids", "--out=."), 2, "is a folder; name a file"),
        (("--dataset=digit_grids", "--out=gs://a/b"), 2, "is an address, not a folder"),
        (("--dataset=digit_grids", "--out=w", "--length=1"), 2, "length"),
        (("--dataset=digit_grids", "--out=w", "--size=9"), 1, "no room for the characters"),
        (("--dataset=coco_caption", "--out=w"), 1, "Did you mean"),
    ],
)
def test_wrong_command_lines(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
