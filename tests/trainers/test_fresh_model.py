"""The model of a run's config, of the kind that its data wants."""

import pytest

from keras_vmoe import models
from keras_vmoe.trainers.fresh_model import fresh_model
from tests.models import tiny

WORDS = ("'set' holds pairs", "@LIMoE")


def test_a_model_of_the_kind_is_given_back():
    vit = tiny.vit()
    given = {}
    assert fresh_model(lambda **own: given.update(own) or vit, models.ViT, *WORDS, a=1) is vit
    assert given == {"a": 1}


@pytest.mark.parametrize("make", [lambda **_: tiny.vit(), models.ViT])
def test_another_kind_is_refused_whatever_it_takes(make):
    with pytest.raises(ValueError, match="^train.model makes a ViT, but 'set' holds pairs: take @"):
        fresh_model(make, models.LIMoE, *WORDS, eos_id=1)


def test_an_argument_that_the_kind_lacks_is_named():
    with pytest.raises(ValueError, match="^LIMoE has no argument 'eos'. .*mean 'eos_id'"):
        fresh_model(models.LIMoE, models.PairModel, *WORDS, eos=1)
