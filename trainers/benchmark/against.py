"""`--against`: this run's rows beside those of an earlier one, as ratios."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_vmoe.tables import aligned
from keras_vmoe.trainers.benchmark import environment, scaling_grid, tables
from keras_vmoe.trainers.benchmark.tables import Column
from keras_vmoe.trainers.errors import UsageError

Report = dict[str, Any]
_FACTS = (
    *("date", "settings", "machine.cpu", "machine.cores", "machine.memory_bytes"),
    *("versions.tensorflow", "versions.keras", "load_average.before"),
)
_WHERE = ("machine", "versions")
# More rounds make a median steadier, not smaller.
_HOW_LONG = ("rounds", "warmup", "seconds", "memory")


class RowList(NamedTuple):
    """One of the lists of rows of a report.

    Attributes:
        name: its key in the report.
        keys: what tells its rows apart.
        measured: what is compared.
    """

    name: str
    keys: tuple[Column, ...]
    measured: tuple[Column, ...]


class Comparable(NamedTuple):
    """A table of which two runs can be compared.

    Attributes:
        axes: settings that only say which rows there are.
        lists: its rows.
    """

    axes: tuple[str, ...]
    lists: tuple[RowList, ...]


def _list(name: str, columns: Sequence[Column], keys: str, measured: str) -> RowList:
    by_path = {column.path: column for column in columns}
    found = [tuple(by_path[path] for path in paths.split()) for paths in (keys, measured)]
    return RowList(name, *found)


def _times(*names: str) -> str:
    return " ".join(f"{name}.wall_ms {name}.cpu_ms" for name in names)


def _ratios(*names: str) -> str:
    return " ".join(f"{name}.wall {name}.cpu" for name in names)


TABLES = {
    "layer": Comparable(
        ("experts", "selected", "tokens", "passes", "capacities"),
        (
            _list(
                "rows",
                tables.LAYER,
                "pass experts selected tokens",
                f"{_times('moe', 'dense')} {_ratios('efficiency', 'padded_floor')}",
            ),
            _list(
                "capacity_rows",
                tables.CAPACITY,
                "experts selected tokens capacity_factor",
                f"{_times('moe')} {_ratios('relative')}",
            ),
        ),
    ),
    "dispatch": Comparable(
        ("experts", "selected", "tokens", "passes"),
        (
            _list(
                "rows",
                tables.DISPATCH,
                "pass experts selected tokens",
                f"{_times('einsum', 'gather', 'grouped')} {_ratios('chosen_over_fastest')}",
            ),
        ),
    ),
    "model": Comparable(
        ("rows",),
        (
            _list(
                "rows",
                tables.MODEL,
                "row pass",
                f"{_times('model', 'plain')} {_ratios('ratio')} peak_memory_bytes",
            ),
        ),
    ),
    "step": Comparable(
        ("rows",),
        (_list("rows", tables.STEP, "row pass part direction", "cpu_ms share"),),
    ),
    "input": Comparable(
        (), (_list("rows", tables.INPUT, "stage", "images_per_second wall_ms cpu_ms"),)
    ),
    "device": Comparable(
        ("models", "forms", "precisions", "threads"),
        (
            _list(
                "rows",
                tables.DEVICE,
                "model precision form threads",
                f"wall.p50 wall.p90 wall.p99 cpu_ms {_ratios('ratio')} file_bytes memory_bytes",
            ),
        ),
    ),
    "inference": Comparable(
        ("capacities", "batches", "threads"),
        (
            _list(
                "rows",
                tables.INFERENCE,
                "threads batch capacity_factor",
                "images_per_second cpu_ms_per_image "
                f"{_times('moe')} {_ratios('relative')} dense_images_per_second {_ratios('ratio')}",
            ),
        ),
    ),
    "scaling": Comparable(
        (*scaling_grid.AXES.values(), "axes", "subjects"),
        (
            _list(
                "rows",
                tables.SCALING,
                "subject pass axis value",
                f"{_times('time', 'dense')} {_ratios('relative', 'over_predicted')}",
            ),
        ),
    ),
    "autoscale": Comparable(
        ("topology", "random"),
        (
            _list(
                "rows",
                tables.AUTOSCALE,
                "topology",
                _times("draws", "length", "ntk", "total"),
            ),
        ),
    ),
}


def read(table: str, file: str) -> Report:
    """Reads the report of an earlier run.

    Args:
        table: the one that it must be of.
        file: what `--json` wrote.

    Raises:
        UsageError: no such file, one that `--json` did not write, or one of another table.
    """
    flag, mend = f"--against={file}", f"name a file of keras-vmoe benchmark {table} --json=FILE"
    try:
        report = json.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{flag}: cannot be read ({error.strerror}); {mend}") from None
    except ValueError:  # of the JSON, or of its letters
        raise UsageError(f"{flag}: is no JSON; {mend}") from None
    found = report.get("benchmark") if isinstance(report, dict) else None
    if found is None:
        raise UsageError(f"{flag}: holds no table of keras-vmoe benchmark; {mend}")
    if found != table:
        raise UsageError(f"{flag}: holds the table {found!r}, not {table!r}; {mend}")
    lacking = _lacking(report, TABLES[table])
    if lacking:
        raise UsageError(f"{flag}: lacks {lacking}; {mend}")
    return report


def _lacking(report: Report, table: Comparable) -> str | None:
    """What a report would need in order to be compared and has not."""
    for path in _FACTS:
        if tables.value(Column(path, ""), report) is None:
            return path
    for rows in table.lists:
        found = report.get(rows.name, [] if rows.name != "rows" else None)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            return f"a list of {rows.name}"
        for column in rows.keys:
            if any(column.path not in row for row in found):
                return f"{column.path} in its {rows.name}"
    return None


def compare(report: Report, earlier: Report, file: str) -> Report:
    """Compares two reports of one table.

    Args:
        report: of this run.
        earlier: of the other, as `read` gave it.
        file: that it was read from.

    Returns:
        What belongs into this run's report under `"against"`: where and when the other was made,
        what differs, and for each list of rows the ratios new / old of the rows that both have,
        the rows of one run alone.
    """
    table = TABLES[report["benchmark"]]
    report = json.loads(json.dumps(report))  # tuples become lists, as in what was read
    found: Report = {"file": file}
    found |= {name: earlier[name] for name in (*_WHERE, "date", "load_average")}
    found["differences"] = {name: _differences(report[name], earlier[name], ()) for name in _WHERE}
    found["differences"]["settings"] = _differences(
        {**report["settings"], **report.get("pipeline", {})},
        {**earlier["settings"], **earlier.get("pipeline", {})},
        (*table.axes, *_HOW_LONG),
    )
    for rows in table.lists:
        pair = [_by_key(rows, each.get(rows.name, [])) for each in (report, earlier)]
        found[rows.name] = _compare_rows(rows, *pair)
    return found


def _differences(
    here: Mapping[str, Any], then: Mapping[str, Any], ignored: Sequence[str]
) -> dict[str, Any]:
    names = [name for name in {**here, **then} if name not in ignored]
    return {
        name: {"here": here.get(name), "then": then.get(name)}
        for name in names
        if here.get(name) != then.get(name)
    }


def _by_key(rows: RowList, found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Rows by what tells them apart; of rows that nothing does, the first meets the first."""
    seen: Counter[str] = Counter()
    result = {}
    for row in found:
        key = json.dumps([row[column.path] for column in rows.keys])
        result[f"{key} {seen[key]}"] = row
        seen[key] += 1
    return result


def _compare_rows(
    rows: RowList, here: Mapping[str, Mapping[str, Any]], then: Mapping[str, Mapping[str, Any]]
) -> Report:
    def name(row: Mapping[str, Any]) -> dict[str, Any]:
        return {column.path: row[column.path] for column in rows.keys}

    both = []
    for key, row in here.items():
        if key in then:
            ratios = {c.path: _ratio(c, row, then[key]) for c in rows.measured}
            both.append({**name(row), "new_over_old": ratios})
    return {
        "both": both,
        "only_here": [name(row) for key, row in here.items() if key not in then],
        "only_then": [name(row) for key, row in then.items() if key not in here],
    }


def _ratio(column: Column, here: Mapping[str, Any], then: Mapping[str, Any]) -> float | None:
    new, old = (tables.value(column, row) for row in (here, then))
    numbers = all(isinstance(number, (int, float)) for number in (new, old))
    return new / old if numbers and old else None


def lines(report: Report, found: Report) -> list[str]:
    """Returns a comparison as lines of text.

    Args:
        report: of this run.
        found: what `compare` made of it.
    """
    text = [
        f"against {found['file']} of {found['date']}",
        *(
            f"  {when}  {environment.in_words(each['machine'], each['versions'])}; load average "
            f"{each['load_average']['before'][0]:.2f} before"
            for when, each in (("here", report), ("then", found))
        ),
    ]
    if found["differences"]["machine"]:
        text.append(
            "The machines differ: ratios of times mean little then, those of columns that are "
            "ratios themselves (efficiency, relative, ratio) keep their meaning."
        )
    for name in ("versions", "settings"):
        parts = [
            f"{key} {pair['here']} here, {pair['then']} then"
            for key, pair in found["differences"][name].items()
        ]
        text += [f"The {name} differ: {'; '.join(parts)}."] if parts else []
    for rows in TABLES[report["benchmark"]].lists:
        if any(found[rows.name].values()):
            text += ["", *_row_lines(rows, found[rows.name])]
    return text


def _row_lines(rows: RowList, found: Report) -> list[str]:
    text = []
    if found["both"]:
        head = [f"{c.title} {c.unit}".strip() for c in (*rows.keys, *rows.measured)]
        cells = [
            [
                *(tables.cell(column, row) for column in rows.keys),
                *(_number(row["new_over_old"][column.path]) for column in rows.measured),
            ]
            for row in found["both"]
        ]
        text = ["new / old", *aligned([head, *cells], num_left=1)]
    for name, words in (("only_here", "not in the file"), ("only_then", "in the file alone")):
        for row in found[name]:
            text.append(f"{words}: {', '.join(f'{key} {value}' for key, value in row.items())}")
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
