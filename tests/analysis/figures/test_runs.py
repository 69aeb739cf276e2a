"""The figures over several runs."""

import dataclasses
import itertools

import numpy as np
import pytest

from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures import quality_cost
from tests.analysis.figures import made


def sparse(name, accuracy, experts=8, k=1, placement="every_2", renormalise=False, seed=0):
    return made.run(
        name,
        True,
        accuracy,
        1e12,
        60.0,
        seed,
        num_experts=experts,
        num_selected=k,
        placement=placement,
        sparse_blocks=int(placement[-1]),
        renormalise_gates=renormalise,
        name=name,
        width=64,
    )


def test_quality_against_cost(tmp_path):
    shots = {"fewshot/5shot": 0.5}
    runs = [
        made.run("small", False, 0.80, 2e12, 60, 0, {"fewshot/1shot": 0.2, **shots}),
        made.run("worse", False, 0.79, 3e12, 70, 0, shots),
        made.run("large", False, 0.90, 8e12, 200, 0, {"fewshot/5shot": 0.6}),
        made.run("moe", True, 0.95, 3e12, 90, 4, shots),
    ]
    path = tmp_path / "quality.png"
    figure = figures.plot_quality_cost(runs, path)
    assert len(figure.axes) == 4, "accuracy and the few-shot accuracy that all have"
    flops, seconds = figure.axes[:2]
    points = {found.get_label(): found[0].get_xydata() for found in flops.containers}
    np.testing.assert_allclose(points["dense"], [(2, 80), (3, 79), (8, 90)])
    np.testing.assert_allclose(points["sparse"], [(3, 95)])
    fronts = [line.get_xydata() for line in seconds.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(fronts[0], [(1, 80), (200 / 60, 90)])
    assert figure.axes[2].get_xlabel() == "training compute (TFLOPs)"
    assert figure.axes[3].get_xlabel() == "measured training time (minutes)"
    labels = [axis.get_ylabel() for axis in figure.axes[::2]]
    assert labels == ["accuracy (%)", "5-shot accuracy (%)"]
    assert {text.get_text() for text in flops.texts} == {"small", "worse", "large", "moe"}
    found = made.rows(path)
    assert found[3] == {
        "run": "moe",
        "kind": "sparse",
        "runs": 1,
        "seed": 4,
        "params": 1000,
        "train_flops": 3e12,
        "train_seconds": 90,
        "accuracy": 0.95,
        "standard_error": "",
        "fewshot/1shot": "",
        "fewshot/1shot/standard_error": "",
        "fewshot/5shot": 0.5,
        "fewshot/5shot/standard_error": "",
    }
    assert found[0]["fewshot/1shot"] == 0.2
    assert quality_cost._few_shot("fewshot/pets/10shot") == "pets 10-shot accuracy"
    with pytest.raises(ValueError, match="at least two. Received: 1"):
        figures.plot_quality_cost(runs[:1], path)


def test_quality_is_the_mean_of_seeds(tmp_path):
    shots = ({"fewshot/5shot": 0.5}, {"fewshot/5shot": 0.6})
    runs = [
        made.run("moe-seed10", True, 0.80, 2e12, 60, 0, shots[0], k=1, name="a"),
        made.run("moe-seed11", True, 0.84, 2e12, 120, 1, shots[1], k=1, name="b"),
        made.run("k2", True, 0.90, 3e12, 300, 1, shots[0], k=2),
        made.run("vit", False, 0.70, 2e12, 60, 1, shots[0]),
    ]
    path = tmp_path / "quality.png"
    figure = figures.plot_quality_cost(runs, path)
    flops, seconds, shot = figure.axes[:3]
    sparse_of = {axis: axis.containers[-1] for axis in (flops, seconds, shot)}
    np.testing.assert_allclose(sparse_of[flops][0].get_xydata(), [(2, 82), (3, 90)])
    np.testing.assert_allclose(sparse_of[seconds][0].get_xydata(), [(1.5, 82), (5, 90)])
    np.testing.assert_allclose(sparse_of[shot][0].get_xydata(), [(2, 55), (3, 50)])
    (bars,) = sparse_of[flops][2]
    np.testing.assert_allclose(bars.get_segments()[0], [(2, 80), (2, 84)])
    assert {text.get_text() for text in flops.texts} == {"moe-seed (n=2)", "k2", "vit"}
    found = made.rows(path)
    assert [row["runs"] for row in found] == [2, 1, 1]
    assert (found[0]["run"], found[0]["seed"]) == ("moe-seed10, moe-seed11", "0, 1")
    assert found[0]["standard_error"] == pytest.approx(0.02)
    assert found[0]["fewshot/5shot/standard_error"] == pytest.approx(0.05)
    assert found[0]["train_seconds"] == 90


def test_the_legend_of_quality_names_its_lines_and_covers_no_panel(tmp_path):
    runs = [made.run(str(i), i > 2, 0.8 + i / 99, (1 + i) * 1e12, 60 + i) for i in range(6)]
    figure = figures.plot_quality_cost(runs, tmp_path / "quality.png")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "dense",
        "dense: none as cheap is better",
        "sparse",
        "sparse: none as cheap is better",
    ]
    for axis in figure.axes:
        assert axis.get_legend() is None
        assert legend.get_window_extent().y1 <= axis.get_tightbbox().y0


def test_the_frontier_has_no_point_that_another_beats():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, quality = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        points = set(zip(cost, quality, strict=True))
        front = {(cost[i], quality[i]) for i in quality_cost._frontier(cost, quality)}
        beaten = {
            p for p in points if any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
        }
        assert front == points - beaten


def test_sweeps_have_a_panel_for_each_argument_that_varies(tmp_path):
    runs = [
        sparse("a0", 0.80, experts=4),
        sparse("a1", 0.84, experts=4, seed=1),
        sparse("b", 0.85, experts=16),
        sparse("c", 0.88, experts=16, k=2),
        made.run("d", False, 0.75, width=64),
    ]
    path = tmp_path / "sweeps.png"
    figure = figures.plot_sweeps(runs, path)
    experts, selected = figure.axes
    assert experts.get_xlabel() == "experts of a sparse block (E)"
    assert selected.get_xlabel() == "choices per token (k)"
    assert experts.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in experts.get_xticklabels()] == ["4", "16"]
    by_label = {
        container.get_label(): container[0].get_xydata() for container in experts.containers
    }
    np.testing.assert_allclose(by_label["k=1"], [(0, 82), (1, 85)])
    np.testing.assert_allclose(by_label["k=2"], [(1, 88)])
    np.testing.assert_allclose(experts.lines[-1].get_ydata(), [75, 75])
    found = made.rows(path)
    first = next(row for row in found if row["argument"] == "num_experts" and row["value"] == 4)
    assert (first["setting"], first["runs"]) == ("k=1", 2)
    assert first["accuracy"] == pytest.approx(0.82)
    assert first["standard_error"] == pytest.approx(0.02)
    assert sum(row["runs"] for row in found) == 2 * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("varied", [("k",), ("experts", "k"), ("experts", "k", "placement")])
def test_long_labels_of_sweeps_have_room(tmp_path, varied):
    values = {"k": 2, "experts": 16, "placement": "last_1"}
    words = "@Compose((@Augment(), @RandAugment(), @RandomErasing(), @ColorJitter()))"
    runs = [
        dataclasses.replace(run, arguments={**run.arguments, "augment": text, "rate": number})
        for run in (sparse("a", 0.8), *(sparse(n, 0.9, **{n: values[n]}) for n in varied))
        for text, number in ((None, 0.0), (words, 0.001), (words, 0.002))
    ]
    figure = figures.plot_sweeps([*runs, made.run("d", False, 0.7)], tmp_path / "sweeps.png")
    assert len(figure.axes) == len(varied)
    boxes = [axis.get_legend().get_window_extent() for axis in figure.axes]
    for axis, box in zip(figure.axes, boxes, strict=True):
        assert axis.get_window_extent().height > 2.4 * figure.dpi, "not squeezed"
        assert axis.get_window_extent().width > 2.8 * figure.dpi, "not squeezed"
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= axis.xaxis.label.get_window_extent().y0
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    said = " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())
    assert words in said.replace("\n", " "), "nothing is cut off"


def test_placements_are_in_the_order_of_their_blocks(tmp_path):
    runs = [
        sparse(p, 0.8 + 0.01 * int(p[-1]), placement=p) for p in ("last_3", "last_1", "every_2")
    ]
    figure = figures.plot_sweeps(runs, tmp_path / "x.png")
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["last_1", "every_2", "last_3"]
    np.testing.assert_allclose(axis.containers[0][0].get_xydata()[:, 1], [81, 82, 83])
    with pytest.raises(ValueError, match="differ in one of num_experts"):
        figures.plot_sweeps(runs[:1], tmp_path / "y.png")


def test_order_of_softmax_and_choice(tmp_path):
    runs = [
        sparse("a", 0.90, k=1),
        sparse("b", 0.80, k=1, renormalise=True),
        sparse("c", 0.92, k=2),
        sparse("d", 0.90, k=2, renormalise=True),
        sparse("e", 0.94, k=2, renormalise=True, seed=1),
        sparse("f", 0.99, k=5),
        made.run("dense", False, 0.5),
    ]
    path = tmp_path / "order.png"
    figure = figures.plot_gate_order(runs, path)
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.90, 0.80], [0.92, 0.92]])
    assert [text.get_text() for text in axis.texts] == [
        "90.00  (n=1)",
        "80.00  (n=1)",
        "92.00  (n=1)",
        "92.00 ± 2.00  (n=2)",
    ]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["k=1", "k=2"]
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels == ["TOPk(softmax(Wx))", "softmax(TOPk(Wx))"]
    found = made.rows(path)
    assert [row["runs"] for row in found] == [1, 1, 1, 2]
    assert found[3]["standard_error"] == pytest.approx(0.02)
    assert found[0]["standard_error"] == ""
    with pytest.raises(
        ValueError, match="renormalise_gates=False and others with True. Received: F"
    ):
        figures.plot_gate_order(runs[::2][:2], path)


def test_orders_without_a_pair_are_shown_all_the_same(tmp_path):
    runs = [sparse("a", 0.9, k=1), sparse("b", 0.8, k=2, renormalise=True)]
    figure = figures.plot_gate_order(runs, tmp_path / "x.png")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["90.00  (n=1)", "no run", "no run", "80.00  (n=1)"]


def test_other_k_than_in_training(tmp_path):
    sweeps = [
        figures.SelectedSweep("two", 2, {1: 0.7, 2: 0.9, 3: 0.8}),
        figures.SelectedSweep("one", 1, {1: 0.85, 2: 0.6}),
    ]
    path = tmp_path / "k.png"
    figure = figures.plot_k_matrix(sweeps, path)
    (axis,) = figure.axes
    drawn = np.ma.filled(axis.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.85, 0.6, np.nan], [0.7, 0.9, 0.8]])
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["85.0", "60.0", "", "70.0", "90.0", "80.0"]
    frames = {(round(p.get_x() + 0.48), round(p.get_y() + 0.46)) for p in axis.patches}
    assert frames == {(0, 0), (1, 1)}
    rows_of = [text.get_text() for text in axis.get_yticklabels()]
    assert rows_of == ["k = 1  (one)", "k = 2  (two)"]
    found = made.rows(path)
    assert found[-1] == {"run": "two", "trained_k": 2, "evaluated_k": 3, "accuracy": 0.8}
    assert len(found) == 5
    with pytest.raises(ValueError, match="at least one accuracy"):
        figures.plot_k_matrix([], path)
