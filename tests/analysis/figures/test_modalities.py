"""The figures of models of images and texts: success of routing, modalities of the experts."""

import numpy as np
import pytest

from keras_vmoe.analysis import figures
from tests.analysis.figures import made

LAYERS = ("encoder_block_1_moe", "encoder_block_3_moe")


def measured():
    """Rows as of `metrics.jsonl`; a rate tells its modality, layer and step."""
    rows = []
    for step in (10, 20, 30):
        row = {"step": step, "split": "train", "loss": 1.0, "learning_rate": None}
        for i, layer in enumerate(LAYERS):
            row[f"{layer}/image_success_rate"] = 0.9 - 0.1 * i + step / 1000
            row[f"{layer}/text_success_rate"] = 0.5 + 0.1 * i + step / 1000
            row[f"{layer}/importance_loss"] = 0.1
        rows.append(row)
    rows[1][f"{LAYERS[1]}/text_success_rate"] = None
    rows.append({"step": 30, "split": "eval", f"{LAYERS[0]}/text_success_rate": 0.1})
    return rows


def test_success_rates(tmp_path):
    path = tmp_path / "rates.png"
    figure = figures.plot_success_rates(measured(), path)
    image, words = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["image tokens", "text tokens"]
    assert image.get_ylabel() == "tokens that get an expert (%)"
    assert image.get_xlabel() == words.get_xlabel() == "training step"
    assert image.get_ylim()[0] == 0
    np.testing.assert_allclose(image.lines[0].get_ydata(), [91, 92, 93])
    np.testing.assert_allclose(image.lines[1].get_ydata(), [81, 82, 83])
    np.testing.assert_allclose(words.lines[0].get_ydata(), [51, 52, 53])
    np.testing.assert_allclose(words.lines[1].get_xdata(), [10, 30])
    np.testing.assert_allclose(words.lines[1].get_ydata(), [61, 63])
    assert image.lines[1].get_color().tolist() == words.lines[1].get_color().tolist()
    labels = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert labels == ["block 1", "block 3"]
    found = made.rows(path)
    assert len(found) == 11
    assert found[0] == {
        "modality": "image",
        "layer": LAYERS[0],
        "step": 10,
        "success_rate": pytest.approx(0.91),
    }


def test_success_rates_of_the_other_split(tmp_path):
    figure = figures.plot_success_rates(measured(), tmp_path / "x.png", split="eval")
    (axis,) = figure.axes
    assert axis.lines[0].get_ydata().tolist() == [10]
    with pytest.raises(ValueError, match="of split 'test'. Received: none"):
        figures.plot_success_rates(measured(), tmp_path / "y.png", split="test")


def test_modalities_of_experts(tmp_path):
    counts = {LAYERS[0]: np.array([[30, 10], [0, 60], [0, 0]]), LAYERS[1]: np.ones((9, 2))}
    path = tmp_path / "modality.png"
    figure = figures.plot_expert_modality(counts, path)
    first, second = figure.axes
    image, words = first.containers
    assert [bar.get_height() for bar in image] == [75, 0, 0]
    assert [bar.get_height() for bar in words] == [25, 100, 0]
    assert [bar.get_y() for bar in words] == [75, 0, 0]
    assert [entry.get_text() for entry in first.texts] == ["40%", "60%", "0%"]
    assert not second.texts, "there is no room for the shares of many experts"
    assert [axis.get_title() for axis in figure.axes] == ["block 1", "block 3"]
    assert first.get_ylabel() == "% of the expert's tokens"
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["image", "text"]
    found = made.rows(path)
    assert len(found) == 2 * (3 + 9)
    assert found[3] == {
        "layer": LAYERS[0],
        "expert": 1,
        "modality": "text",
        "tokens": 60,
        "share_of_expert": 1,
        "expert_share": pytest.approx(0.6),
    }


def test_layers_fill_a_grid_and_the_rest_of_it_is_empty(tmp_path):
    counts = {f"encoder_block_{i}_moe": np.ones((2, 2)) for i in range(5)}
    figure = figures.plot_expert_modality(counts, tmp_path / "x.png")
    assert [axis.axison for axis in figure.axes] == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "at least one MoE layer"),
        ({"a": np.ones((3, 3))}, r"counts of layer 'a' must have shape \[experts, 2\]"),
        ({"a": np.zeros((3, 2))}, "some above 0"),
        ({"a": [[1, -1]]}, "numbers of tokens"),
        ({"a": [[1, np.nan]]}, "numbers of tokens"),
    ],
)
def test_counts_that_are_none(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_expert_modality(counts, tmp_path / "x.png")


def test_more_modalities_than_colours(tmp_path):
    with pytest.raises(ValueError, match="one to 4 names"):
        figures.plot_expert_modality({"a": np.ones((2, 5))}, tmp_path / "x.png", list("abcde"))
