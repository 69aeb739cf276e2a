"""The routing picture."""

import numpy as np
import pytest
from matplotlib import image as image_file

from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures import routing
from keras_vmoe.analysis.records import RoutingRecord


def record(images=3, tokens=16, experts=8, k=1, seed=0):
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.ones(experts), (images, tokens))
    expert = np.argsort(-gates, axis=-1)[..., :k]
    return RoutingRecord(
        layer="block",
        router="top_k",
        expert=expert,
        slot=np.zeros_like(expert),
        weight=np.take_along_axis(gates, expert, -1),
        kept=rng.random((images, tokens, k)) > 0.2,
        gates=gates,
    )


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "channels"), [(16, 8, 1, 1), (17, 12, 2, 3), (400, 64, 1, 3)]
)
def test_it_is_drawn(tmp_path, tokens, experts, k, channels):
    images = np.zeros((3, 20, 20, channels), "float32")
    records = {f"block_{i}": record(3, tokens, experts, k) for i in range(2)}
    figures.plot_routing(images, records, tmp_path / "routing.png", max_images=2)
    pixels = image_file.imread(tmp_path / "routing.png")
    assert min(pixels.shape[:2]) > 200
    assert pixels[..., :3].std() > 0.05


@pytest.mark.parametrize(("tokens", "what"), [(1, "image"), (16, "patch")])
def test_what_is_routed_is_called_so(tmp_path, monkeypatch, tokens, what):
    drawn = []
    new = routing.canvas.new_figure
    monkeypatch.setattr(
        routing.canvas, "new_figure", lambda *size: drawn.append(new(*size)) or drawn[-1]
    )
    images = np.zeros((3, 8, 8, 1))
    figures.plot_routing(images, {"moe": record(tokens=tokens, experts=12)}, tmp_path / "r.png")
    assert drawn[0].get_suptitle() == f"The expert that each {what} went to"
    key = drawn[0].axes[6].get_legend()
    words = [text.get_text() for text in key.get_texts()]
    assert words == ["expert (number)"] + ["dropped"] * (tokens > 1)
    assert key.get_patches()[0].get_facecolor() == tuple(routing._colours(12)[6])
    assert drawn[0].axes[7].get_title().startswith("dropped") == (tokens > 1)


def test_it_leaves_pyplot_alone(tmp_path):
    from matplotlib import pyplot

    figures.plot_routing(np.zeros((3, 8, 8, 1)), {"a": record()}, tmp_path / "routing.png")
    assert pyplot.get_fignums() == []


def test_the_winner_is_the_heaviest_kept_choice():
    one = record(images=1, tokens=4, experts=4, k=2)
    one.expert[0] = [[0, 1], [2, 3], [1, 0], [3, 2]]
    one.weight[0] = [[0.9, 0.1], [0.6, 0.4], [0.5, 0.3], [0.7, 0.2]]
    one.kept[0] = [[True, True], [False, True], [False, False], [True, False]]
    expert, kept = routing._winners(one, 0)
    assert expert[0].tolist() == [0, 3]
    assert expert[1, 1] == 3
    assert kept.tolist() == [[True, True], [False, True]]


def test_a_class_token_has_no_place_in_the_picture():
    one = record(images=1, tokens=5, experts=4)
    one.kept[:] = True
    expert, _ = routing._winners(one, 0)
    np.testing.assert_array_equal(expert.ravel(), one.expert[0, 1:, 0])


def test_wrong_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no MoE layer"):
        figures.plot_routing(np.zeros((3, 8, 8, 1)), {}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="of 3 images, but images has 2"):
        figures.plot_routing(np.zeros((2, 8, 8, 1)), {"a": record()}, tmp_path / "x.png")
