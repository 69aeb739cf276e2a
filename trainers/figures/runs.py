"""What the folder of a finished run says of its quality and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_vmoe import analysis, models
from keras_vmoe.trainers import gin_config
from keras_vmoe.trainers.metrics_log import MetricsLog

FEW_SHOT = "fewshot/"
# A backward pass costs two forward passes.
_PASSES_OF_A_STEP = 3


def summarise(folder: Path, model: keras.Model) -> analysis.RunSummary:
    """Reads what a run reached and what it cost, up to its last evaluation.

    Args:
        folder: the run's workdir.
        model: its model, from images in [-1, 1] to logits.

    Returns:
        The summary. FLOPs are those of forward and backward passes; the time is that of the
        training steps as they were logged.

    Raises:
        ValueError: a folder whose log holds no evaluation, or no speed of training.
    """
    rows = MetricsLog(folder / "metrics.jsonl").rows()
    evaluations = [row for row in rows if row["split"] == "eval"]
    if not evaluations:
        raise ValueError(
            f"--runs={folder}: metrics.jsonl holds no evaluation; train it to the end first"
        )
    last = evaluations[-1]
    bindings = gin_config.bindings((folder / "config.gin").read_text(encoding="utf-8"))
    batch_size = int(bindings["train.batch_size"])
    images = last["step"] * batch_size
    flops = analysis.profile(model, training=True).flops
    return analysis.RunSummary(
        name=folder.absolute().name,
        sparse=models.is_sparse(model),
        accuracy=last["accuracy"],
        train_flops=float(_PASSES_OF_A_STEP * flops * images),
        train_seconds=_seconds(folder, rows, last["step"], batch_size),
        seed=int(bindings.get("train.seed", 0)),
        params=model.count_params(),
        few_shot=_few_shot(rows),
        arguments={**_arguments(model), "steps": last["step"]},
    )


def _seconds(folder: Path, rows: list[dict[str, Any]], until: int, batch_size: int) -> float:
    """Time of the training steps, each row's speed taken for the steps since the one before."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["split"] != "train" or row["step"] > until:
            continue
        speed = row.get("images_per_second")
        if not speed:
            raise ValueError(
                f"--runs={folder}: metrics.jsonl has no images_per_second at step {row['step']}"
            )
        seconds += (row["step"] - before) * batch_size / speed
        before = row["step"]
    if not before:
        raise ValueError(f"--runs={folder}: metrics.jsonl holds no row of training")
    return seconds


def _few_shot(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last few-shot accuracies that were logged."""
    found: dict[str, float] = {}
    for row in rows:
        numbers = {n: v for n, v in row.items() if n.startswith(FEW_SHOT) and v is not None}
        found.update(numbers)
    return found


def _arguments(model: keras.Model) -> dict[str, Any]:
    """The model's arguments as plain values, and what its routers make of their defaults."""
    plain = (str, int, float, bool, tuple, type(None))
    arguments = {n: v for n, v in getattr(model, "arguments", {}).items() if isinstance(v, plain)}
    moe = models.moe_layers(model)
    if moe:
        router = moe[0].router
        arguments["num_experts"] = router.num_experts
        arguments["sparse_blocks"] = len(moe)
        arguments.setdefault("placement", f"{len(moe)} layers")
        for name in ("num_selected", "renormalise_gates", "capacity_factor"):
            # A model has arguments that its kind of router does not know.
            arguments.pop(name, None)
            if hasattr(router, name):
                arguments[name] = getattr(router, name)
    return arguments
