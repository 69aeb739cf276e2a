"""`keras-vmoe benchmark TABLE --against=FILE`: which rows meet, and what is said of the rest."""

import copy
import json

import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.benchmark import against

MACHINE = {"cpu": "EPYC", "cores": 2, "memory_bytes": 8 * 10**9, "system": "Linux"}


def layer_row(experts, milliseconds, **changes):
    times = {"wall_ms": milliseconds, "cpu_ms": 2 * milliseconds}
    row = {"pass": "forward", "experts": experts, "selected": 1, "tokens": 800, "moe": times}
    ratio = {"wall": 0.5, "cpu": None}
    return {**row, "dense": times, "efficiency": ratio, "padded_floor": ratio, **changes}


def layer_report(*rows, **changes):
    report = {
        "benchmark": "layer",
        "date": "2026-11-01T00:00:00+00:00",
        "machine": MACHINE,
        "versions": {"tensorflow": "2.20.0", "keras": "3.15.1", "numpy": "2.0"},
        "load_average": {"before": [0.25, 0, 0], "after": [1, 1, 1]},
        "settings": {"experts": [8], "width": 384, "rounds": 9},
        "rows": list(rows),
    }
    return {**report, **changes}


def test_rows_of_both_runs_are_divided_and_others_listed():
    old = layer_report(layer_row(8, 4.0), layer_row(32, 8.0))
    new = layer_report(layer_row(2, 1.0), layer_row(8, 1.0, efficiency={"wall": 1.0, "cpu": 0.7}))
    found = against.compare(new, old, "old.json")
    (row,) = found["rows"]["both"]
    assert row["experts"] == 8
    ratios = row["new_over_old"]
    assert (ratios["moe.wall_ms"], ratios["moe.cpu_ms"]) == (0.25, 0.25)
    assert ratios["efficiency.wall"] == 2.0
    assert ratios["efficiency.cpu"] is None
    assert [row["experts"] for row in found["rows"]["only_here"]] == [2]
    assert [row["experts"] for row in found["rows"]["only_then"]] == [32]
    text = against.lines(new, found)
    assert text[0] == "against old.json of 2026-11-01T00:00:00+00:00"
    assert "load average 0.25 before" in text[1]
    head = next(line for line in text if line.startswith("pass"))
    assert head.split()[:4] == ["pass", "E", "k", "n"]
    values = text[text.index(head) + 1].split()
    assert values == ["forward", "8", "1", "800", *["0.25"] * 4, "2.00", "-", "1.00", "-"]
    assert "not in the file: pass forward, experts 2, selected 1, tokens 800" in text
    assert "in the file alone: pass forward, experts 32, selected 1, tokens 800" in text
    assert not any("differ" in line for line in text)


def test_what_differs_between_the_runs_is_said():
    old = layer_report(layer_row(8, 1.0))
    new = copy.deepcopy(old)
    new["machine"]["cores"] = 64
    new["versions"] |= {"numpy": "2.1", "ai-edge-litert": "1.0"}
    new["settings"] = {"experts": [8, 32], "width": 96, "rounds": 3}
    found = against.compare(new, old, "old.json")
    assert found["differences"]["machine"] == {"cores": {"here": 64, "then": 2}}
    text = "\n".join(against.lines(new, found))
    assert "64 cores, 8 GB" in text
    assert "machines differ: ratios of times mean little" in text
    assert "versions differ: numpy 2.1 here, 2.0 then; ai-edge-litert 1.0 here, None then." in text
    assert "settings differ: width 96 here, 384 then." in text


def test_equal_rows_meet_in_their_order():
    old = layer_report(layer_row(8, 1.0), layer_row(8, 10.0))
    new = layer_report(layer_row(8, 2.0), layer_row(8, 30.0), layer_row(8, 1.0))
    found = against.compare(new, old, "old.json")["rows"]
    assert [row["new_over_old"]["moe.wall_ms"] for row in found["both"]] == [2.0, 3.0]
    assert len(found["only_here"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is no JSON"),
        ("[1]", "holds no table of keras-vmoe benchmark"),
        (json.dumps({"benchmark": "model"}), "holds the table 'model', not 'layer'"),
        (json.dumps({**layer_report(), "machine": {}}), "lacks machine.cpu"),
        (json.dumps({**layer_report(), "rows": 3}), "lacks a list of rows"),
        (json.dumps(layer_report({"pass": "forward"})), "lacks experts in its rows"),
    ],
)
def test_another_file_is_refused_before_anything_is_measured(capsys, tmp_path, content, message):
    file = tmp_path / "old.json"
    if content is not None:
        file.write_text(content)
    assert cli.main(["benchmark", "layer", f"--against={file}"]) == 2
    printed = capsys.readouterr()
    assert f"--against={file}: {message}" in printed.err
    assert "keras-vmoe benchmark layer --json=FILE" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("table", ["layer", "model", "input", "device", "autoscale"])
def test_every_table_can_be_compared(capsys, table):
    words = ["--dataset=digits"] if table == "input" else []
    assert cli.main(["benchmark", table, *words, "--against=/no/such.json"]) == 2
    assert "--against=/no/such.json: cannot be read" in capsys.readouterr().err


def test_a_run_beside_itself(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    command = "benchmark layer --experts=2 --selected=1 --tokens=3x5 --width=4 --hidden_dim=8"
    command = f"{command} --passes=forward --rounds=1".split()
    assert cli.main([*command, f"--json={old}"]) == 0
    assert cli.main([*command, f"--against={old}", f"--json={new}"]) == 0
    report = json.loads(new.read_text())
    found = report["against"]
    assert found["differences"] == {"machine": {}, "versions": {}, "settings": {}}
    assert found["machine"] == report["machine"]
    (then,) = json.loads(old.read_text())["rows"]
    (row,) = found["rows"]["both"]
    ratio = report["rows"][0]["moe"]["wall_ms"] / then["moe"]["wall_ms"]
    assert row["new_over_old"]["moe.wall_ms"] == ratio
    assert len(found["capacity_rows"]["both"]) == 3
    assert capsys.readouterr().out.count("new / old") == 2
