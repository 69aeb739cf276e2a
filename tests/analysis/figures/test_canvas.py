"""What all figures share."""

import numpy as np
import pytest

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.ordering import expert_order


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "one.png"
    figure = canvas.new_figure(1, 1)
    canvas.save(figure, path, [{"a": 1, "b": 0.1 + 0.2}, {"a": True, "b": float("nan")}])
    assert path.with_suffix(".csv").read_text() == "a,b\n1,0.3\n1,\n"
    before = path.read_bytes()

    def fails(file):
        file.write_bytes(b"half")
        raise OSError("full")

    figure.savefig = fails
    with pytest.raises(OSError, match="full"):
        canvas.save(figure, path, [{"a": 2}])
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.csv", "one.png"]


@pytest.mark.parametrize("name", ["x.csv", "x"])
def test_a_path_that_is_no_picture_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must end like a picture's file"):
        canvas.save(canvas.new_figure(1, 1), tmp_path / name, [{"a": 1}])


def test_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        canvas.save(canvas.new_figure(1, 1), tmp_path / "x.png", [])


def test_pyplot_knows_of_no_figure():
    from matplotlib import pyplot

    canvas.new_figure(1, 1)
    assert pyplot.get_fignums() == []


def test_many_layers_are_thinned_to_the_first_and_last_among_them():
    names = [str(i) for i in range(12)]
    assert canvas.spread(names, 4) == ["0", "4", "7", "11"]
    assert canvas.spread(names[:3], 4) == ["0", "1", "2"]
    assert canvas.spread(names, 1) == ["11"]


@pytest.mark.parametrize(
    ("tokens", "shape", "wanted"),
    [
        (16, (1, 1), (0, 4, 4)),
        (17, (28, 28), (1, 4, 4)),
        (1, (1, 1), (0, 1, 1)),
        (18, (32, 64), (0, 3, 6)),
        (33, (64, 32), (1, 8, 4)),
    ],
)
def test_patches_lie_in_a_grid(tokens, shape, wanted):
    assert canvas.patch_grid(tokens, *shape) == wanted


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match="tokens=62"):
        canvas.patch_grid(62)


def test_experts_stand_by_their_favourite_row():
    rng = np.random.default_rng(0)
    for seed in range(20):
        values = rng.uniform(size=(4, 7))
        order = expert_order(values)
        assert sorted(order) == list(range(7))
        keys = [(values[:, e].argmax(), -values[:, e].max(), e) for e in order]
        assert keys == sorted(keys), seed
        # The numbers that experts happen to have do not change the picture.
        shuffled = rng.permutation(7)
        again = values[:, shuffled][:, expert_order(values[:, shuffled])]
        np.testing.assert_array_equal(again, values[:, order])


def test_equal_experts_and_empty_rows_have_an_order_too():
    values = np.array([[np.nan] * 3, [0.0, 0.5, 0.5], [0.0, 0.1, 0.5]])
    assert expert_order(values).tolist() == [0, 1, 2]
