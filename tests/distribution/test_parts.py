"""Of several parts in one process each is judged by itself."""

import types

import pytest

from tests.distribution.parts import lines_by_part, once, require_done, run_parts


def test_a_part_that_fails_is_named_and_the_next_one_runs(capsys):
    def two(word):
        print("found", word)
        print("and", 2)

    run_parts({"wrong": lambda: 1 / 0, "two": two}, ["wrong", "two 'a b'"])
    found = lines_by_part("noise\n" + capsys.readouterr().out)
    assert list(found) == ["wrong", "two 'a b'"]
    assert require_done(found["two 'a b'"]) == [["found", "a", "b"], ["and", "2"]]
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        require_done(found["wrong"])


def test_what_is_costly_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    calls = []

    def make(folder):
        calls.append(folder)
        return "text"

    for worker in ("gw0", "gw1"):
        factory = types.SimpleNamespace(getbasetemp=lambda worker=worker: tmp_path / worker)
        assert once(factory, "costly", make) == "text"
    assert calls == [tmp_path / "costly"]
    assert calls[0].is_dir()
