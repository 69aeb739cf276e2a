"""`keras-vmoe evaluate`: a trained model on held-out images, also with other routing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from keras_vmoe.tables import aligned
from keras_vmoe.trainers import command_line, model_flags
from keras_vmoe.trainers.errors import UsageError

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_vmoe import data, evaluation
    from keras_vmoe.trainers.trained import Trained

_SYNOPSIS = "evaluate --workdir=DIR | --model=FILE [--sweep] [options]"
_TEXT = """
Prints accuracy and loss of a trained model on held-out images, how well its probabilities are
calibrated (negative log-likelihood, Brier score, expected calibration error in 15 bins), and of
each MoE layer which share of the choices got no slot; of a router of whole images, how often it
finds the super-class. Probabilities are here the softmax of the logits, also where the loss was
'sigmoid': the calibration says little then, and a note says so. Of an ensemble, the members' mean
probability is what is evaluated. Of a detector of objects it prints COCO's average precision alone.
With --sweep the same weights route in many ways, without training: choices per token (k), capacity
factor (C), vanilla or batch priority. It prints a table and writes sweep.png, sweep.csv and
sweep.json: accuracy against capacity, measured MACs (experts on the choices that were kept) and
measured time (medians of interleaved rounds).

  keras-vmoe evaluate --workdir=workdir/quickstart-seed0
  keras-vmoe evaluate --workdir=workdir/quickstart-seed0 --sweep --num_selected=1,2
  keras-vmoe evaluate --workdir=DIR --sweep --dense_workdir=DENSE_DIR --capacity_factors=0.1,0.5,1
  keras-vmoe evaluate --model=model.keras --gin_file=data/fashion_mnist.gin
"""
_OF_SWEEPS = (
    "num_selected",
    "capacity_factors",
    "priority",
    "dense_workdir",
    "exact",
    "rounds",
)


def _flags() -> flags.FlagValues:
    values = model_flags.new_flags()
    flags.DEFINE_boolean("sweep", False, "Try many ways to route.", flag_values=values)
    for name, text in (
        ("num_selected", "Choices per token of the sweep. Default: the model's."),
        ("capacity_factors", "Capacity factors of the sweep. Default: 0.1 to 1.5."),
        ("priority", "vanilla, bpr. Default: both."),
    ):
        flags.DEFINE_list(name, None, text, flag_values=values)
    flags.DEFINE_string(
        "dense_workdir", None, "A dense run to measure beside the sweep.", flag_values=values
    )
    flags.DEFINE_boolean(
        "exact", True, "Whole slots, not multiples of capacity_multiple_of.", flag_values=values
    )
    flags.DEFINE_integer(
        "rounds", 7, "Rounds of timing; 0: no times. Default: 7.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "batches", None, "The first so many batches alone.", lower_bound=1, flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe evaluate`.

    Args:
        argv: the words after `evaluate`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a model that does not fit the images, or a dense one with --sweep.
        OSError: a model, images or results that cannot be read or written.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: keras-vmoe evaluate ...
        0
    """
    values = _flags()
    words = command_line.parse(values, argv, "evaluate")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    model_flags.check(values, words, "evaluate")
    sweep = _sweep_arguments(values)
    model = model_flags.load_trained(values, boxes=None)
    if model.detects:
        return _detect(values, model)
    settings = _settings(model, sweep) if values.sweep else []
    source = _source(values, model)
    batches = _Batches(model, source.eval, values)
    print(
        f"model    {type(model.model).__name__} of {model.origin}\n"
        f"data     {source.name}: {batches.images:,} held-out images, {source.num_classes} classes",
        flush=True,
    )
    if values.sweep:
        _run_sweep(values, model, source, batches, settings)
    else:
        _evaluate(model, batches)
    return 0


# The command line.


def _sweep_arguments(values: flags.FlagValues) -> dict[str, tuple[Any, ...]]:
    """The lists that were given, checked as far as it goes without a model."""
    given = [name for name in _OF_SWEEPS if values[name].present]
    if given and not values.sweep:
        raise UsageError(f"evaluate: --{given[0]} is of sweeps; add --sweep")
    kinds: dict[str, Callable[[str], Any]] = {"num_selected": int, "capacity_factors": float}
    found = {
        name: model_flags.numbers("evaluate", name, values[name].value, kind)
        for name, kind in kinds.items()
        if name in given
    }
    if "priority" in given:
        words = tuple(values.priority)
        if not words or len(set(words)) < len(words) or set(words) - {"vanilla", "bpr"}:
            raise UsageError(
                "evaluate: --priority must be vanilla, bpr or both. "
                f"Received: --priority={','.join(words)}"
            )
        found["priorities"] = words
    return found


def _settings(
    model: Trained, arguments: dict[str, tuple[Any, ...]]
) -> list[evaluation.RoutingSetting]:
    from keras_vmoe import evaluation, models

    if not models.is_sparse(model.model):
        raise ValueError(f"--sweep needs a model with MoE layers, but {model.origin} is dense")
    return evaluation.routing_settings(model.model, **arguments)


def _source(values: flags.FlagValues, model: Trained) -> data.ImageSource:
    """The images, whose classes must be those of the model."""
    sources = model_flags.load_sources(values, model)
    if len(sources) > 1:
        raise UsageError("evaluate: give one --dataset; the model has the classes of one")
    source = sources[0]
    model_flags.require_same_classes(source, model)
    return source


class _Batches:
    """The batches of a split, as often as they are asked for, and how many there are."""

    def __init__(self, model: Trained, split: data.Split, values: flags.FlagValues) -> None:
        from keras_vmoe import models

        size = model.config.eval_batch_size if model.config else 256
        if values.batch_size is None:
            group = max((moe.images_per_group for moe in models.moe_layers(model.model)), default=1)
            size = even_batch_size(split.num_examples, size, group)
        self.size = min(values.batch_size or size, split.num_examples)
        self.count = math.ceil(split.num_examples / self.size)
        self.dataset: tf.data.Dataset = model.eval_batches(self.size, split)
        if values.batches is not None:
            self.count = min(self.count, values.batches)
            self.dataset = self.dataset.take(self.count)
        self.images = min(self.count * self.size, split.num_examples)


def even_batch_size(images: int, wanted: int, group: int) -> int:
    """Returns a batch size that cuts the images evenly into batches of whole routing groups.

    Images are routed with the same neighbours then as with the size that is wanted, and a model is
    compiled for one size alone.

    Args:
        images: how many there are.
        wanted: the size that fits into memory.
        group: images that are routed together.

    Returns:
        The largest such size from a quarter of `wanted` to `wanted`, else `wanted`.

    Example:
        >>> (
        ...     even_batch_size(360, 256, 8),
        ...     even_batch_size(10_000, 256, 8),
        ...     even_batch_size(359, 256, 8),
        ... )
        (120, 200, 256)
    """
    fits = [n for n in range(group, wanted + 1, group) if images % n == 0 and 4 * n >= wanted]
    return max(fits, default=wanted)


# What is measured.


def _detect(values: flags.FlagValues, model: Trained) -> int:
    """Prints COCO's average precision of a detector, as its run did."""
    from keras_vmoe.trainers import detection
    from keras_vmoe.trainers.work_progress import WorkProgress

    for name in ("sweep", "dataset", "dense_workdir"):
        if values[name].present:
            raise UsageError(
                f"evaluate: --{name} is of classifiers, and {model.origin} is a detector of "
                "objects; leave it out (other images with boxes: --gin_file)"
            )
    source = model.source
    detection.require_same_classes(model.model, source)
    count = source.eval.num_examples
    size = min(values.batch_size or model.config.eval_batch_size, count)
    batches = detection.held_out_batches(source, size, model.image_size, model.channels)
    steps = math.ceil(count / size)
    if values.batches is not None:
        steps = min(steps, values.batches)
        batches = batches.take(steps)
    images = min(steps * size, count)
    print(
        f"model    {type(model.model).__name__} of {model.origin}\n"
        f"data     {source.name}: {images:,} held-out images, {source.num_classes} classes",
        flush=True,
    )
    progress = WorkProgress(total_work=float(steps))
    progress.begin("objects", work=float(steps))
    done = itertools.count(1)
    found = detection.coco_result(
        model.model, batches, on_batch=lambda: progress.advance(next(done) / steps)
    )
    progress.print(f"result   {found.words()}")
    print("\n".join(aligned(detection.table(found, source.class_names), num_left=1)))
    return 0


def _evaluate(model: Trained, batches: _Batches) -> None:
    from keras_vmoe import evaluation, models
    from keras_vmoe.trainers.work_progress import WorkProgress

    routes_images = models.routes_images(model.model)
    progress = WorkProgress(total_work=float(batches.count * (1 + routes_images)))
    progress.begin("evaluation", work=float(batches.count))
    done = itertools.count(1)
    result = evaluation.evaluate(
        model.model,
        batches.dataset,
        model.image_losses,
        on_batch=lambda: progress.advance(next(done) / batches.count),
    )
    routing = None
    if routes_images:
        progress.begin("the router", work=float(batches.count))
        done = itertools.count(1)
        routing = evaluation.image_routing(
            model.model,
            batches.dataset,
            on_batch=lambda: progress.advance(next(done) / batches.count),
        )
    nll, brier, ece = result.calibration
    progress.print(
        f"result   accuracy {result.accuracy:.2%}, loss {result.loss:.3f}, NLL {nll:.4f}, "
        f"Brier {brier:.4f}, ECE {ece:.2%}"
    )
    if model.loss == "sigmoid":
        print(
            "note     NLL, Brier and ECE are of the softmax of the logits; this run's loss is "
            "'sigmoid', of which each class has a probability of its own"
        )
    if result.layers:
        print(_layers_table(result.layers))
    if routing is not None:
        of_superclass = "" if routing.accuracy is None else f"accuracy {routing.accuracy:.2%}, "
        shares = ", ".join(f"{share:.1%}" for share in routing.expert_shares)
        print(f"router   {of_superclass}experts' shares of the images {shares}")


def _layers_table(layers: dict[str, evaluation.LayerRouting]) -> str:
    lines = [("MoE layer", "dropped", "slots/choice", "experts' shares, least to most")]
    for name, layer in layers.items():
        dropped = "-" if layer.dropped is None else f"{layer.dropped:.1%}"
        capacity = "-" if layer.capacity is None else f"{layer.capacity:.3f}"
        shares = f"{layer.expert_shares.min():.1%} to {layer.expert_shares.max():.1%}"
        lines.append((name, dropped, capacity, shares))
    return "\n".join(aligned(lines, num_left=1))


def _run_sweep(
    values: flags.FlagValues,
    model: Trained,
    source: data.ImageSource,
    batches: _Batches,
    settings: Sequence[evaluation.RoutingSetting],
) -> None:
    from keras_vmoe.trainers import sweeping, trained
    from keras_vmoe.trainers.work_progress import WorkProgress

    out = model_flags.out_folder(values)
    dense = None if values.dense_workdir is None else trained.load(values.dense_workdir)
    if dense is not None and (why := trained.no_twin(dense, model)) is not None:
        raise ValueError(f"--dense_workdir={values.dense_workdir} {why}")
    progress = WorkProgress(total_work=1.0)
    progress.begin(f"{len(settings)} ways to route", work=1.0)
    rows = sweeping.sweep(
        model.model,
        batches.dataset,
        batches.count,
        settings,
        dense=None if dense is None else dense.model,
        loss=model.image_losses,
        exact_capacity=values.exact,
        timing_rounds=values.rounds,
        advance=progress.advance,
    )
    progress.print(sweeping.table(rows))
    groups = sweeping.groups_in_words(rows)
    facts = {
        "model": model.origin,
        "dense": None if dense is None else dense.origin,
        "data": source.name,
        "batch_size": batches.size,
        "exact_capacity": values.exact,
    }
    subtitle = f"{source.name}, {batches.images:,} images; {groups}"
    files = sweeping.write(rows, out, facts, subtitle)
    print(f"wrote    {', '.join(file.name for file in files)} to {out}")
