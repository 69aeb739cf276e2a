"""The rules of the house: who imports whom, what is packaged, what README says."""

import ast
import configparser
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_vmoe"
TRAINERS = ROOT / "trainers"

# What lies at the top of the repository. A new entry is a decision, not a slip.
TOP_LEVEL = {
    *(".ci", ".gitignore", ".pre-commit-config.yaml", "pyproject.toml", "setup.cfg"),
    *("README.md", "LICENSE", "NOTICE", "CITATION.cff"),
    *("colabs", "gin", "keras_vmoe", "tests", "tpu", "trainers"),
}
CORE = {"ops", "layers", "models"}
# The rooms that a room may import from. "" is keras_vmoe/__init__.py itself.
MAY_IMPORT = {
    "tables": set(),
    "text": set(),
    "ops": set(),
    "data": {"text"},
    "layers": {"ops"},
    "models": {"ops", "layers", "text"},
    **dict.fromkeys(("checkpoints", "distribution", "superclass", "autoscale"), CORE),
    "serving": CORE | {"text"},
    **dict.fromkeys(("evaluation", "analysis"), CORE | {"tables", "text"}),
}
MAY_IMPORT["trainers"] = {"", *MAY_IMPORT}
MAY_IMPORT[""] = set(MAY_IMPORT) - {"data", "trainers"}

# Imported inside functions alone: `import keras_vmoe` must not need or load them.
LAZY = {
    "gin",
    "sentencepiece",
    "tensorflow_text",
    "tensorflow_datasets",
    "orbit",
    "matplotlib",
    "networkx",
    "sklearn",
    "official",
    "keras_cv",
    "pycocotools",
}
# Only the trainers know of these at all.
TRAINERS_ONLY = {"gin", "orbit", "absl.app", "absl.flags"}
# These rooms are written in keras.ops.
ANY_BACKEND = {"", "tables", "ops", "layers", "models", "checkpoints", "analysis", "evaluation"}


class Import(NamedTuple):
    """One imported module, and whether it is imported as soon as its file is."""

    module: str
    at_once: bool


def source_files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *TRAINERS.rglob("*.py")])


def room_of(path: Path) -> str:
    if path.is_relative_to(TRAINERS):
        return "trainers"
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return "" if path.stem == "__init__" else path.stem


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def find_imports(node: ast.AST, package: str, at_once: bool = True) -> Iterator[Import]:
    """Walks the tree; leaves out what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield Import(base, at_once)
            yield from (Import(f"{base}.{alias.name}", at_once) for alias in child.names)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from find_imports(child, package, at_once and not is_function)


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    folder = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    package = f"keras_vmoe.{folder}" if folder.startswith("trainers") else folder
    return tuple(find_imports(ast.parse(path.read_text()), package))


def imported_rooms(path: Path) -> set[str]:
    modules = {found.module for found in imports_of(path)}
    rooms = {module.split(".")[1] for module in modules if module.startswith("keras_vmoe.")}
    # `from keras_vmoe import layers` names the package too, which alone is no dependency on it.
    names_top = any(
        isinstance(node, ast.Import) and any(alias.name == "keras_vmoe" for alias in node.names)
        for node in ast.walk(ast.parse(path.read_text()))
    )
    return {room if room in MAY_IMPORT else "" for room in rooms} | ({""} if names_top else set())


def top_level(found: Import) -> str:
    return found.module.split(".")[0]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room!r} is a room that the design does not name"
    forbidden = imported_rooms(path) - MAY_IMPORT[room] - {room}
    assert not forbidden, f"{room!r} may not import from {sorted(forbidden)}"


@pytest.mark.parametrize("path", source_files(), ids=relative)
def test_libraries_are_imported_where_they_may(path):
    room = room_of(path)
    if room == "trainers":
        return
    found = imports_of(path)
    at_once = {top_level(entry) for entry in found if entry.at_once}
    assert not at_once & LAZY, "import these inside the functions that use them"
    modules = {entry.module for entry in found} | {top_level(entry) for entry in found}
    assert not modules & TRAINERS_ONLY
    if room in ANY_BACKEND:
        assert not at_once & {"tensorflow", "jax"}, "this room runs on every backend"


def test_the_reader_of_imports_sees_them_all():
    text = (
        "import a.b, c\nfrom keras_vmoe import ops\nfrom . import d\nfrom ..e import f\n"
        "if TYPE_CHECKING:\n    import g\ntry:\n    import h\nexcept ImportError:\n    pass\n"
        "def function():\n    import i\n"
    )
    found = list(find_imports(ast.parse(text), "keras_vmoe.layers"))
    at_once = {entry.module for entry in found if entry.at_once}
    assert at_once >= {"a.b", "c", "keras_vmoe.ops", "keras_vmoe.layers.d", "keras_vmoe.e.f", "h"}
    assert {entry.module for entry in found if not entry.at_once} == {"i"}
    assert "g" not in {entry.module for entry in found}


def test_top_level_holds_what_is_meant_to_be_there():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    assert {file.split("/")[0] for file in files if file} == TOP_LEVEL


def test_gin_folder_holds_no_python():
    assert not list((ROOT / "gin").rglob("*.py")), "`import gin` would find this folder"
    assert list((ROOT / "gin").rglob("*.gin"))


def run_python(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_importing_changes_no_environment_variable():
    program = (
        "import os, keras, tensorflow\nbefore = dict(os.environ)\n"
        "import keras_vmoe\n"
        "from keras_vmoe import ops, layers, models, checkpoints, analysis\n"
        "print(dict(os.environ) == before)"
    )
    assert run_python(program).split() == ["True"]


@functools.cache
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_every_package_is_listed():
    on_disk = {"keras_vmoe.gin"}
    for top in (PACKAGE, TRAINERS):
        for marker in top.rglob("__init__.py"):
            name = marker.parent.relative_to(ROOT).as_posix().replace("/", ".")
            on_disk.add(f"keras_vmoe.{name}" if name.startswith("trainers") else name)
    assert set(setup_cfg()["options"]["packages"].split()) == on_disk
    folders = {p.parent for p in source_files()}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_versions_agree():
    version = setup_cfg()["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    import keras_vmoe

    assert getattr(keras_vmoe, "__version__", version) == version


def test_every_extra_is_in_all():
    extras = setup_cfg()["options.extras_require"]
    listed = re.search(r"keras_vmoe\[(.*)\]", extras["all"])[1].split(",")
    assert set(listed) == set(extras) - {"all"}


def test_an_extra_has_the_name_that_pip_makes_of_it():
    # pip before 23.3 only warns of `name_with_underscores`, and installs nothing of it.
    names = list(setup_cfg()["options.extras_require"])
    assert names == [re.sub(r"[-_.]+", "-", name).lower() for name in names]


def test_extras_that_messages_and_pages_name_are_there():
    places = [*PACKAGE.rglob("*.py"), *TRAINERS.rglob("*.py"), ROOT / ".ci" / "run"]
    places += [ROOT / "README.md", *ROOT.glob("*/README.md")]
    named = set()
    for path in places:
        for extras in re.findall(r"(?:keras[-_]vmoe|'\.)\[([\w,-]+)\]", path.read_text()):
            named |= set(extras.split(","))
    assert named <= set(setup_cfg()["options.extras_require"])
    assert {"test", "train", "tpu-compile"} <= named


def readme_command(name: str, *readme: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / ".ci" / "readme-command"), name, *readme]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_readme_holds_the_two_commands_that_ci_runs():
    named = set(re.findall(r"readme_command ([\w-]+)", (ROOT / ".ci" / "run").read_text()))
    assert named == {"main-job", "tests"}
    main_job, tests = (readme_command(name) for name in ("main-job", "tests"))
    assert main_job.returncode == tests.returncode == 0, main_job.stderr + tests.stderr
    assert "keras-vmoe train --gin_file=runs/quickstart.gin" in main_job.stdout
    assert re.search(r"pip install -e '\.\[test\]' && pytest$", tests.stdout.strip())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 markers"),
        ("<!-- ci:tests -->\n```\na\n```\n<!-- ci:tests -->", "2 markers"),
        ("<!-- ci:tests -->\nwords\n```bash\npytest\n```", "no fenced command"),
        ("<!-- ci:tests -->\n```bash\n\n```", "no fenced command"),
    ],
)
def test_a_readme_without_its_commands_is_an_error(tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    result = readme_command("tests", str(tmp_path / "README.md"))
    assert result.returncode == 1
    assert message in result.stderr


def test_a_marked_block_is_found(tmp_path):
    (tmp_path / "README.md").write_text("x\n<!-- ci:tests -->\n\n```bash\na &&\nb\n```\nc\n")
    assert readme_command("tests", str(tmp_path / "README.md")).stdout == "a &&\nb\n"
