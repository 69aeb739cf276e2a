"""Captions made of class names."""

import numpy as np
import pytest

from keras_vmoe import data
from tests.data import splits


def source_of(split, names=("even_one", "odd"), name="pictures"):
    return data.ImageSource(name, names, (4, 4, 1), {"train": split, "test": split})


def relabelled(kind, folder):
    images = splits.numbered_images(2, channels=3 if kind == "file" else 1)
    return splits.make_split(kind, images, folder)


@pytest.mark.parametrize("kind", ["array", "file", "stream"])
def test_each_template_makes_a_caption(monkeypatch, tmp_path, kind):
    source = source_of(relabelled(kind, tmp_path))
    monkeypatch.setattr("keras_vmoe.data.registry.load", lambda *args, **options: source)
    pairs = data.load_pairs("labelled:pictures", templates=["a {}", "{}, seen"])
    expected = [("a even one", "even one, seen"), ("a odd", "odd, seen")]
    assert list(data.read_captions(pairs.train)) == expected
    assert pairs.name == "labelled:pictures"
    assert isinstance(pairs.train, type(source.train))
    plain = data.load_pairs("labelled:pictures")
    expected = [("a photo of a even one.",), ("a photo of a odd.",)]
    assert list(data.read_captions(plain.eval)) == expected


def test_digits_are_called_by_their_words():
    source = data.load("digits")
    pairs = data.load_pairs("labelled:digits")
    captions = list(data.read_captions(pairs.eval))
    assert captions[0] == (f"a photo of a {data.DIGIT_WORDS[source.eval.labels[0]]}.",)
    np.testing.assert_array_equal(pairs.eval.images, source.eval.images)
    assert len(captions) == 360


def test_words_of_classes():
    split = data.ArraySplit.of(splits.numbered_images(2), [0, 1])
    assert data.class_words(source_of(split, ("great_white_shark", "a_b c"))) == (
        "great white shark",
        "a b c",
    )
    garments = source_of(split, ("T-shirt/top", "Trouser"), "fashion_mnist")
    assert data.class_words(garments) == data.GARMENT_WORDS
    with pytest.raises(ValueError, match="ids of WordNet such as 'n01440764', not words"):
        data.class_words(source_of(split, ("n01440764", "n01443537")))


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("a {}", r"templates='a \{\}': expected a list"),
        ([], r"templates=\[\]: expected a list"),
        (["a {}", "photo"], "templates: 'photo' must hold '{}' once"),
        (["{} {}"], "must hold '{}' once"),
    ],
)
def test_templates_that_make_no_caption(templates, message):
    with pytest.raises(ValueError, match=message):
        data.load_pairs("labelled:digits", templates=templates)


def test_images_without_label_have_no_caption(monkeypatch):
    split = data.ArraySplit.of(splits.numbered_images(2), [0, -1])
    source = source_of(split)
    monkeypatch.setattr("keras_vmoe.data.registry.load", lambda *args, **options: source)
    with pytest.raises(ValueError, match="split 'train' has images without a label"):
        data.load_pairs("labelled:pictures")
