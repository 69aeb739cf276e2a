import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from keras_vmoe import autoscale
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.autoscale import state, workers
from keras_vmoe.trainers.benchmark import autoscale as benchmark
from keras_vmoe.trainers.stopping import StopRequested, StopSignal

QUICK = ["--image_size=32", "--repeats=2", "--ntk_batch=2", "--processes=1"]
SEARCH = ["autoscale", "search", *QUICK, "--width=8", "--steps=5"]
GROW = ["autoscale", "grow", "--topology=8,2,3|4,1,2|4,1,4|4,1,6|32", *QUICK]


class Measured:
    """In place of `Workers`: measures that follow from the topology and the step, at once."""

    def __init__(self, protocol, images, processes, stop):
        self.seed = protocol.seed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def measure(self, genotypes, occasion, on_share=lambda share: None):
        found = []
        on_share(1.0)
        for genotype in genotypes:
            rng = np.random.default_rng([self.seed, occasion, *map(ord, str(genotype))])
            length, number = rng.uniform(1, 2, 2)
            found.append(autoscale.Measures(length, np.nan if number > 1.9 else number))
        return found


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(workers, "Workers", Measured)


def run(*words):
    return cli.main([str(word) for word in words])


def test_a_search_that_goes_on_writes_the_same_files(tmp_path, measured, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*SEARCH, "--steps=12", f"--out={whole}") == 0
    for steps in (1, 5, 6, 12):
        assert run(*SEARCH, f"--steps={steps}", f"--out={parts}") == 0
    names = ("search.json", "search_trace.csv", "search_marginals.csv")
    assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in names)
    content = json.loads((whole / "search.json").read_text())
    assert len(content["trace"]) == 12
    printed = capsys.readouterr().out
    assert "space    4,556,250 topologies, entropy 15.33 nats" in printed
    assert f"result   {content['derived']}" in printed
    assert (whole / "search_trace.png").stat().st_size > 10_000


def test_a_search_of_other_settings_does_not_go_on(tmp_path, measured, capsys):
    assert run(*SEARCH, f"--out={tmp_path}") == 0
    assert run(*SEARCH, f"--out={tmp_path}", "--seed=1", "--width=16") == 1
    message = capsys.readouterr().err
    assert "made with seed=0, width=8, which differs" in message
    assert "another --out" in message


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": {}, "trace": [3]}'])
def test_a_bad_file_is_not_gone_on_from(tmp_path, measured, capsys, text):
    (tmp_path / "search.json").write_text(text)
    assert run(*SEARCH, f"--out={tmp_path}") == 1
    assert "is no state to go on from" in capsys.readouterr().err


def test_a_damaged_trace_is_not_gone_on_from(tmp_path, measured, capsys):
    assert run(*SEARCH, f"--out={tmp_path}") == 0
    content = json.loads((tmp_path / "search.json").read_text())
    del content["policy"]["logits"]
    (tmp_path / "search.json").write_text(json.dumps(content))
    assert run(*SEARCH, f"--out={tmp_path}") == 1
    assert "is no state to go on from" in capsys.readouterr().err


def test_a_state_of_other_axes_is_named(tmp_path, measured, capsys):
    for words, file in ((SEARCH, "search.json"), ([*GROW, "--until=3"], "grow.json")):
        assert run(*words, f"--out={tmp_path}") == 0
        content = json.loads((tmp_path / file).read_text())
        content["trace"][-1]["depths" if file == "grow.json" else "action"].pop()
        (tmp_path / file).write_text(json.dumps(content))
        capsys.readouterr()
        assert run(*words, f"--out={tmp_path}") == 1
        assert f"{tmp_path / file} is no state to go on from" in capsys.readouterr().err


def test_a_growth_keeps_every_core_busy_and_a_search_its_repeats(tmp_path, monkeypatch):
    taken = []

    class Counted(Measured):
        def __init__(self, protocol, images, processes, stop):
            super().__init__(protocol, images, processes, stop)
            taken.append(processes)

    monkeypatch.setattr(workers, "Workers", Counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for words in (SEARCH, [*GROW, "--until=3"]):
        default = [word for word in words if "processes" not in word]
        assert run(*default, f"--out={tmp_path}") == 0
    assert taken == [2, 8]


def test_own_spaces(tmp_path, measured, capsys):
    space = tmp_path / "space.json"
    space.write_text('{"heads": [16], "kernels": [[4], [2], [2], [2, 4]]}')
    assert run(*SEARCH, f"--space={space}", f"--out={tmp_path}") == 0
    assert json.loads((tmp_path / "search.json").read_text())["derived"].endswith("|16,8")
    for text, message in (
        ('{"heads": []}', "each axis of heads must be a list of one or more"),
        ("{", "is not JSON"),
    ):
        space.write_text(text)
        assert run(*SEARCH, f"--space={space}", f"--out={tmp_path}") == 1
        assert message in capsys.readouterr().err


def test_a_growth_that_goes_on_writes_the_same_files(tmp_path, measured, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*GROW, "--until=9", f"--out={whole}") == 0
    for until in (3, 5, 9):
        assert run(*GROW, f"--until={until}", f"--out={parts}") == 0
    for name in ("grow.json", "grow.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    trace = json.loads((whole / "grow.json").read_text())["trace"]
    assert trace[0]["params"] == 2_319_624
    assert trace[-1]["params"] >= 9e6
    assert all(a["params"] < b["params"] for a, b in itertools.pairwise(trace))
    assert trace[-1]["genotype"] in capsys.readouterr().out


def test_a_growth_stops_below_its_limit(tmp_path, measured, capsys):
    assert run(*GROW, "--until=9", "--limit=4", f"--out={tmp_path}") == 0
    assert "all next sizes have more than 4M" in capsys.readouterr().out
    trace = json.loads((tmp_path / "grow.json").read_text())["trace"]
    assert max(row["params"] for row in trace) <= 4e6


def test_a_growth_takes_the_topology_of_a_search(tmp_path, measured, capsys):
    assert run(*SEARCH, f"--out={tmp_path}") == 0
    words = [word for word in GROW if "topology" not in word]
    topology = f"--topology={tmp_path / 'search.json'}"
    assert run(*words, topology, "--until=3", f"--out={tmp_path}") == 0
    (tmp_path / "other.json").write_text("{}")
    assert run(*words, f"--topology={tmp_path / 'other.json'}", f"--out={tmp_path}") == 1
    assert "is no search.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["autoscale", "seek"], 2, "neither search nor grow"),
        ([*SEARCH, "more"], 2, "unexpected 'more'"),
        ([*SEARCH, "--image_size=48"], 1, "--image_size=48 must be a multiple of 32"),
        ([*SEARCH, "--split=train"], 2, "--split is of --data"),
        ([*SEARCH, "--data=digits", "--ntk_batch=5000"], 1, "take fewer"),
        (["autoscale", "grow"], 2, "--topology is missing"),
        (["autoscale", "grow", "--topology=4,2|3"], 1, "5 parts"),
        (["autoscale", "grow", "--topology=4,3,3|4,1,2|4,1,4|4,1,6|32"], 1, "splits of stage 1"),
        ([*GROW, "--limit=1"], 1, "limit must leave room"),
    ],
)
def test_refusals(words, code, message, capsys, tmp_path):
    has_command = len(words) > 1 and words[1] in ("search", "grow")
    assert run(*words, *[f"--out={tmp_path}"] * has_command) == code
    assert message in capsys.readouterr().err


def test_help(capsys):
    for words in (["--help"], ["search", "--help"], ["grow", "--help"]):
        assert run("autoscale", *words) == 0
    assert capsys.readouterr().out.count("usage: keras-vmoe autoscale") == 3


def test_not_finite_numbers_are_null(tmp_path):
    state.write(tmp_path / "x.json", {"settings": {"a": 1}, "trace": [{"x": np.nan, "y": 1.0}]})
    assert '"x": null' in (tmp_path / "x.json").read_text()
    row = state.read(tmp_path / "x.json", {"a": 1})["trace"][0]
    assert np.isnan(row["x"])
    assert row["y"] == 1.0


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    """In real processes: one worker without a stop, and two of which SIGKILL takes the parent."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def command(out, processes):
        words = [*SEARCH, "--steps=12", f"--processes={processes}", f"--out={out}"]
        return [sys.executable, "-m", "keras_vmoe.trainers.cli", *words]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(killed, 2), **quiet)
    deadline = time.monotonic() + 300
    while not (killed / "search.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(json.loads((killed / "search.json").read_text())["trace"])
    assert 0 < done < 12
    subprocess.run(command(killed, 2), check=True, **quiet)
    subprocess.run(command(whole, 1), check=True, **quiet)
    for name in ("search.json", "search_trace.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_stop_of_the_process_group_is_a_stop_of_the_search(tmp_path):
    """As queueing systems send it: the measuring processes get the signal too."""
    words = [*SEARCH, "--steps=1000", "--processes=2", f"--out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_vmoe.trainers.cli", *words],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "search.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert "stopped by SIGTERM; the same command goes on" in printed
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "search.json").read_text())["trace"]


def test_a_digest_of_images_is_named_where_nothing_else_differs(tmp_path):
    path = tmp_path / "search.json"
    state.write(path, {"settings": {"data": "digits", "images_digest": "12"}, "trace": []})
    with pytest.raises(ValueError, match="made with images_digest='12', which differs"):
        state.read(path, {"data": "digits", "images_digest": "34"})
    with pytest.raises(ValueError, match="made with data='digits', which differs"):
        state.read(path, {"data": "noise", "images_digest": "34"})


def test_a_stop_leaves_what_is_not_yet_measured(monkeypatch):
    monkeypatch.setattr(workers, "_measure", lambda task: autoscale.Measures(1.0, 2.0))
    shares, stop = [], StopSignal()
    pool = object.__new__(workers.Workers)
    pool.protocol, pool._stop = autoscale.Protocol(image_size=32, repeats=2), stop
    pool._pool = types.SimpleNamespace(map=map)
    found = pool.measure(["a", "b"], 0, shares.append)
    assert [one.length for one in found] == [1.0, 1.0]
    assert shares == [0.25, 0.5, 0.75, 1.0]

    def ask(share):
        shares.append(share)
        if share == 0.5:
            os.kill(os.getpid(), signal.SIGTERM)

    with stop, pytest.raises(StopRequested):
        pool.measure(["a", "b"], 0, ask)
    assert shares[4:] == [0.25, 0.5]


@pytest.mark.slow
def test_a_measuring_process_that_is_killed_ends_the_others():
    protocol = autoscale.Protocol(image_size=32, repeats=2)
    others = set(multiprocessing.active_children())
    with workers.Workers(protocol, protocol.gaussian_images(2), 2) as pool:
        first, second = set(multiprocessing.active_children()) - others
        first.kill()
        first.join()
        with pytest.raises(RuntimeError, match="one of 2 measuring processes ended by itself"):
            pool.measure(["4,2,2|2,1,2|2,1,2|2,1,2|16,8"], 0)
    second.join(10)
    assert not second.is_alive()


def test_benchmark_times_each_measure():
    settings = benchmark.AutoscaleSettings(random=1, image_size=32, width=8, ntk_batch=2, rounds=1)
    rows = benchmark.measure_autoscale(settings)
    assert rows[0]["topology"].startswith("8,2,3,1|")
    for row in rows:
        parts = sum(row[name]["wall_ms"] for name in ("draws", "length", "ntk"))
        assert row["total"]["wall_ms"] == pytest.approx(parts)
        assert parts > 0
    assert len(benchmark.table(rows)) == 3
