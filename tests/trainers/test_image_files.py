"""Image files: which are found, and what is read of each kind."""

import numpy as np
import pytest
from PIL import Image

from keras_vmoe.data import folder
from keras_vmoe.trainers import image_files

GREY = np.random.default_rng(0).integers(0, 256, (7, 9), "uint8")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["L.png", "RGB.png", "RGBA.png", "LA.png", "P.png", "L.bmp", "RGB.bmp", "RGBA.bmp", "L.gif"],
)
def test_kinds_of_files(tmp_path, name, channels):
    mode = name.partition(".")[0]
    Image.fromarray(GREY).convert(mode).save(tmp_path / name)
    image = image_files.read(tmp_path / name, channels)
    assert image.shape == (7, 9, channels)
    assert image.dtype == np.uint8
    # Grey of grey: weights of colours add up to one but for rounding. GIFs have their own greys.
    np.testing.assert_allclose(image[..., 0].astype(int), GREY, atol=1)


def test_colours_stay_in_their_places(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), "uint8")
    for name in ("a.png", "a.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
        np.testing.assert_array_equal(image_files.read(tmp_path / name, 3), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs(tmp_path, channels):
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype("uint8")
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=95)
        image = image_files.read(tmp_path / "a.jpg", channels)
        np.testing.assert_allclose(image[..., 0].astype(int), smooth, atol=6)


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert "Unknown image file format" in image_files.read(tmp_path / "a.png", 3)
    (tmp_path / "b.png").touch()
    assert isinstance(image_files.read(tmp_path / "b.png", 3), str)
    assert image_files.read(tmp_path, 3) == "Is a directory"


def test_folders_are_searched_in_order(tmp_path):
    for name in ("b.png", "a/2.JPG", "a/10.gif", "a/notes.txt", ".hidden.png", ".cache/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = image_files.find([str(tmp_path / "a" / "notes.txt"), str(tmp_path)])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a/notes.txt", "a/10.gif", "a/2.JPG", "b.png"]
    for name in folder.SUFFIXES + folder.OTHER_FORMATS:  # one that cannot be read is named later
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / f"a{name}").touch()
    found = image_files.find([str(tmp_path / "all")])
    assert {path.suffix for path in found} == {*folder.SUFFIXES, *folder.OTHER_FORMATS}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no images .*.png, .jpg"):
        image_files.find([str(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError, match="missing: there is no such"):
        image_files.find([str(tmp_path / "missing")])
