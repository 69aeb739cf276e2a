"""The confusion matrix by super-class, and the confusion graph."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures.superclass_inputs import short
from tests.analysis.figures import made

IDS = np.array([0, 1, 0, 1, 2])
NAMES = ("cat", "car", "dog", "van", "sea")
SUPERCLASSES = ("cat, dog", "car, van", "sea")


def confusion():
    matrix = np.random.default_rng(0).uniform(0, 1, (5, 5)) + 4 * np.eye(5)
    matrix[0, 4] = 0.0
    return matrix


def graph():
    matrix = confusion()
    both = matrix + matrix.T
    np.fill_diagonal(both, 0)
    return both


def test_the_matrix_is_ordered_and_framed(tmp_path):
    path = tmp_path / "confusion.png"
    figure = figures.plot_confusion(confusion(), IDS, path, NAMES, SUPERCLASSES)
    axis = figure.axes[0]
    order = [0, 2, 1, 3, 4]
    shares = confusion() / confusion().sum(1, keepdims=True)
    drawn = np.ma.filled(axis.images[0].get_array(), np.nan)
    for row, column in np.ndindex(5, 5):
        if row == column:
            assert np.isnan(drawn[row, column])
        else:
            assert drawn[row, column] == pytest.approx(shares[order[row], order[column]])
    assert [label.get_text() for label in axis.get_yticklabels()] == [NAMES[i] for i in order]
    frames = [p for p in axis.patches if isinstance(p, Rectangle)]
    assert [(f.get_x(), f.get_width()) for f in frames] == [(-0.5, 2), (1.5, 2), (3.5, 1)]
    assert axis.get_title() == "Confusion of 5 classes in 3 super-classes"
    assert axis.get_ylabel() == "class of the image"
    found = made.rows(path)
    assert len(found) == (shares >= 0.001).sum() < 25
    for row in found:
        first, second = NAMES.index(row["class_name"]), NAMES.index(row["predicted_name"])
        assert row["superclass"] == SUPERCLASSES[IDS[first]]
        assert row["predicted_superclass"] == SUPERCLASSES[IDS[second]]
        assert row["share"] == pytest.approx(shares[first, second], rel=1e-5)


def test_of_many_classes_the_super_classes_are_named(tmp_path):
    ids = np.arange(70) % 2
    names = [f"class {i}" for i in range(70)]
    matrix = np.ones((70, 70))
    figure = figures.plot_confusion(matrix, ids, tmp_path / "m.png", names, ["even", "odd"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["even", "odd"]
    assert figure.axes[0].get_yticks().tolist() == [17.0, 52.0]


def test_the_graph_is_coloured_by_super_class(tmp_path):
    path = tmp_path / "graph.png"
    figure = figures.plot_confusion_graph(
        graph(), IDS, path, NAMES, SUPERCLASSES, edges_per_class=1
    )
    axis = figure.axes[0]
    lines, *points = axis.collections
    assert [len(group.get_offsets()) for group in points] == [2, 2, 1]
    colours = {tuple(group.get_facecolor()[0]) for group in points}
    assert len(colours) == 3
    assert sorted(text.get_text() for text in axis.texts) == sorted(NAMES)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["cat, dog (2)", "car, van (2)", "sea (1)"]
    weights = graph()
    wanted = {tuple(sorted((i, int(weights[i].argmax())))) for i in range(5)}
    found = made.rows(path)
    assert {(int(row["class"]), int(row["other"])) for row in found} == wanted
    assert len(lines.get_segments()) == len(wanted)
    for row in found:
        weight = weights[int(row["class"]), int(row["other"])]
        assert row["weight"] == pytest.approx(weight, rel=1e-5)


def test_super_classes_lie_apart(tmp_path):
    random = np.random.default_rng(1)
    ids = np.repeat(np.arange(4), 5)
    weights = random.uniform(0, 1, (20, 20))
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    names = [str(i) for i in range(20)]
    first, second = (
        figures.plot_confusion_graph(weights, ids, tmp_path / "g.png", names, list("abcd"))
        for _ in range(2)
    )
    places = [np.asarray(g.get_offsets()) for g in first.axes[0].collections[1:]]
    for other, wanted in zip(second.axes[0].collections[1:], places, strict=True):
        np.testing.assert_array_equal(other.get_offsets(), wanted)
    # A disc of its own for each: nobody is nearer to the middle of another one.
    centres = np.array([group.mean(0) for group in places])
    for number, group in enumerate(places):
        distance = np.hypot(*(group[:, None] - centres).T)
        assert (distance.argmin(0) == number).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"superclasses": [0, 1]}, "must be of the same classes. Received: .*2,"),
        ({"class_names": NAMES[:4]}, "must be of the same classes"),
        ({"superclass_names": ("a", "b")}, "superclass_names must hold one name"),
        ({"superclasses": [0, 0, 0, 0, 2]}, r"3 names for \[0, 2\]"),
    ],
)
@pytest.mark.parametrize("plot", [figures.plot_confusion, figures.plot_confusion_graph])
def test_what_does_not_fit(tmp_path, plot, change, message):
    arguments = {"superclasses": IDS, "class_names": NAMES, "superclass_names": SUPERCLASSES}
    with pytest.raises(ValueError, match=message):
        plot(graph(), path=tmp_path / "x.png", **{**arguments, **change})
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw(tmp_path):
    rest = (IDS, tmp_path / "x.png", NAMES, SUPERCLASSES)
    with pytest.raises(ValueError, match="symmetric and have an edge"):
        figures.plot_confusion_graph(np.zeros((5, 5)), *rest)
    with pytest.raises(ValueError, match=r"images of every class. Received: none of class \[0\]"):
        figures.plot_confusion(np.diag([0, 1, 1, 1, 1]), *rest)


def test_long_names_are_cut():
    assert short("Staffordshire bullterrier", 8) == "Staffor…"
    assert short("pug", 3) == "pug"
