"""Raw images and texts: what is refused."""

import numpy as np
import pytest

from keras_vmoe import models, text
from tests.models import tiny


@pytest.fixture(scope="module")
def model():
    words = text.train_tokenizer(["a cat", "a dog"], 40, length=tiny.TEXT_LENGTH)
    limoe = tiny.limoe(vocabulary_size=words.vocabulary_size)
    return models.ImageTextModel(limoe, words.model)


IMAGES = np.zeros((1, 8, 8, 3), "uint8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.encode_image(IMAGES[:0]), r"at least one image.*\(0, 8, 8, 3\)"),
        (lambda model: model.encode_image(IMAGES, batch_size=0), "batch_size=0"),
        (lambda model: model.encode_text([]), r"at least one text. Received: texts=\[\]"),
        (lambda model: model.encode_text(["a cat"], batch_size=0), "batch_size=0"),
    ],
)
def test_nothing_to_embed_is_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)
