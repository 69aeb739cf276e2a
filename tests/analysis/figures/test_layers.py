"""The figures of whole layers: gates, buffers, experts of an image, worth of the routers."""

import numpy as np
import pytest

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from keras_vmoe.analysis.routing_statistics import GATE_BINS
from tests.analysis.figures import made


def test_gates(tmp_path):
    layers = made.layers(2)
    path = tmp_path / "gates.png"
    figure = figures.plot_gate_weights(layers, path)
    for axis, layer in zip(figure.axes, layers.values(), strict=True):
        for stairs, counts in zip(axis.patches, layer.gate_histogram, strict=True):
            values, edges, _ = stairs.get_data()
            np.testing.assert_allclose(values, 100 * counts / layer.num_tokens)
            np.testing.assert_allclose(edges, np.linspace(0, 1, GATE_BINS + 1))
        assert axis.lines[0].get_xdata()[0] == 1 / made.E
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] > 100, "the second gates are all in one bin"
        assert axis.get_xlabel() == "gate (0 to 1)"
    assert figure.axes[0].get_ylabel() == "% of tokens"
    found = made.rows(path)
    assert len(found) == 2 * 2 * GATE_BINS
    first = [row for row in found if row["layer"] == "encoder_block_1_moe" and row["rank"] == 1]
    assert [row["tokens"] for row in first if row["tokens"]] == [27, 3]
    assert first[30]["gate_from"] == pytest.approx(0.6)
    assert first[30]["share"] == pytest.approx(27 / 30)
    assert first[0]["mean_gate"] == pytest.approx(0.6)
    for rank in (1, 2):
        assert sum(row["share"] for row in found if row["rank"] == rank) == pytest.approx(2)


def test_buffers(tmp_path):
    layers = made.layers(2)
    path = tmp_path / "buffers.png"
    figure = figures.plot_buffers(layers, path)
    use, dropped = figure.axes
    for place, layer in enumerate(layers.values()):
        assert use.patches[place].get_height() == pytest.approx(100 * layer.buffer_use.mean())
        np.testing.assert_allclose(use.lines[place].get_ydata(), 100 * layer.buffer_use)
    heights = [bar.get_height() for bar in dropped.patches]
    np.testing.assert_allclose(heights, [100 * 10 / 60] * 2 + [100 / 30] * 2)
    assert (use.get_ylabel(), dropped.get_ylabel()) == ("slots filled (%)", "dropped (%)")
    assert [text.get_text() for text in use.get_xticklabels()] == ["block 1", "block 3"]
    found = made.rows(path)
    assert len(found) == 2 * made.E
    for row in found:
        layer = layers[row["layer"]]
        filled = layer.position_count[:, int(row["expert"])].sum()
        assert (row["filled"], row["slots"]) == (filled, 40)
        assert row["filled_share"] == pytest.approx(filled / 40)
        assert row["layer_dropped_choices"] == pytest.approx(1 / 6)
        assert row["layer_dropped_tokens"] == pytest.approx(1 / 30)


def test_soft_layers_have_no_buffers(tmp_path):
    layers = made.layers(1) | {"soft": made.statistics("soft", "soft")}
    figures.plot_buffers(layers, tmp_path / "x.png")
    assert set(made.column(tmp_path / "x.png", "layer")) == set(made.layers(1))
    with pytest.raises(ValueError, match="soft routing has none"):
        figures.plot_buffers({"soft": layers["soft"]}, tmp_path / "y.png")


def test_experts_of_an_image(tmp_path):
    layers = made.layers(2)
    path = tmp_path / "experts.png"
    figure = figures.plot_experts_per_image(layers, path)
    (axis,) = figure.axes
    for line in axis.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(made.E + 1))
        np.testing.assert_allclose(line.get_ydata(), 100 * np.array([0, 1, 0, 3, 2]) / 6)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == [f"block {i}: 3.0 in the mean" for i in (1, 3)]
    assert axis.get_ylabel() == "% of images"
    found = made.rows(path)
    assert [row["images"] for row in found] == [0, 1, 0, 3, 2] * 2
    assert found[3] == {
        "layer": "encoder_block_1_moe",
        "experts": 3,
        "images": 3,
        "share": pytest.approx(0.5),
    }


def test_worth_of_the_routers(tmp_path):
    left = {("a", False): (0.8, 0.7), ("a", True): (0.8, 0.7), ("b", False): (0.6, 0.5)}
    left |= {("b", True): (0.3, 0.2)}
    draws = [
        analysis.RouterDraw(layer, below, draw, accuracy)
        for (layer, below), accuracies in left.items()
        for draw, accuracy in enumerate(accuracies)
    ]
    path = tmp_path / "value.png"
    figure = figures.plot_router_value(analysis.RouterValue(0.9, draws), path)
    (axis,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    np.testing.assert_allclose(lines["trained routers: 90.0%"], [90, 90])
    np.testing.assert_allclose(lines["this router alone"], [75, 55])
    np.testing.assert_allclose(lines["this router and all below"], [75, 25])
    dots = [line.get_ydata() for line in axis.lines if line.get_marker() == "."]
    np.testing.assert_allclose(
        sorted(map(tuple, dots)), sorted(tuple(100 * np.array(values)) for values in left.values())
    )
    found = made.rows(path)
    assert [row["replaced"] for row in found] == ["alone"] * 2 + ["and_below"] * 2 + [
        "alone"
    ] * 2 + ["and_below"] * 2
    assert found[-1]["drop"] == pytest.approx(0.7)
    with pytest.raises(ValueError, match="at least one draw"):
        figures.plot_router_value(analysis.RouterValue(0.9, []), path)
