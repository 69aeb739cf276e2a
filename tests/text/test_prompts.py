"""Names, templates and prompts as big_vision's evaluator makes them."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_vmoe import text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("St._Bernard", "st bernard"),
        ("kite (bird of prey)", "kite bird of prey"),
        ("Geoffroy's spider monkey", "geoffroys spider monkey"),
        ("black-and-white colobus", "blackandwhite colobus"),
        ("  baluster /  handrail ", "baluster handrail"),
        ("Écureuil_roux", "écureuil roux"),
        ("T-shirt", "tshirt"),
        ("...", ""),
    ],
)
def test_canonical_names(name, wanted):
    assert text.canonical_name(name) == wanted


@settings(max_examples=50, deadline=None)
@given(st.text(string.printable + "éß", max_size=20))
def test_a_canonical_name_holds_no_punctuation_and_stays_as_it_is(name):
    found = text.canonical_name(name)
    assert text.canonical_name(found) == found
    assert not set(found) & set(string.punctuation)


def test_words_of_templates():
    assert text.templates("class_name_only") == ("{}",)
    best = text.templates("clip_best")
    assert len(best) == len(set(best)) == 8
    assert (best[0], best[-1]) == ("itap of a {}.", "{}")
    assert all(template.count("{}") == 1 for row in text.TEMPLATES.values() for template in row)


def test_templates_from_a_file(tmp_path):
    path = tmp_path / "clip.txt"
    path.write_text("\ufeffa bad photo of a {}.\na photo of many {}.\n", "utf-8")
    wanted = ("a bad photo of a {}.", "a photo of many {}.")
    assert text.templates(path) == text.templates(str(path)) == text.templates(wanted) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a {}\na photo\n", "clip.txt, line 2: .*exactly one .*'a photo'"),
        ("a {}\n\nthe {}\n", "clip.txt, line 2: .*Received: ''"),
        ("{} and {}", "clip.txt, line 1: .*exactly one"),
        ("", "clip.txt: must hold at least one template"),
    ],
)
def test_files_of_templates_with_an_error(tmp_path, content, message):
    (tmp_path / "clip.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        text.templates(tmp_path / "clip.txt")


def test_templates_that_are_none():
    with pytest.raises(ValueError, match="'clip_best', 'class_name_only', a text file.*'clip'"):
        text.templates("clip")
    with pytest.raises(ValueError, match="templates, number 2: .*'the'"):
        text.templates(["{}", "the"])
    with pytest.raises(ValueError, match="at least one template"):
        text.templates([])


def names_in(tmp_path, content, **options):
    (tmp_path / "names.txt").write_bytes(content)
    return text.read_class_names(tmp_path / "names.txt", **options)


def test_class_names(tmp_path):
    assert names_in(tmp_path, b"tench, Tinca tinca\r\nGreat_Dane\r\n") == ["tench", "Great_Dane"]
    assert names_in(tmp_path, "Écureuil".encode()) == ["Écureuil"]
    # CLIP's names of ImageNet hold two names twice.
    names = names_in(tmp_path, b"missile\nship\nmissile", allow_repeats=True)
    assert names == ["missile", "ship", "missile"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names.txt: must hold a class name a line"),
        (b"a\n\nb\n", "names.txt, line 2: must begin with a class name"),
        (b"a\n, b\n", "names.txt, line 2: must begin with a class name"),
        (b"grey fox\na\nGrey_Fox, b\n", "line 3: 'Grey_Fox' is the name of line 1 too"),
        (b"a\n\xff\n", "names.txt: must be text in UTF-8"),
    ],
)
def test_files_of_class_names_with_an_error(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        names_in(tmp_path, content)


def test_class_names_of_no_file(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        text.read_class_names(tmp_path / "none.txt")


def test_prompts():
    names, forms = ["T-shirt", "kite_bird"], ["itap of a {}.", "{}"]
    assert text.prompts(names, forms) == [
        ["itap of a tshirt", "tshirt"],
        ["itap of a kite bird", "kite bird"],
    ]
    assert text.prompts(names, forms, canonical=False)[0] == ["itap of a T-shirt.", "T-shirt"]


@pytest.mark.parametrize(
    ("names", "forms", "message"),
    [
        ([], ["{}"], "class_names must be a list of names"),
        ("tench", ["{}"], "class_names must be a list of names"),
        (["a", "?!"], ["{}"], r"'\?!' for class 1; .*canonical=False"),
        (["a"], ["the"], "templates, number 1: .*exactly one"),
        (["a"], "clip_best", "call text.templates first"),
    ],
)
def test_prompts_that_cannot_be(names, forms, message):
    with pytest.raises(ValueError, match=message):
        text.prompts(names, forms)
