"""Runs of models that route whole images: their router is taught by super-classes."""

import keras
import numpy as np
import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import arguments

SIZES = ("patch_size=8", "num_layers=2", "num_moe_layers=1", "width=8", "mlp_dim=16", "num_heads=2")
TINY = (
    "train.model=@MobileVMoE",
    *(f"MobileVMoE.{size}" for size in SIZES),
    "MobileVMoE.num_experts=2",
    "MobileVMoE.superclasses=(0, 1, 0, 1, 0, 1, 0, 1, 0, 1)",
    # At k=1 such weights are 1, so the task alone would teach the router nothing.
    "MobileVMoE.renormalise_gates=True",
    "train.batch_size=32",
    "train.steps=12",
    "train.log_every=6",
    "train.eval_batch_size=128",
    "train.keep_best=False",
    "train.routing_images=2",
    "adamw.learning_rate=1e-2",
    "adamw.weight_decay=None",
    "train.augment=None",
)


def train(workdir, *bindings):
    assert cli.main(arguments(workdir, *bindings, tiny=TINY)) == 0
    model = keras.saving.load_model(workdir / "model.keras").model
    rows = MetricsLog(workdir / "metrics.jsonl").rows()
    return np.asarray(model.get_layer("router").kernel), rows


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return train(tmp_path_factory.mktemp("taught") / "run")


def test_the_weight_of_the_loss_is_heard(taught, tmp_path):
    kernel, rows = taught
    untaught, others = train(tmp_path / "run", "MobileVMoE.superclass_loss_weight=0.0")
    assert np.abs(kernel - untaught).max() > 0.01
    assert untaught.std() < 0.03  # as it was drawn
    assert rows[-1]["router_loss"] < others[-1]["router_loss"] - 1e-3


def test_rows_hold_what_was_measured(taught):
    _, rows = taught
    assert [(row["step"], row["split"]) for row in rows] == [
        (6, "train"),
        (12, "train"),
        (12, "eval"),
    ]
    for row in rows:
        assert 0 <= row["router_accuracy"] <= 1
        assert row["auxiliary_loss"] == pytest.approx(0.3 * row["router_loss"], rel=0.02)


def test_mixed_labels_teach_mixed_super_classes(tmp_path):
    _, rows = train(tmp_path / "run", "train.mix=@Mixup()", "train.steps=6")
    assert np.isfinite(rows[0]["router_loss"])


def test_evaluate_tells_of_the_router(taught, tmp_path, capsys):
    train(tmp_path / "run", "train.steps=6")
    row = MetricsLog(tmp_path / "run" / "metrics.jsonl").rows()[-1]
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert f"router   accuracy {row['router_accuracy']:.2%}, experts' shares" in out
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--sweep"]) == 1
    assert "routing of whole images has no capacity" in capsys.readouterr().err
