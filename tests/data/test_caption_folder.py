"""Folders of images with a file of captions."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vmoe import data

LINES = {
    "captions.tsv": 'file\tcaption\n0.png\ta cat\n1.png\ta dog, "asleep"\n\n0.png\tthe cat \n',
    "captions.csv": 'image,text\n0.png,a cat\n1.png,"a dog, ""asleep"""\n0.png,the cat\n',
    "captions.jsonl": '{"file_name": "0.png", "caption": ["a cat", "the cat"]}\n'
    '{"file": "1.png", "text": "a dog, \\"asleep\\""}\n',
}
EXPECTED = [("a cat", "the cat"), ('a dog, "asleep"',)]


def fill(folder, content, name="captions.tsv", count=2):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = np.full((4, 4, 3), 20 * index, np.uint8)
        (folder / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
    (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("verify", [True, False])
def test_split_folders_of_each_format(tmp_path, name, verify):
    for split in ("train", "val", "test"):
        fill(tmp_path / split, LINES[name], name)
    source = data.load_pairs(f"caption_folder:{tmp_path}", verify=verify)
    assert sorted(source.splits) == ["test", "train", "val"]
    assert (source.train_split, source.eval_split) == ("train", "val")
    assert isinstance(source.train, data.ArraySplit if verify else data.FileSplit)
    assert source.image_shape == ((4, 4, 3) if verify else (None, None, 3))
    assert list(data.read_captions(source.train)) == EXPECTED
    batch = next(iter(data.make_dataset(source.train, 2, 4)))
    shades = (batch["image"].numpy()[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_allclose(shades, [0, 20], atol=1e-4)
    chosen = data.load_pairs(f"caption_folder:{tmp_path}", train_split="val", eval_split="test")
    assert (chosen.train_split, chosen.eval_split) == ("val", "test")


def test_one_folder_is_split_the_same_way_each_time(tmp_path):
    lines = "".join(f"{index}.png\timage {index}\n" for index in range(10))
    fill(tmp_path, lines, count=12)  # two that no line names
    sources = [data.load_pairs(f"caption_folder:{tmp_path}") for _ in range(2)]
    held_out = [list(data.read_captions(source.eval)) for source in sources]
    assert held_out[0] == held_out[1]
    both = held_out[0] + list(data.read_captions(sources[0].train))
    assert sorted(both) == [(f"image {index}",) for index in range(10)]
    assert len(held_out[0]) == 2


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("0.png\ta cat\n7.png\ta dog\n", 2, "there is no image .*7.png"),
        ("0.png\ta cat\n1.png\t \n", 2, "the caption of 1.png is empty"),
        ("0.png\ta cat\n\n1.png a dog\n", 3, "expected a file name, a tab and a caption, got 1"),
        ("0.png\ta cat\ta dog\n", 1, "got 3 columns"),
        ("\ta cat\n", 1, "there is no file name"),
        ("0.webp\ta cat\n", 1, "0.webp cannot be read: convert it"),
    ],
)
def test_lines_that_are_wrong_are_named(tmp_path, content, line, message):
    fill(tmp_path, content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        data.load_pairs(f"caption_folder:{tmp_path}")
    assert caught.match(rf"captions\.tsv, line {line}: .*{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "captions.csv",
            "0.png,a cat, asleep\n",
            "line 1: .*a comma and a.*quote captions",
        ),
        ("captions.jsonl", '{"file": "0.png"}\n', 'line 1: expected {"file"'),
        ("captions.jsonl", "\n[1, 2]\n", 'line 2: expected {"file"'),
        ("captions.jsonl", "0.png a cat\n", "line 1: this is no JSON"),
        ("captions.jsonl", '{"file": "0.png", "caption": []}\n', "line 1: the caption of 0.png is"),
        ("captions.jsonl", '{"file": "0.png", "caption": 3}\n', "line 1: the caption of 0.png is"),
        ("captions.tsv", "\n \n", "captions.tsv has no captions"),
        ("captions.tsv", "0.png\ta cat\n", "has 1 image: training and evaluation need one each"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, content, message):
    fill(tmp_path, content, name)
    with pytest.raises(ValueError, match=message):
        data.load_pairs(f"caption_folder:{tmp_path}")


def test_text_of_another_encoding(tmp_path):
    fill(tmp_path, "")
    (tmp_path / "captions.tsv").write_bytes("0.png\tcafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions\.tsv is not text of UTF-8"):
        data.load_pairs(f"caption_folder:{tmp_path}")


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        data.load_pairs(f"caption_folder:{tmp_path}/nowhere")
    fill(tmp_path, LINES["captions.csv"], "captions.csv")
    fill(tmp_path, LINES["captions.tsv"])
    with pytest.raises(FileNotFoundError, match="has captions.tsv and captions.csv: it needs one"):
        data.load_pairs(f"caption_folder:{tmp_path}")
    fill(tmp_path / "train", LINES["captions.tsv"])
    with pytest.raises(FileNotFoundError, match="has 'train' but no folder validation or val or"):
        data.load_pairs(f"caption_folder:{tmp_path}")
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="val has no captions: it needs one of"):
        data.load_pairs(f"caption_folder:{tmp_path}")


@pytest.mark.filterwarnings("ignore:an image cannot be decoded")
def test_damaged_images_keep_captions_in_step(tmp_path):
    fill(tmp_path / "train", "0.png\tzero\n1.png\tone\n2.png\ttwo\n", count=3)
    fill(tmp_path / "test", "0.png\tzero\n")
    (tmp_path / "train" / "1.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="1 of 4 image files cannot be decoded"):
        data.load_pairs(f"caption_folder:{tmp_path}")
    source = data.load_pairs(f"caption_folder:{tmp_path}", max_corrupt=1)
    assert list(data.read_captions(source.train)) == [("zero",), ("two",)]
    assert source.train.images[1, 0, 0, 0] == 40
