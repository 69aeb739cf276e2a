"""V-MoE S/32 and its dense twin beside a plain Keras ViT: forward and training step."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_vmoe import layers, models
from keras_vmoe.layers.effects import RoutingCall
from keras_vmoe.trainers import optimizers
from keras_vmoe.trainers.benchmark import graphs, memory
from keras_vmoe.trainers.benchmark.plain_vit import plain_vit
from keras_vmoe.trainers.benchmark.settings import FORWARD, TRAIN, ModelSettings, Row
from keras_vmoe.trainers.benchmark.timing import Candidate, interleave
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.work_progress import WorkProgress

PLAIN = Row("plain_vit")
PASSES = (FORWARD, TRAIN)
_WORK = {FORWARD: 1.0, TRAIN: 4.0}
# A process of its own imports TensorFlow and takes a few steps, beside 2 x rounds measured here.
_WORK_OF_MEMORY = 1.0
# Blocks that are not trained add much the same to every token. With images in [-1, 1] most tokens
# would therefore choose the same experts, half of them would be dropped, and dropped tokens take
# no time. Of patches that differ by far more than what the blocks add, about as many are kept as
# in a trained model; the table shows the share.
_CONTRAST = 30.0
_DENSE, _SPARSE = "vit_vmoe_s32", "vmoe_s32"
_SHARED_WITH_PLAIN = (
    "patch_size",
    "num_layers",
    "width",
    "mlp_dim",
    "num_heads",
    "num_classes",
    "representation_size",
)


def build_model(row: Row, settings: ModelSettings) -> keras.Model:
    """Builds the model of a row, or the plain ViT.

    Args:
        row: the row, or `PLAIN`.
        settings: the table's.

    Raises:
        ValueError: an override that the models do not have.
    """
    arguments = {
        "image_size": settings.image_size,
        "num_classes": 1000,
        "representation_size": 512,
        # As Keras has it: the models' own zeros would make zero gradients of all others.
        "head_kernel_initializer": "glorot_uniform",
        "dtype": "float32",
        **settings.overrides,
    }
    if row.placement is not None:
        routing = {
            "num_selected": 1,
            "capacity_factor": 1.05,
            "batch_priority": True,
            "images_per_group": 8,
            "dispatch": settings.dispatch,
        }
        sparse = {"placement": row.placement, "num_experts": row.num_experts}
        return models.from_variant(_SPARSE, **{**routing, **arguments, **sparse})
    # What only a sparse model has is no error on its dense twin; what none has is one.
    known = set(inspect.signature(models.ViT).parameters)
    only_sparse = set(inspect.signature(models.VMoE).parameters) - known
    arguments = {name: value for name, value in arguments.items() if name not in only_sparse}
    if row == PLAIN:
        shape = models.variants.variant_arguments(_DENSE, models.ViT, arguments)
        shared = {name: shape[name] for name in _SHARED_WITH_PLAIN}
        return plain_vit(settings.image_size, settings.batch_size, **shared)
    return models.from_variant(_DENSE, **arguments)


def dense_twin(sparse: models.VMoE) -> models.ViT:
    """Returns the same ViT without experts, its weights drawn anew.

    Args:
        sparse: the model.
    """
    known = inspect.signature(models.ViT).parameters
    shared = {name: value for name, value in sparse.arguments.items() if name in known}
    return models.ViT(**shared)


def check_rows(settings: ModelSettings, flag: str = "rows") -> None:
    """Finds out before anything is measured whether all rows can be built.

    Args:
        settings: the table's.
        flag: that named the rows, for messages.

    Raises:
        UsageError: a placement that needs more blocks than there are.
        ValueError: an override that the models do not have.
    """
    shape = models.variants.variant_arguments(_SPARSE, models.VMoE, dict(settings.overrides))
    for row in settings.rows:
        if row.placement is None:
            continue
        try:
            models.placement.moe_blocks(row.placement, shape["num_layers"])
        except ValueError as error:
            raise UsageError(f"--{flag}: {row.name!r}: {error}") from None


def batch(settings: ModelSettings, num_classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns random images `[b, size, size, 3]` of strong contrast, and one-hot labels."""
    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    images = _CONTRAST * tf.random.stateless_uniform(shape, [settings.seed, 1], -1.0, 1.0)
    labels = tf.random.stateless_uniform(
        shape[:1], [settings.seed, 2], 0, num_classes, dtype=tf.int32
    )
    return images, tf.one_hot(labels, num_classes)


def make_step(model: keras.Model, mode: str, settings: ModelSettings) -> Candidate:
    """Returns a step of a model as a graph.

    A training step is cross entropy and the model's own losses, gradients, and Adam on gradients
    clipped by their global norm: the trainer's for the package's models, Keras' for the plain ViT.
    Its learning rate is 0: the same work, but the weights stay, so that the tokens' routes are
    those of the first step in every round.

    Args:
        model: from images to logits.
        mode: `"forward"` or `"train"`.
        settings: the table's.
    """
    images, labels = batch(settings, model.output_shape[-1])

    @tf.function(autograph=False)
    def forward(images: tf.Tensor) -> tf.Tensor:
        with layers.routing_metrics(settings.routing_metrics):
            return model(images, training=False)

    if mode == FORWARD:
        return graphs.trace(forward, images)
    variables = model.trainable_variables
    own = isinstance(model, models.FunctionalModel)
    adam = optimizers.AdamW if own else keras.optimizers.Adam
    optimizer = adam(0.0, global_clipnorm=1.0)
    optimizer.build(variables)

    @tf.function(autograph=False)
    def train(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, layers.routing_metrics(settings.routing_metrics):
            outputs = model(images, training=True)
            logits, router_loss = models.logits_and_router_loss(model, outputs, labels)
            losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.add_n([tf.reduce_mean(losses), router_loss, *model.losses])
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    return graphs.trace(train, images, labels)


def record(model: keras.Model, settings: ModelSettings) -> list[RoutingCall]:
    """Returns how the MoE layers of a model route the batch at inference.

    Args:
        model: any model.
        settings: the table's.
    """
    images, _ = batch(settings, model.output_shape[-1])
    with layers.record_routing() as calls, layers.routing_metrics(False):
        model(images, training=False)
    return calls


def kept_share(calls: Sequence[RoutingCall]) -> float | None:
    """Returns the share of (token, choice) pairs that found a slot, over all layers.

    Args:
        calls: what `record` gave; of a model without sparse layers it is `None`.
    """
    kept = [keras.ops.convert_to_numpy(call.plan.kept).sum() for call in calls]
    choices = [
        int(call.batch) * int(call.tokens_per_image) * call.plan.kept.shape[-1] for call in calls
    ]
    return float(sum(kept) / sum(choices)) if calls else None


def measure_row(
    row: Row, plain: keras.Model, settings: ModelSettings, progress: WorkProgress
) -> list[dict[str, Any]]:
    """Measures the forward pass and the training step of a row beside the plain ViT's.

    Args:
        row: the row.
        plain: the plain ViT.
        settings: the table's.
        progress: is told of each pass.

    Returns:
        A row of the table for each pass.
    """
    model = build_model(row, settings)
    share = kept_share(record(model, settings))
    rows = []
    for mode in PASSES:
        peak = _peak(row, mode, settings, progress)
        progress.begin(f"{row.name} {mode}", _WORK[mode])
        found = {
            "model": make_step(model, mode, settings),
            "plain": make_step(plain, mode, settings),
        }
        samples = interleave(found, settings.rounds, settings.warmup, on_round=progress.advance)
        rows.append(
            {
                "row": row.name,
                "pass": mode,
                "params": model.count_params(),
                "kept_share": share,
                "model": samples["model"].milliseconds(),
                "plain": samples["plain"].milliseconds(),
                "ratio": samples["model"].over(samples["plain"])._asdict(),
                "peak_memory_bytes": peak,
            }
        )
    return rows


def _peak(row: Row, mode: str, settings: ModelSettings, progress: WorkProgress) -> int | None:
    if not settings.memory:
        return None
    progress.begin(f"{row.name} {mode}, memory", _WORK_OF_MEMORY)
    return memory.measure(row, mode, settings)


def total_work(settings: ModelSettings) -> float:
    """Returns the work of the whole table, for the progress line."""
    steps = sum(_WORK.values()) * len(settings.rows)
    return steps + settings.memory * _WORK_OF_MEMORY * len(PASSES) * (len(settings.rows) + 1)


def measure_model(
    settings: ModelSettings, progress: WorkProgress, on_row: Callable[[dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measures the table of models.

    Args:
        settings: the table's.
        progress: is told of each piece of work.
        on_row: called with each row as soon as it is measured.

    Returns:
        The rows, and the plain ViT's parameters and peak memory.
    """
    plain = build_model(PLAIN, settings)
    rows = []
    for row in settings.rows:
        for measured in measure_row(row, plain, settings, progress):
            rows.append(measured)
            on_row(measured)
        gc.collect()  # graphs and optimizer slots, before those of the next model
    peaks = {mode: _peak(PLAIN, mode, settings, progress) for mode in PASSES}
    return rows, {"params": plain.count_params(), "peak_memory_bytes": peaks}
