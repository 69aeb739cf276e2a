"""The quickstart does what its header and README say."""

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, data
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog


@pytest.mark.slow
def test_the_quickstart_learns_digits_with_all_its_experts(tmp_path):
    assert cli.main(["train", "--gin_file=runs/quickstart.gin", f"--workdir={tmp_path}"]) == 0
    last = MetricsLog(tmp_path / "metrics.jsonl").rows()[-1]
    assert last["split"] == "eval"
    assert last["accuracy"] >= 0.965
    classifier = keras.models.load_model(tmp_path / "model.keras")
    batches = data.make_dataset(data.load("digits").eval, 360, image_size=16, training=False)
    images = (next(batches.as_numpy_iterator())["image"] + 1) * 127.5
    records = analysis.routing_records(classifier, images)
    assert len(records) >= 2
    for record in records.values():
        assert record.num_experts >= 8
        assert np.min(record.expert_shares) > 0.02


@pytest.mark.slow
def test_a_quarter_of_limoes_quickstart_learns_which_caption_is_whose(tmp_path):
    # Its header says what the whole of it reaches.
    bindings = ("train.steps=200", "train.eval_every=None", "cosine.warmup_steps=50")
    words = [f"--gin_bindings={binding}" for binding in bindings]
    run = ["train", "--gin_file=runs/limoe/quickstart.gin", f"--workdir={tmp_path}", *words]
    assert cli.main(run) == 0
    last = MetricsLog(tmp_path / "metrics.jsonl").rows()[-1]
    assert last["split"] == "eval"
    assert last["zeroshot/digits"] >= 0.4  # chance 0.1
    for way in ("image_to_text", "text_to_image"):
        assert last[f"retrieval/{way}@1"] >= 0.04  # chance 0.001
    for modality in ("image", "text"):
        assert last[f"encoder_block_3_moe/{modality}_effective_experts"] >= 4
