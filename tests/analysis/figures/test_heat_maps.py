"""The heat maps of experts by class and by position."""

import dataclasses

import numpy as np
import pytest

from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures.ordering import expert_order
from tests.analysis.figures import made

NAMES = ("cat", "dog", "emu")


def maps(figure):
    return [axis.images[0].get_array() for axis in figure.axes if axis.images]


@pytest.mark.parametrize("value", ["weight", "frequency"])
def test_classes_and_experts(tmp_path, value):
    layers = made.layers(2)
    path = tmp_path / "classes.png"
    figure = figures.plot_expert_class(layers, path, value, NAMES)
    for axis, drawn, layer in zip(figure.axes, maps(figure), layers.values(), strict=False):
        wanted = layer.by_class(value)
        order = expert_order(wanted)
        np.testing.assert_allclose(drawn, wanted[:, order])
        assert [text.get_text() for text in axis.get_xticklabels()] == [str(e) for e in order]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(NAMES)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["block 1 (first)", "block 3 (last)"]
    assert figure.axes[0].get_ylabel() == "class"
    assert figure.axes[0].get_xlabel().startswith("expert")
    assert figure.axes[2].get_ylabel() == figures.expert_class.MEANINGS[value]
    tops = {axis.images[0].norm.vmax for axis in figure.axes[:2]}
    assert tops == {max(layer.by_class(value).max() for layer in layers.values())}
    found = made.rows(path)
    assert len(found) == 2 * made.CLASSES * made.E
    for row in found:
        layer = layers[row["layer"]]
        label, expert = int(row["class"]), int(row["expert"])
        assert row["class_name"] == NAMES[label]
        for name in ("weight", "frequency"):
            assert row[name] == pytest.approx(layer.by_class(name)[label, expert], rel=1e-6)
        assert expert_order(layer.by_class(value))[int(row["column"])] == expert
        assert row["images"] == layer.images_per_class[label]


def test_experts_of_whole_images_are_called_so(tmp_path):
    layer = made.statistics()
    one = dataclasses.replace(
        layer, position_weight=layer.position_weight[:1], position_count=layer.position_count[:1]
    )
    figure = figures.plot_expert_class({"moe": one}, tmp_path / "c.png")
    assert figure.get_suptitle() == "Which experts the images of each class go to"
    assert figure.axes[1].get_ylabel() == "mean routing weight of an image"
    figure = figures.plot_expert_class({"moe": layer}, tmp_path / "c.png")
    assert figure.get_suptitle() == "Which experts the patches of each class go to"


def test_a_class_without_images_is_empty(tmp_path):
    layer = made.statistics(images=(2, 0, 1))
    figure = figures.plot_expert_class({"moe": layer}, tmp_path / "c.png")
    assert np.isnan(np.ma.filled(maps(figure)[0], np.nan)[1]).all()
    assert [row["weight"] for row in made.rows(tmp_path / "c.png") if row["class"] == 1] == [""] * 4
    assert figure.axes[0].get_title() == "moe"


def test_places_of_experts(tmp_path):
    layers = made.layers(2)
    path = tmp_path / "places.png"
    figure = figures.plot_expert_position(layers, path)
    for axis, drawn, layer in zip(figure.axes, maps(figure), layers.values(), strict=False):
        wanted = layer.by_position()[1:].reshape(2, 2, made.E)
        order = expert_order(wanted.reshape(4, made.E))
        drawn = np.ma.filled(drawn, np.nan)
        head = drawn.shape[0] - 2
        assert np.isnan(drawn[:head]).all()
        for place, expert in enumerate(order):
            tile = drawn[head:, place * 3 : place * 3 + 2]
            np.testing.assert_allclose(tile, wanted[..., expert])
        assert [text.get_text() for text in axis.texts] == [str(expert) for expert in order]
    found = made.rows(path)
    assert len(found) == 2 * made.T * made.E
    for row in found:
        layer = layers[row["layer"]]
        token, expert = int(row["token"]), int(row["expert"])
        place = (row["row"], row["column"])
        assert place == (("", "") if token == 0 else divmod(token - 1, 2))
        for name in ("weight", "frequency"):
            assert row[name] == pytest.approx(layer.by_position(name)[token, expert], rel=1e-6)


@pytest.mark.parametrize("plot", [figures.plot_expert_class, figures.plot_expert_position])
def test_many_layers_are_thinned_in_the_picture_alone(tmp_path, plot):
    figure = plot(made.layers(6), tmp_path / "x.png", max_layers=3)
    titles = [axis.get_title() or axis.get_title(loc="left") for axis in figure.axes[:3]]
    assert [title.split(" (")[0] for title in titles] == ["block 1", "block 5", "block 11"]
    assert len(set(made.column(tmp_path / "x.png", "layer"))) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: figures.plot_expert_class({}, path), "at least one MoE layer"),
        (lambda path: figures.plot_expert_position({}, path), "at least one MoE layer"),
        (lambda path: figures.plot_expert_class(made.layers(), path, "sum"), "value must be one"),
        (
            lambda path: figures.plot_expert_class(made.layers(), path, class_names=["a"]),
            "one name a class, 3. Received: 1",
        ),
        (
            lambda path: figures.plot_expert_position(made.layers(), path, image_shape=(1, 7)),
            "tokens=5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
