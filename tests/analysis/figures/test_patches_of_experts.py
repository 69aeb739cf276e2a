"""The patches of each expert."""

import numpy as np
import pytest

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from tests.analysis.figures import made

LAYER = "encoder_block_1_moe"
# Each pixel of an image is of another value.
IMAGES = np.linspace(-1, 1, 2 * 6 * 8).reshape(2, 6, 8, 1)


def record(**overrides):
    """A token in front of 3x4 patches of two pixels; expert 2 takes none of its choices."""
    expert = np.zeros((2, 13, 1), int)
    expert[:, 9:] = 1
    expert[1, 12] = 2
    kept = expert < 2
    kept[0, 3] = False
    weight = 0.3 + np.arange(26).reshape(2, 13, 1) / 100
    weight[0, 12] = 0.99
    fields = {
        "layer": LAYER,
        "router": "top_k",
        "expert": expert,
        "weight": weight,
        "kept": kept,
        "slot": expert,
        "gates": np.full((2, 13, 3), 1 / 3),
    }
    return analysis.RoutingRecord(**{**fields, **overrides})


def test_the_surest_patches_one_image_after_the_other(tmp_path):
    path = tmp_path / "patches.png"
    figures.plot_patches_of_experts(IMAGES, record(), path, side=3)
    found = [
        (row["expert"], row["place"], row["image"], 4 * row["row"] + row["column"])
        for row in made.rows(path)
    ]
    # Patch i is token i + 1. Of expert 0 these are 0 to 7, but patch 2 of image 0 was dropped.
    first = [(0, p, 1 - p % 2, 7 - p // 2) for p in range(9)]
    # Image 0 has the largest gate of expert 1, its patch 11; that of image 1 went to expert 2.
    second = [(0, 11), (1, 10), (1, 9), (0, 10), (0, 9), (1, 8), (0, 8)]
    by_rank = [second[0], second[1], *second[2:4], (1, 8), (0, 9), (0, 8)]
    assert found == first + [(1, p, *place) for p, place in enumerate(by_rank)]
    assert made.rows(path)[9]["gate"] == pytest.approx(0.99)


def test_a_sheet_shows_the_pixels_and_frames_the_patch(tmp_path):
    figure = figures.plot_patches_of_experts(IMAGES, record(), tmp_path / "x.png", side=2)
    first, second, third = figure.axes[:3]
    assert first.get_title() == f"expert 0: {15 / 22:.1%}"
    assert third.get_title() == "expert 2: none"
    assert not third.patches
    sheet = second.images[0].get_array()[..., 0]
    whole = (IMAGES[0, ..., 0] + 1) / 2
    # 3x3 patches of an image that is three patches high: the last ones, and the patch at the end.
    np.testing.assert_allclose(sheet[:6, :6], whole[:, 2:], atol=1e-6)
    frame = second.patches[0]
    assert (frame.get_x(), frame.get_y()) == (3.5, 3.5)
    assert (frame.get_width(), frame.get_height()) == (2, 2)
    alone = figures.plot_patches_of_experts(IMAGES, record(), tmp_path / "y.png", 2, context=0)
    assert not alone.axes[1].patches
    sheet = alone.axes[1].images[0].get_array()[..., 0]
    np.testing.assert_allclose(sheet[:2, :2], whole[4:, 6:], atol=1e-6)


def test_shares_are_those_of_the_patches_alone(tmp_path):
    kept = np.zeros((2, 13, 1), bool)
    kept[:, 0] = True  # in front of the patches
    kept[0, [1, 2, 9]] = True
    figure = figures.plot_patches_of_experts(IMAGES, record(kept=kept), tmp_path / "x.png")
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["expert 0: 66.7%", "expert 1: 33.3%", "expert 2: none"]


MODALITIES = {"modality": np.array([[0] * 12 + [1]] * 2), "modalities": ("image", "text")}


@pytest.mark.parametrize(
    ("images", "given", "options", "message"),
    [
        (IMAGES[:1], record(), {}, "of the 1 images. Received: one of 2"),
        (IMAGES, record(**MODALITIES), {}, r"take record.of_modality\('image'\)"),
        (IMAGES, record(**MODALITIES).of_modality("text"), {}, "draw them with plot_tokens"),
        (IMAGES, record(kept=np.zeros((2, 13, 1), bool)), {}, "Received: none"),
        (IMAGES, record(), {"side": 0}, "side must be an integer"),
        (IMAGES, record(), {"context": -1}, "context must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, images, given, options, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_patches_of_experts(images, given, tmp_path / "x.png", **options)


def test_pictures_of_patches_refuse_texts(tmp_path):
    with pytest.raises(ValueError, match=r"take record.of_modality\('image'\)"):
        figures.plot_routing(IMAGES, {"a": record(**MODALITIES)}, tmp_path / "x.png")
    both = {(1.0, True): record(**MODALITIES)}
    with pytest.raises(ValueError, match=r"take record.of_modality\('image'\)"):
        figures.plot_dropped_patches(IMAGES, both, tmp_path / "x.png")
