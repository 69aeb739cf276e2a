"""Names of datasets of pairs."""

import pytest

from keras_vmoe import data


def test_splits_can_be_chosen():
    source = data.load_pairs("digit_grids", eval_split="train")
    assert source.eval is source.train
    with pytest.raises(ValueError, match="eval_split='val' is not a split of 'digit_grids'"):
        data.load_pairs("digit_grids", eval_split="val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "name='': expected the name of a dataset"),
        ({"name": None}, "name=None"),
        ({"name": "caption_folder:"}, "'caption_folder:' lacks the folder"),
        ({"name": "labelled:"}, "'labelled:' lacks the name"),
        ({"name": "digit_grids", "templates": ["{}"]}, "'digit_grids' has captions of its own"),
        ({"name": "digit_grids", "caption_field": "text"}, "caption_field='text': .*TensorFlow"),
        ({"name": "digit_grids", "data_dir": "d"}, "data_dir='d': dataset 'digit_grids' does not"),
        ({"name": "caption_folder:a", "data_dir": "d"}, "data_dir='d': .*is in its name"),
        ({"name": "garment_grids", "max_corrupt": 7}, "max_corrupt=7: .*composed in memory"),
        ({"name": "labelled:digits", "image_field": "x"}, "image_field='x': .*TensorFlow"),
    ],
)
def test_arguments_that_go_with_no_dataset(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load_pairs(**arguments)


def test_the_names_are_listed():
    assert data.list_pairs()[:2] == ("digit_grids", "garment_grids")
