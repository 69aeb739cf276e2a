"""The command line of `keras-vmoe benchmark`: help, usage errors, tables, progress."""

import subprocess
import sys

import keras
import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import environment, memory, tables


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["name a table: layer, model"]),
        ("layers", ["unknown table 'layers'", "layer, model"]),
        ("layer x", ["unexpected 'x'", "benchmark layer --help"]),
        ("layer --experts=8,0", ["--experts=8,0", "above 0"]),
        ("layer --experts=", ["--experts is empty"]),
        ("layer --selected=1.5", ["--selected=1.5", "whole numbers"]),
        ("layer --capacities=nan", ["--capacities=nan"]),
        ("layer --tokens=77", ["--tokens=77", "32x196"]),
        ("layer --passes=backward", ["'backward'", "forward+backward"]),
        ("layer --experts=2 --selected=3", ["--selected=3 is more than --experts=2"]),
        ("layer --dispatch=fast", ["--dispatch=fast", "grouped"]),
        ("layer --rounds=0", ["--rounds=0"]),
        ("layer --json=/no/such/folder/x.json", ["--json=/no/such/folder/x.json"]),
        ("model --rows=sparse", ["'sparse'", "last_2:8"]),
        ("model --rows=last_2:0", ["'last_2:0'"]),
        ("model --rows=last_5:8", ["'last_5:8'", "8 of the encoder"]),
        ("model num_layers", ["'num_layers' is not NAME=VALUE"]),
        ("model num_experts=4", ["'num_experts=4' is said by --rows"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, command, words):
    assert cli.main(["benchmark", *command.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-vmoe: error: ")
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err


def test_an_unknown_argument_of_the_models_is_named(capsys):
    assert cli.main(["benchmark", "model", "breadth=4"]) == 1
    assert "no argument 'breadth'" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["layer", "model"])
def test_another_backend_is_refused(capsys, monkeypatch, table):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert cli.main(["benchmark", table]) == 1
    printed = capsys.readouterr()
    assert "measures TensorFlow. Received: KERAS_BACKEND='jax'" in printed.err
    assert printed.out == ""


HELP_WITHOUT_TENSORFLOW = """
import sys
sys.argv[0] = "keras-vmoe"  # as the console script finds it
from keras_vmoe.trainers import cli
for argv in (["--help"], ["layer", "--help"], ["model", "--help"]):
    assert cli.main(["benchmark", *argv]) == 0
print("heavy:", sorted({"tensorflow", "keras"} & set(sys.modules)))
"""


def test_help_imports_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TENSORFLOW], capture_output=True, text=True, check=True
    )
    assert "heavy: []" in done.stdout
    for word in ("--experts", "--capacities", "--memory", "--rows", "--json", "  layer", "  model"):
        assert word in done.stdout
    assert memory.COMMAND not in done.stdout


def test_a_table_shows_what_was_not_measured_as_a_dash():
    row = {"row": "dense", "pass": "train", "params": 1_234_567, "ratio": {"wall": None}}
    cells = tables.line(tables.MODEL, row).split()
    assert cells == ["dense", "train", "1.2", *["-"] * 8]


def test_the_machine_is_described():
    assert environment.describe().count(";") == 2
    assert environment.machine()["cores"] >= 1
