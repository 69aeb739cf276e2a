"""Scenes of scans with boxes: what is in them, and training never shows what is held out."""

import numpy as np
import pytest

from keras_vmoe import data
from keras_vmoe.data import box_registry, box_scenes, idx


@pytest.fixture(scope="module")
def source():
    return box_scenes.compose(data.load("digits"), "few", num_train=60, num_validation=20)


def pixels(rows):
    return np.round(rows[:, :4] * box_scenes.SIDE).astype(int)


def test_every_scene_has_an_object_of_each_scale(source):
    most = [high for _, high in box_scenes.SCALES]
    for split in source.splits.values():
        for rows in data.read_boxes(split):
            boxes = pixels(rows)
            assert 3 <= len(boxes) <= box_scenes.MAX_OBJECTS
            longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
            scales = np.searchsorted(most, longer)
            assert set(scales) == {0, 1, 2}


def test_a_box_is_drawn_around_its_ink_and_boxes_do_not_overlap(source):
    split = source.train
    for image, rows in zip(split.images[..., 0], data.read_boxes(split), strict=True):
        covered = np.zeros_like(image, int)
        for top, left, bottom, right in pixels(rows):
            ink = image[top:bottom, left:right] >= 32
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert not image[covered == 0].any()


def test_held_out_scans_are_never_trained_on(monkeypatch):
    scans, drawn = data.load("digits"), {}

    def draw(random, labels, wanted):
        drawn.setdefault(len(labels), set()).update(wanted.tolist())
        return np.zeros(len(wanted), int)

    monkeypatch.setattr(box_scenes, "draw_scans", draw)
    box_scenes.compose(scans, "few", num_train=3, num_validation=3)
    assert set(drawn) == {scans.train.num_examples, scans.eval.num_examples}


def test_scenes_are_the_same_each_time(source):
    again = box_scenes.compose(data.load("digits"), "few", num_train=60, num_validation=20)
    for name, split in source.splits.items():
        np.testing.assert_array_equal(split.images, again.splits[name].images)
        assert list(split.labels) == list(again.splits[name].labels)
    # Golden: the first scene.
    rows = next(data.read_boxes(source.train))
    assert rows[:, 4].tolist() == [5, 0, 3]
    np.testing.assert_array_equal(pixels(rows)[0], [36, 12, 74, 39])


def test_garments_come_from_the_folder_that_is_named(tmp_path, monkeypatch):
    asked, digits = [], data.load("digits")
    monkeypatch.setattr(idx, "load_idx_folder", lambda folder: asked.append(folder) or digits)
    for name in ("NUM_TRAIN", "NUM_VALIDATION"):
        monkeypatch.setattr(box_scenes, name, 2)
    source = data.load_boxes("garment_scenes", data_dir=str(tmp_path), max_boxes=9)
    assert (source.name, source.max_boxes, source.num_classes) == ("garment_scenes", 9, 10)
    assert asked == [tmp_path]
    with pytest.raises(FileNotFoundError, match="garment_scenes"):
        data.load_boxes("garment_scenes", data_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name=''"),
        ({"name": "digit_scenes", "data_dir": "x"}, "data_dir='x'"),
        ({"name": "digit_scenes", "max_corrupt": 1}, "max_corrupt=1"),
        ({"name": "garment_scenes", "objects_field": "x"}, "objects_field='x'"),
    ],
)
def test_arguments_of_other_datasets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load_boxes(**options)


def test_known_names():
    assert box_registry.list_boxes() == ("digit_scenes", "garment_scenes")
