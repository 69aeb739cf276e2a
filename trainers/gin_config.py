"""Gin files: where they are found, how they are read, what a run made of them."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from keras_vmoe.trainers import errors

# In a checkout trainers/ and gin/ are neighbours; in the installed package they are
# keras_vmoe/trainers and keras_vmoe/gin.
SHIPPED = Path(__file__).resolve().parent.parent / "gin"
_search_path: set[str] = set()
_WRONG_PARAMETER = re.compile(r"'(\w+)' doesn't have a parameter named '(\w+)'")
_WRONG_NAME = re.compile(r"No configurable matching (?:reference )?'@?(\w+)")
_BINDING = re.compile(r"^([\w./]+) = (.*)$")


def load() -> ModuleType:
    """Returns gin-config's module.

    Raises:
        ImportError: if gin-config is not installed. In a checkout `import gin` succeeds even
            then, as an empty namespace: this project's folder of gin files has that name.
    """
    try:
        import gin

        gin.parse_config  # noqa: B018  (an empty namespace package lacks it)
    except (ImportError, AttributeError):
        raise ImportError(
            "gin-config is not installed; training needs: pip install 'keras-vmoe[train]'"
        ) from None
    return gin


def find(name: str) -> Path:
    """Finds a gin file.

    Args:
        name: a path, or a path below the folder of gin files that this package ships.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError: if there is no such file; the message lists the shipped runs.
    """
    for path in (Path(name).expanduser(), SHIPPED / name):
        if path.is_file():
            return path
    runs = ", ".join(f"runs/{path.name}" for path in sorted(SHIPPED.glob("runs/*.gin")))
    runs += f" and {len(list(SHIPPED.glob('runs/vmoe/*.gin')))} in runs/vmoe"
    raise FileNotFoundError(f"--gin_file={name}: no such file, here or in {SHIPPED} ({runs})")


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads gin files and bindings, in this order, into gin's global config.

    Args:
        files: paths as `find` takes them; an `include` is looked up beside the file that was
            named first and in the shipped folder.
        bindings: lines such as "train.epochs=3"; they win over the files.

    Raises:
        ValueError: an unknown name or parameter.
        SyntaxError: a line that is not gin.
        OSError: a missing file or include.
    """
    gin = load()
    # Registers the names; it needs TensorFlow, which a misspelt file name should not wait for.
    from keras_vmoe.trainers import configurables

    paths = [find(name) for name in files]
    gin.clear_config()
    for folder in (*(str(path.parent) for path in paths), str(SHIPPED)):
        if folder not in _search_path:
            _search_path.add(folder)
            gin.add_config_file_search_path(folder)
    try:
        with _quiet_logging(), _files_alone(gin):
            for path in paths:
                gin.parse_config_file(str(path))
        for binding in bindings:
            _parse_binding(gin, binding)
    except ValueError as error:
        hint = _nearest(str(error), configurables.PARAMETERS)
        raise ValueError(f"{errors.one_line(error)}{hint}") from error


def _nearest(message: str, parameters: Mapping[str, Sequence[str]]) -> str:
    """Returns what may have been meant where gin did not find a name; else nothing."""
    wrong = _WRONG_PARAMETER.search(message)
    if wrong:
        near = difflib.get_close_matches(wrong[2], parameters.get(wrong[1], ()), 2, cutoff=0.7)
        near = [f"{wrong[1]}.{name}" for name in near]
    else:
        wrong = _WRONG_NAME.search(message)
        by_case = {name.lower(): name for name in parameters}
        asked = wrong[1].lower() if wrong else ""
        # A name in another case is meant, whatever else is near.
        near = [asked] if asked in by_case else difflib.get_close_matches(asked, by_case, 2)
        near = [by_case[name] for name in near]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _parse_binding(gin: ModuleType, binding: str) -> None:
    try:
        gin.parse_config(binding)
    except SyntaxError as error:
        raise ValueError(
            f"--gin_bindings={binding}: {errors.one_line(error)}; gin wants strings in quotes "
            "and an @ before names, such as dataset.name='digits' or train.model=@VMoE"
        ) from error


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    # Gin logs an error for each folder of the search path that an include is not in.
    former = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(former)


@contextlib.contextmanager
def _files_alone(gin: ModuleType) -> Iterator[None]:
    # Gin also takes "data/digits.gin" for a file of a Python package "data", and stumbles over any
    # folder of that name on Python's path, such as one here.
    former = gin.config._FILE_READERS
    gin.config._FILE_READERS = [entry for entry in former if entry[0] is open]
    try:
        yield
    finally:
        gin.config._FILE_READERS = former


def operative() -> str:
    """Returns the bindings that the run used, defaults included, one a line."""
    text = load().operative_config_str(max_line_length=10_000)
    return "\n".join(line for line in text.splitlines() if not line.startswith("# ===")) + "\n"


def bound(name: str) -> Any:
    """Returns the value that the parsed files and bindings give a parameter, or None.

    Args:
        name: such as "train.distribution".
    """
    try:
        return load().query_parameter(name)
    except ValueError:
        return None


def bindings(text: str) -> dict[str, str]:
    """Returns the bindings of an operative config.

    Args:
        text: what `operative` returned.

    Example:
        >>> bindings("# Parameters for train:\\ntrain.epochs = 3\\n")
        {'train.epochs': '3'}
    """
    matches = (_BINDING.match(line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}
