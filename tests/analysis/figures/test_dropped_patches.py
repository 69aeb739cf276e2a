"""Dropped patches on images."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from keras_vmoe import analysis
from keras_vmoe.analysis import figures
from keras_vmoe.analysis.figures import canvas
from tests.analysis.figures import made

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype("float32")


def record(seed, layer="encoder_block_1_moe", images=3):
    """Two choices for a class token and 2x2 patches; a patch is dropped if it loses both."""
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.ones(4), (images, 5))
    expert = np.argsort(-gates, -1)[..., :2]
    return analysis.RoutingRecord(
        layer=layer,
        router="top_k",
        expert=expert,
        weight=np.take_along_axis(gates, expert, -1),
        kept=rng.random(expert.shape) < 0.4,
        slot=expert,
        gates=gates,
    )


RECORDS = {
    (capacity, order): record(2 * i + order)
    for i, capacity in enumerate((0.5, 1.0))
    for order in (True, False)
}


def test_dropped_patches_are_drawn_where_they_are(tmp_path):
    path = tmp_path / "dropped.png"
    figure = figures.plot_dropped_patches(IMAGES, RECORDS, path, shown=(2, 0), captions=("a", "b"))
    columns = [(1.0, False), (0.5, False), (1.0, True), (0.5, True)]
    assert len(figure.axes) == 2 * 5
    titles = [axis.get_title() for axis in figure.axes[1:5]]
    assert titles == ["vanilla\nC = 1", "vanilla\nC = 0.5", "BPR\nC = 1", "BPR\nC = 0.5"]
    for line, (index, caption) in enumerate(((2, "a"), (0, "b"))):
        axes = figure.axes[5 * line : 5 * line + 5]
        assert axes[0].get_xlabel() == caption
        for axis, key in zip(axes[1:], columns, strict=True):
            lost = ~RECORDS[key].kept[index, 1:].any(-1)
            corners = {
                (patch.get_x() + 0.5, patch.get_y() + 0.5, patch.get_width(), patch.get_height())
                for patch in axis.patches
            }
            assert corners == {(4.0 * (p % 2), 4.0 * (p // 2), 4, 4) for p in np.flatnonzero(lost)}
            assert {to_hex(patch.get_facecolor()) for patch in axis.patches} <= {
                canvas.DROPPED.lower()
            }
            assert axis.get_xlabel() == f"{lost.mean():.0%} dropped"
            shade = (IMAGES[index, ..., 0] + 1) / 2
            np.testing.assert_allclose(axis.images[0].get_array()[..., 0], shade, atol=1e-6)
    found = made.rows(path)
    assert len(found) == 4 * 2 * 4
    for row in found:
        key = (row["capacity_factor"], bool(row["batch_priority"]))
        patch = 1 + 2 * int(row["row"]) + int(row["column"])
        kept = RECORDS[key].kept[int(row["image"]), patch].any()
        assert row["dropped"] == (not kept)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ({}, {}, "at least one record"),
        (
            {(1.0, True): record(0), (0.5, True): record(0, "b")},
            {},
            "of one MoE layer. Received: b,",
        ),
        ({(0.5, True): record(0, images=2)}, {}, "of the 3 images. Received: 2 for C=0.5, BPR"),
        (RECORDS, {"captions": ["a"]}, "Received: 1 for 3"),
        (RECORDS, {"shown": ()}, "Received: 0 for 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, records, options, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_dropped_patches(IMAGES, records, tmp_path / "x.png", **options)
