"""Prompts: the texts that stand for a class when images are classified by their words."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

#: Where the name of the class goes in a template.
PLACE = "{}"

#: Word to templates, as big_vision names them. "clip_best" are the seven that CLIP's authors chose
#: one after another for ImageNet, and the name alone.
TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clip_best": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
            "{}",
        ),
        "class_name_only": ("{}",),
    }
)

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def canonical_name(class_name: str) -> str:
    """Returns a name as prompts hold it: underscores are spaces, no punctuation, lower case.

    Example:

    >>> from keras_vmoe import text
    >>> text.canonical_name("St._Bernard"), text.canonical_name("kite (bird of prey)")
    ('st bernard', 'kite bird of prey')

    Reference: big_vision, evaluators/proj/image_text/prompt_engineering.py.
    """
    return " ".join(class_name.translate(_NO_PUNCTUATION).lower().split())


def templates(word_or_templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Returns templates by their word, from a file, or as they are given.

    Args:
        word_or_templates: a key of `TEMPLATES`; or a text file (UTF-8) with a template a line,
            such as the 80 of the CLIP paper; or the templates. The name of the class goes where
            a template holds "{}".

    Raises:
        ValueError: neither a key nor a file, no templates, or one that does not hold exactly one
            "{}"; of a file, the message tells the line.

    Example:

    >>> from keras_vmoe import text
    >>> text.templates("class_name_only"), text.templates(["a photo of a {}."])
    (('{}',), ('a photo of a {}.',))
    """
    if not isinstance(word_or_templates, (str, Path)):
        return _checked_templates(word_or_templates)
    word = str(word_or_templates)
    if word in TEMPLATES:
        return TEMPLATES[word]
    if not Path(word).is_file():
        raise ValueError(
            f"templates must be {', '.join(map(repr, TEMPLATES))}, a text file with a template a "
            f"line, or a list of templates. Received: {word!r}, and there is no such file"
        )
    return _checked_templates(_lines(Path(word)), word, "line")


def read_class_names(path: str | Path, allow_repeats: bool = False) -> list[str]:
    """Reads the names of classes, in the order of their labels.

    Args:
        path: a text file (UTF-8) with a name a line. Of several names with commas between them
            the first counts.
        allow_repeats: take a name that two classes share. CLIP's names of ImageNet hold "missile"
            and "sunglasses" twice; such classes have one embedding, so that images of the second
            are not told from the first.

    Raises:
        ValueError: no such file, no names, an empty line, or a name that an earlier line has; the
            message tells the lines.

    Example:

    >>> import pathlib
    >>> from keras_vmoe import text
    >>> _ = pathlib.Path("names.txt").write_text("tench, Tinca tinca\\ngoldfish\\n")
    >>> text.read_class_names("names.txt")
    ['tench', 'goldfish']
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"class names must be a text file with a name a line. Received: {str(path)!r}, and "
            "there is no such file"
        )
    names = [line.partition(",")[0].strip() for line in _lines(path)]
    if not names:
        raise ValueError(f"{path}: must hold a class name a line. Received: an empty file")
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}, line {number}: must begin with a class name. Take it out")
        earlier = first.setdefault(canonical_name(name) or name, number)
        if earlier != number and not allow_repeats:
            raise ValueError(
                f"{path}, line {number}: {name!r} is the name of line {earlier} too. Give the "
                "classes different names, or allow_repeats=True where this is meant"
            )
    return names


def prompts(
    class_names: Sequence[str], templates: Sequence[str], canonical: bool = True
) -> list[list[str]]:
    """Puts the name of each class into each template.

    Args:
        class_names: a name per class, in the order of the labels.
        templates: each with one "{}"; see the function `templates`.
        canonical: leave out the punctuation of names and templates, and put them in lower case,
            as big_vision does; `False`: take them as they are.

    Returns:
        For each class a prompt per template.

    Raises:
        ValueError: no class names, one of which nothing is left, no templates, or one that does
            not hold exactly one "{}".

    Example:

    >>> from keras_vmoe import text
    >>> text.prompts(["Great_Dane", "pug"], ["a photo of a {}.", "{}"])
    [['a photo of a great dane', 'great dane'], ['a photo of a pug', 'pug']]

    Reference: Radford et al. 2021, arXiv 2103.00020, section 3.1.4 (prompts and their ensembles).
    """
    templates = _checked_templates(templates)
    if isinstance(class_names, str) or not len(class_names):
        raise ValueError(f"class_names must be a list of names. Received: {class_names!r}")
    for label, name in enumerate(class_names):
        if not (canonical_name(name) if canonical else name.strip()):
            raise ValueError(
                f"class_names must hold letters or digits. Received: {name!r} for class {label}; "
                "rename it" + (", or keep punctuation by canonical=False" if canonical else "")
            )
    filled = [[template.replace(PLACE, name) for template in templates] for name in class_names]
    return [[canonical_name(one) for one in row] for row in filled] if canonical else filled


def _checked_templates(
    given: Sequence[str], source: str = "templates", unit: str = "number"
) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(
            f"templates must be a list of templates. Received: {given!r}; for a word or a file "
            "call text.templates first"
        )
    found = tuple(given)
    if not found:
        raise ValueError(f"{source}: must hold at least one template. Received: none")
    for number, template in enumerate(found, start=1):
        if template.count(PLACE) != 1:
            raise ValueError(
                f'{source}, {unit} {number}: a template must hold exactly one "{{}}", where the '
                f"name of the class goes. Received: {template!r}"
            )
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8. Received: {error}") from error
    return [line.strip() for line in text.splitlines()]
