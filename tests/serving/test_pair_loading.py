"""Loading exported models of image-text pairs: what is none is said."""

import json

import numpy as np
import pytest

from keras_vmoe import models, serving
from keras_vmoe.serving.loading import holds_pairs
from tests.models import tiny
from tests.serving.test_pair_exporting import pair_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading") / "served"
    model = pair_model(models.TwoTower)
    serving.export_pairs(model, path, verify=False)
    return path


@pytest.fixture
def facts_file(served):
    file = served / "assets.extra" / "keras_vmoe_pairs.json"
    content = file.read_text()
    yield file
    file.write_text(content)


def test_what_is_no_model_of_pairs_is_named(served, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        serving.load_pairs(tmp_path / "served")
    with pytest.raises(ValueError, match="a folder that keras_vmoe.serving.export_pairs wrote"):
        serving.load_pairs(tmp_path)
    serving.export(tiny.vit(num_layers=1), tmp_path / "images", verify=False)
    with pytest.raises(ValueError, match=r"export_pairs wrote\. Received.*images"):
        serving.load_pairs(tmp_path / "images")
    assert holds_pairs(served)
    assert not holds_pairs(tmp_path / "images")
    with pytest.raises(ValueError, match=r"serving\.load_pairs.*keras-vmoe zeroshot"):
        serving.load(served)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "metadata must be an object"),
        ({"imports": "os"}, "imports must be a list of strings. Received: imports='os'"),
        ({"image": {"format": "onnx"}}, "must have the fields input_name"),
        ("[]", r"the fields image, text\. Received: '\[\]'"),
        ("{", "Expecting property name"),
    ],
)
def test_altered_metadata_is_named(served, facts_file, change, message):
    if isinstance(change, dict):
        change = json.dumps({**json.loads(facts_file.read_text()), **change})
    facts_file.write_text(change)
    with pytest.raises(ValueError, match=f"keras_vmoe_pairs.json cannot be read: .*{message}"):
        serving.load_pairs(served)


def test_inputs_that_it_does_not_take(served):
    exported = serving.load_pairs(served)
    with pytest.raises(ValueError, match=r"shape \(1, None, None, 3\).*\(2, 8, 8, 3\)"):
        exported.encode_image(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"a list of strings.*write \['a cat'\]"):
        exported.encode_text("a cat")
    with pytest.raises(ValueError, match=r"must not be empty. Received: texts\[1\] without"):
        exported.encode_text(["a cat", " "])
