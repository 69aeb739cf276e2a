"""README's Python runs, and its links lead somewhere."""

import re
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_first_example_is_a_model_that_trains_and_predicts():
    example = {}
    exec(compile(python_blocks()[0], str(README), "exec"), example)
    model = example["model"]
    assert isinstance(model, keras.Model)
    images = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    model(images, training=True)
    assert len(model.losses) > 0, "the example should show a sparse layer, which has losses"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    history = model.fit(images, np.arange(4), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert example["cheaper"].predict(images, verbose=0).shape == (4, 10)


def test_all_examples_run_in_turn():
    example = {}
    for block in python_blocks():
        exec(compile(block, str(README), "exec"), example)


def test_links_into_the_checkout_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing
