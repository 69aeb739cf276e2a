"""A saved model loads in a process that imported nothing but the package."""

import subprocess
import sys

import numpy as np
import pytest

from keras_vmoe import models
from tests.models import tiny


@pytest.mark.parametrize(
    "order",
    [
        "import keras, keras_vmoe",
        pytest.param("import keras_vmoe, keras", marks=pytest.mark.slow),
    ],
)
def test_the_package_alone_is_enough(order, tmp_path):
    classifier = models.Classifier(tiny.vmoe(num_classes=2), ["cat", "dog"])
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), "uint8")
    classifier.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    script = (
        f"{order}\nimport numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "print(model.class_names)\n"
        "np.save('logits.npy', model.predict(np.load('images.npy'), verbose=0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "['cat', 'dog']" in done.stdout
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"), classifier.predict(images, verbose=0), atol=1e-6
    )
