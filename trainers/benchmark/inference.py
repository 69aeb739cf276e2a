"""Images a second of a V-MoE at inference, against the capacity of its experts."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_vmoe import analysis, layers, models
from keras_vmoe.ops.validation import require
from keras_vmoe.trainers.benchmark import child, graphs, inference_command
from keras_vmoe.trainers.benchmark import model as model_of
from keras_vmoe.trainers.benchmark.settings import (
    FORWARD,
    TRAIN,
    InferenceSettings,
    ModelSettings,
)
from keras_vmoe.trainers.benchmark.timing import Candidate, Samples, interleave
from keras_vmoe.trainers.work_progress import WorkProgress

_REFERENCE = 1.0  # the capacity factor that the layers' times are held against
# Importing TensorFlow, and building the model and its graphs, in images.
_WORK_OF_START = 32.0


def check_model(settings: InferenceSettings) -> None:
    """Finds out before anything is measured whether the model can be built; builds nothing.

    Args:
        settings: the table's.

    Raises:
        ValueError: no preset of `VMoE`, an argument that it does not have or refuses, another
            router than top-k.
    """
    require(
        settings.model in models.list_variants("vmoe"),
        "--model must name a preset of VMoE, such as vmoe_s32 or vmoe_b16. "
        f"Received: {settings.model}",
    )
    router = settings.overrides.get("router", "top_k")
    require(
        router == "top_k",
        "benchmark inference changes the capacity of routers that choose the top k. "
        f"Received: router={router!r}; leave it out",
    )
    analysis.profile(settings.model, **_arguments(settings))


def _arguments(settings: InferenceSettings) -> dict[str, Any]:
    own = {"batch_priority": True, "dtype": "float32", **settings.overrides}
    return {**own, "num_experts": settings.experts, "image_size": settings.image_size}


def build_models(settings: InferenceSettings) -> tuple[keras.Model, keras.Model]:
    """Builds the sparse model and its dense twin: the same ViT without experts.

    Args:
        settings: the table's.
    """
    keras.utils.set_random_seed(settings.seed)
    sparse = models.from_variant(settings.model, **_arguments(settings))
    return sparse, model_of.dense_twin(sparse)


def factors(model: keras.Model, capacities: Sequence[float | str]) -> list[float]:
    """Returns capacity factors as numbers, each once.

    Args:
        model: whose capacity in training `"train"` means.
        capacities: of the settings.

    Example:
        >>> model = models.from_variant("vmoe_ti16", image_size=32, num_layers=2, num_experts=2)
        >>> factors(model, (0.5, "train", 1.05))
        [0.5, 1.05]
    """
    trained = models.moe_layers(model)[0].router.capacity_factor
    return list(dict.fromkeys(trained if c == TRAIN else float(c) for c in capacities))


def layers_alone(
    moes: Sequence[layers.MoEMLP], tokens: tf.Tensor, capacity_factor: float
) -> Candidate:
    """Returns a candidate that runs MoE layers one after the other, each on the same tokens.

    Args:
        moes: the layers.
        tokens: `[b, t, d]`.
        capacity_factor: C.
    """

    def call(x: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        outputs: list[tf.Tensor] = []
        for moe in moes:
            # Side by side they would share the threads in another way than within a model.
            with tf.control_dependencies(outputs[-1:]), layers.routing_metrics(False):
                outputs.append(moe(tf.identity(x), capacity_factor=capacity_factor))
        return tf.add_n(outputs), []

    return graphs.forward(call, tokens)


def measure_batch(
    sparse: keras.Model,
    dense: keras.Model,
    batch: int,
    settings: InferenceSettings,
    on_round: Callable[[float], None] = lambda share: None,
) -> Iterator[dict[str, Any]]:
    """Measures one batch size: the model and its MoE layers at each capacity, and the dense twin.

    The layers alone get standard normal tokens, which load experts about evenly, as in a trained
    model; the model gets images of strong contrast to the same end.

    Args:
        sparse: the model.
        dense: its twin.
        batch: images.
        settings: the table's.
        on_round: called with the share of rounds that is done.

    Yields:
        A row of the table for each capacity.
    """
    common = ModelSettings(
        image_size=settings.image_size,
        batch_size=batch,
        routing_metrics=False,
        seed=settings.seed,
    )
    every = factors(sparse, settings.capacities)
    routed = {c: models.with_routing(sparse, capacity_factor=c) for c in every}
    calls = {c: model_of.record(model, common) for c, model in routed.items()}
    shape = (batch, int(calls[every[0]][0].tokens_per_image), sparse.arguments["width"])
    tokens = tf.random.stateless_normal(shape, [settings.seed, 1])
    moes = models.moe_layers(sparse)
    found = {
        **{f"model {c}": model_of.make_step(m, FORWARD, common) for c, m in routed.items()},
        **{f"moe {c}": layers_alone(moes, tokens, c) for c in {*every, _REFERENCE}},
        "dense": model_of.make_step(dense, FORWARD, common),
    }
    samples = interleave(found, settings.rounds, settings.warmup, on_round=on_round)
    for factor in every:
        yield {
            "batch": batch,
            "capacity_factor": factor,
            "slots": int(calls[factor][0].capacity),
            "kept_share": model_of.kept_share(calls[factor]),
            **_compare(samples, factor, batch),
        }


def _compare(samples: Mapping[str, Samples], factor: float, batch: int) -> dict[str, Any]:
    model, moe, dense = (samples[name] for name in (f"model {factor}", f"moe {factor}", "dense"))
    times = {"model": model, "moe": moe, "dense": dense}
    found = {name: taken.milliseconds() for name, taken in times.items()}
    return {
        **found,
        "images_per_second": 1e3 * batch / found["model"]["wall_ms"],
        "cpu_ms_per_image": found["model"]["cpu_ms"] / batch,
        "dense_images_per_second": 1e3 * batch / found["dense"]["wall_ms"],
        "relative": moe.over(samples[f"moe {_REFERENCE}"])._asdict(),
        "ratio": model.over(dense)._asdict(),
    }


def main(words: Sequence[str]) -> int:
    """Runs in the process that `measure_inference` starts: measures at one number of threads.

    Args:
        words: one word, the JSON text of what to measure.
    """
    asked = json.loads(words[0])
    child.use_threads(asked["threads"])
    settings = InferenceSettings(**asked["settings"])
    sparse, dense = build_models(settings)
    for batch in settings.batches:
        child.tell(batch=batch)
        rows = measure_batch(sparse, dense, batch, settings, lambda share: child.tell(share=share))
        for row in rows:
            child.tell(row={"threads": asked["threads"], **row})
        gc.collect()  # the graphs of this batch, before those of the next
    return 0


def total_work(settings: InferenceSettings) -> float:
    """Returns the work of the whole table, for the progress line."""
    return sum(_WORK_OF_START + sum(settings.batches) / threads for threads in settings.threads)


def measure_inference(
    settings: InferenceSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Measures the table, each number of threads in a process of its own.

    TensorFlow's threads are fixed when it first computes, so this process cannot change its own.

    Args:
        settings: the table's.
        progress: is told of each piece of work.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows.

    Raises:
        RuntimeError: a process failed; the message holds its last line.
    """
    rows = []
    for threads in settings.threads:
        progress.begin(f"{threads} threads, start", _WORK_OF_START)
        asked = {"threads": threads, "settings": dataclasses.asdict(settings)}
        for told in child.messages(
            inference_command.CHILD, asked, f"inference on {threads} threads"
        ):
            if "batch" in told:
                batch = told["batch"]
                progress.begin(f"{threads} threads, batch {batch}", batch / threads)
            elif "share" in told:
                progress.advance(told["share"])
            elif "row" in told:
                rows.append(told["row"])
                on_row(rows[-1])
    return rows
