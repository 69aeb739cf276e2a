"""`keras-vmoe repro asvit`: the runs, the agreements, the picture; training itself is made up."""

import csv
import json
import math

import numpy as np
import pytest

from keras_vmoe import autoscale
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.repro import asvit, asvit_figure, ranks
from keras_vmoe.trainers.repro.training import configure

TINY = ("dataset.name='digits'", "train.steps=2", "train.batch_size=8")


def tau_by_loops(left, right):
    score, ties = 0, [0, 0]
    for i in range(len(left)):
        for j in range(i):
            a, b = (np.sign(x[i] - x[j]) for x in (left, right))
            score += a * b
            ties[0] += a != 0
            ties[1] += b != 0
    return score / math.sqrt(ties[0] * ties[1])


def test_tau_is_what_loops_give_and_knows_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = rng.integers(0, 6, (2, 9))
        assert ranks.kendall_tau(left, right) == pytest.approx(tau_by_loops(left, right))
    assert ranks.kendall_tau([1, 2, 3], [6, 5, 4]) == -1
    assert ranks.kendall_tau([1, 1, 1], [1, 2, 3]) == 0


def test_intervals_tell_order_from_noise():
    rng = np.random.default_rng(1)
    values = rng.normal(size=16)
    assert ranks.agreement(values, 2 * values).verdict == "holds"
    assert ranks.agreement(values, -values).verdict == "does not hold"
    noise = ranks.agreement(values, rng.normal(size=16))
    assert noise.verdict.startswith("leans")
    assert noise.low < noise.tau < noise.high


def made_up(count=16):
    topologies = [str(one) for one in asvit.random_topologies(count + 1)]
    order = np.arange(count + 1.0)
    measures = {
        "manifold length": list(order),
        "curvature": list(-order),
        "Gauss map length": [*order[:-1], math.nan],
        "NTK condition number": [math.nan, *-order[1:]],
    }
    accuracy = tuple((0.8 + x / 100, 0.81 + x / 100) for x in order)
    return asvit.Measured((0, 1), tuple(topologies), accuracy, measures, 100)


def test_agreements_are_of_better_first_and_of_random_topologies():
    found = asvit.agreements(made_up())
    taus = {name: round(one.tau, 6) for name, one in found.items()}
    assert taus == {
        "manifold length": 1.0,
        "curvature": -1.0,
        "Gauss map length": 1.0,
        "NTK condition number": 1.0,
    }
    text = asvit.table(made_up())
    assert "above 16 of 16" in text
    assert "smallest NTK condition number" in text


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (0, "smallest NTK condition number, of 0 topologies  - - not measured"),
        (2, "smallest NTK condition number, of 2 topologies  - - not measured"),
        (15, "smallest NTK condition number, of 15 topologies +1.00 +1.00 to +1.00 holds"),
    ],
)
def test_a_measure_without_data_has_no_verdict(tmp_path, measured, words):
    found = made_up()
    numbers = [-float(i) if i < measured else math.nan for i in range(17)]
    found.measures["NTK condition number"] = numbers
    lines = [line.split() for line in asvit.table(found).splitlines()]
    assert words.split() in lines
    content = json.loads(json.dumps(asvit.to_dict(found), allow_nan=False))["kendall_tau"]
    one = content["NTK condition number"]
    assert one["count"] == measured
    assert (one["tau"] is None) == (one["low"] is None) == (measured < 3)
    asvit_figure.plot_asvit(found, tmp_path / "repro.png")


def test_picture_and_data(tmp_path):
    asvit_figure.plot_asvit(made_up(), tmp_path / "repro.png")
    rows = list(csv.DictReader((tmp_path / "repro.csv").open()))
    assert len(rows) == 17
    assert [row["searched"] for row in rows] == ["0"] * 16 + ["1"]
    content = json.loads(json.dumps(asvit.to_dict(made_up()), allow_nan=False))
    assert content["topologies"][0]["measures"]["NTK condition number"] is None


def test_runs_differ_by_topology_and_seed_alone(tmp_path):
    topologies = [str(one) for one in asvit.random_topologies(3)]
    runs = asvit.trainings(topologies, tmp_path, [0, 1], TINY)
    assert len({run.workdir for run in runs}) == 6
    assert [run.workdir.name for run in runs[:3]] == ["random_0-0", "random_1-0", "searched-0"]
    config = configure(runs[4])
    source = config.dataset()
    model = config.model(image_size=32, channels=3, num_classes=source.num_classes)
    assert str(model.genotype) == topologies[1]
    assert (config.seed, config.image_size, config.channels) == (1, 32, 3)


def test_measures_are_of_every_topology():
    topologies = [str(one) for one in asvit.random_topologies(2)]
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    found = asvit._measures(topologies, 32, images)
    assert list(found) == list(asvit.MEASURES)
    assert all(len(values) == 2 and np.isfinite(values).all() for values in found.values())


class Measuring:
    """In place of `Workers`."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def measure(self, genotypes, occasion):
        return [autoscale.Measures(float(occasion), 1.0) for _ in genotypes]


def test_a_search_of_other_images_is_not_gone_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(asvit, "NUM_STEPS", 2)
    monkeypatch.setattr(asvit, "Workers", Measuring)
    images = np.zeros((2, 32, 32, 3), "float32")
    found = asvit._search(tmp_path, 32, images, 1)
    assert asvit._search(tmp_path, 32, images, 1) == found
    with pytest.raises(ValueError, match="made with images_digest=.*move it away"):
        asvit._search(tmp_path, 32, images + 1, 1)
    content = json.loads((tmp_path / "search.json").read_text())
    del content["policy"]
    (tmp_path / "search.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"search.json is no state to go on from.*policy"):
        asvit._search(tmp_path, 32, images, 1)


def test_the_command_searches_trains_and_writes(tmp_path, monkeypatch, capsys):
    measures = {name: [float(i) for i in range(5)] for name in asvit.MEASURES}
    monkeypatch.setattr(asvit, "NUM_TOPOLOGIES", 4)
    monkeypatch.setattr(asvit, "NUM_STEPS", 3)
    monkeypatch.setattr(asvit, "Workers", Measuring)
    monkeypatch.setattr(asvit, "train_all", lambda runs, processes: None)
    monkeypatch.setattr(asvit, "_measures", lambda *_: measures)
    monkeypatch.setattr(asvit.Training, "accuracy", lambda run: 0.5 + len(run.workdir.name) / 100)
    words = [f"--gin_bindings={word}" for word in TINY]
    for _ in range(2):  # the second time from the search that is there
        assert cli.main(["repro", "asvit", f"--out={tmp_path}", "--seeds=1", *words]) == 0
    assert "5 runs" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"search.json", "repro.txt", "repro.json", "repro.png", "repro.csv"} <= names
    assert len(json.loads((tmp_path / "search.json").read_text())["trace"]) == 3
