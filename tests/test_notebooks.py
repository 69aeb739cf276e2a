"""Every notebook runs, shows pictures, and shows the values of the gin files that it mirrors."""

from __future__ import annotations

import ast
import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
BINDING = re.compile(r"^([\w.]+)\.(\w+) *= *(.+)$")


def read(path: Path):
    import nbformat

    return nbformat.read(path, as_version=4)


def mirrored(path: Path) -> list[tuple[str, str]]:
    """(gin file, source) of the cells that are tagged as showing a gin file's values."""
    return [
        (tag.removeprefix("mirrors:"), cell.source)
        for cell in read(path).cells
        for tag in cell.metadata.get("tags", [])
        if tag.startswith("mirrors:")
    ]


def gin_values(path: Path) -> dict[str, object]:
    """Parameter to value, for the literal bindings of one gin file, includes left aside."""
    values = {}
    for line in path.read_text().splitlines():
        match = BINDING.match(line)
        if match and not match.group(3).startswith("@"):
            values[match.group(2)] = ast.literal_eval(match.group(3))
    return values


def test_the_set_of_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{i:02d}" for i in range(1, 10)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_values_shown_are_those_of_the_gin_file(path):
    cells = mirrored(path)
    assert cells, "a notebook mirrors at least one gin file"
    for name, source in cells:
        values = gin_values(ROOT / "gin" / name)
        for statement in ast.parse(source).body:
            shown = ast.literal_eval(statement.value)
            assert values[statement.targets[0].id] == shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    notebook = read(path)
    assert "colab-badge.svg" in notebook.cells[0].source
    assert "pip" in notebook.cells[1].source
    assert "KERAS_VMOE_PROJECT" in notebook.cells[1].source
    assert "What to try next" in notebook.cells[-1].source
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep outputs out of history"


def picture_is_drawn(data: str) -> bool:
    """Whether a PNG in base64 has more than a few colours."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
    return len(np.unique(pixels)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_tiny_settings(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("KERAS_VMOE_TINY", "1")
    notebook = read(path)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    pictures = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    assert all(picture_is_drawn(picture) for picture in pictures)
