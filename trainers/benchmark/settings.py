"""What is measured, and the reading of it from a command line. No TensorFlow here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_vmoe.trainers import command_line
from keras_vmoe.trainers.errors import UsageError

FORWARD = "forward"
FORWARD_BACKWARD = "forward+backward"
TRAIN = "train"
DISPATCHES = ("auto", "einsum", "gather", "grouped")
# Patches of 224 px images at patch sizes 16 and 32; the latter with the class token.
_TOKENS_PER_IMAGE = (196, 50)


class Tokens(NamedTuple):
    """A batch of tokens."""

    images: int
    per_image: int

    @property
    def total(self) -> int:
        """All tokens (n)."""
        return self.images * self.per_image


class Row(NamedTuple):
    """A model of the model table; dense where `placement` is `None`."""

    name: str
    placement: str | None = None
    num_experts: int = 0


@dataclass(frozen=True)
class LayerSettings:
    """The grid of `benchmark layer`.

    Args:
        experts: numbers of experts (e).
        selected: choices per token (k).
        tokens: batches of tokens (n).
        passes: `"forward"`, `"forward+backward"`.
        capacities: capacity factors of the capacity table, each relative to the first.
        width: d.
        hidden_dim: h.
        capacity_factor: C of the efficiency table.
        images_per_group: images routed together.
        dispatch: as in `MoEMLP`.
        routing_metrics: whether the layer updates its routing metrics, as it does in `fit`.
        rounds: interleaved rounds.
        warmup: runs before them.
        chunk_rows: rows in a chunk of the row-chunked dense MLP.
        seed: of inputs, router and noise.
    """

    experts: tuple[int, ...] = (8, 32, 128)
    selected: tuple[int, ...] = (1, 2)
    tokens: tuple[Tokens, ...] = (Tokens(16, 50), Tokens(32, 196), Tokens(128, 196))
    passes: tuple[str, ...] = (FORWARD, FORWARD_BACKWARD)
    capacities: tuple[float, ...] = (1.0, 0.5, 0.2)
    width: int = 384
    hidden_dim: int = 1536
    capacity_factor: float = 1.05
    images_per_group: int = 8
    dispatch: str = "auto"
    routing_metrics: bool = True
    rounds: int = 9
    warmup: int = 2
    chunk_rows: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class ModelSettings:
    """The rows of `benchmark model`.

    Args:
        rows: the models.
        image_size: pixels.
        batch_size: images of a step.
        overrides: arguments of the models that differ from V-MoE S/32 with 1000 classes, a
            representation of 512, k = 1 and C = 1.05.
        dispatch: as in `MoEMLP`.
        routing_metrics: whether the models update their routing metrics, as they do in `fit`.
        rounds: interleaved rounds.
        warmup: runs before them.
        memory: measure peak memory too.
        seed: of images and labels.
    """

    rows: tuple[Row, ...] = (
        Row("dense"),
        Row("last_2:8", "last_2", 8),
        Row("every_2:8", "every_2", 8),
        Row("last_2:32", "last_2", 32),
        Row("every_2:32", "every_2", 32),
    )
    image_size: int = 224
    batch_size: int = 16
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dispatch: str = "auto"
    routing_metrics: bool = True
    rounds: int = 9
    warmup: int = 2
    memory: bool = False
    seed: int = 0


@dataclass(frozen=True)
class InputSettings:
    """The pipeline of `benchmark input`: that of a run, or one made of words.

    Args:
        gin_file: of a run; empty: the words below count.
        gin_bindings: that win over the files.
        dataset: a name that `data.load` takes.
        data_dir: of the dataset.
        image_size: pixels.
        batch_size: images of a batch.
        crop: a key of `CROPS`.
        augment: keys of `AUGMENTATIONS`.
        mix: keys of `MIXES`.
        repeats: how many times an example comes in a batch.
        cache: hold encoded images in memory.
        rounds: interleaved rounds.
        seconds: of each stage in each round.
        warmup: batches before them, which are not measured.
    """

    gin_file: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()
    dataset: str | None = None
    data_dir: str | None = None
    image_size: int = 224
    batch_size: int = 128
    crop: str = "inception"
    augment: tuple[str, ...] = ("flip",)
    mix: tuple[str, ...] = ()
    repeats: int = 1
    cache: bool = False
    rounds: int = 3
    seconds: float = 3.0
    warmup: int = 3


@dataclass(frozen=True)
class DeviceSettings:
    """The files of `benchmark device`.

    Args:
        models: presets of `MobileVMoE`, each measured beside its dense twin.
        forms: how a file comes to the weights of an image's experts: `"auto"`, which is what
            `keras-vmoe export` writes, or a dispatch of `layers.ImageMoEMLP`.
        precisions: of the weights.
        threads: of the interpreter.
        overrides: arguments of the models that differ from the preset.
        rounds: interleaved rounds.
        warmup: runs before them.
        images: random images that take turns.
        memory: measure peak memory too.
        seed: of weights and images.
    """

    models: tuple[str, ...] = ("mobile_vmoe_12x192",)
    forms: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1, 2)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 300
    warmup: int = 10
    images: int = 32
    memory: bool = True
    seed: int = 0


@dataclass(frozen=True)
class InferenceSettings:
    """The grid of `benchmark inference`.

    Args:
        model: a preset of `VMoE`.
        experts: of its sparse blocks (e).
        image_size: pixels.
        capacities: capacity factors (C); `TRAIN` is the one that the model has in training.
        batches: images of a batch (b).
        threads: of the processes that measure, one each.
        overrides: arguments of the model that differ from the preset.
        rounds: interleaved rounds.
        warmup: runs before them.
        seed: of images and tokens.
    """

    model: str = "vmoe_s32"
    experts: int = 8
    image_size: int = 224
    capacities: tuple[float | str, ...] = (0.2, 0.5, 1.0, TRAIN)
    batches: tuple[int, ...] = (1, 8, 64)
    threads: tuple[int, ...] = (1, 2)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 7
    warmup: int = 1
    seed: int = 0


FORMS = ("auto", "branches", "kernels", "einsum")


# What a word on the command line stands for: a class of `keras_vmoe.data`.
CROPS = {"inception": "InceptionCrop", "central": "CentralCrop", "squash": None}
AUGMENTATIONS = {
    "flip": "Flip",
    "rand_augment": "RandAugment",
    "color_jitter": "ColorJitter",
    "random_erasing": "RandomErasing",
}
MIXES = {"mixup": "Mixup", "cutmix": "CutMix"}


def parse_numbers(flag: str, words: Sequence[str], kind: type = int) -> tuple[Any, ...]:
    """Returns the numbers of a flag that lists them.

    Args:
        flag: the flag's name, for messages.
        words: what it was given.
        kind: `int` or `float`.

    Raises:
        UsageError: something that is no number above 0.

    Example:
        >>> parse_numbers("experts", ["8", "32"]), parse_numbers("capacities", ["0.5"], float)
        ((8, 32), (0.5,))
    """
    try:
        numbers = tuple(kind(word) for word in words)
    except ValueError:
        numbers = ()
    if len(numbers) != len(words) or not all(0 < number < float("inf") for number in numbers):
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{flag}={','.join(words)} must list {what} above 0, such as 1,2")
    return numbers


def parse_tokens(words: Sequence[str]) -> tuple[Tokens, ...]:
    """Returns the batches of `--tokens`.

    Args:
        words: each the number of tokens, a multiple of 196 or 50, or IMAGESxTOKENS.

    Raises:
        UsageError: anything else.

    Example:
        >>> [tuple(tokens) for tokens in parse_tokens(["6272", "800", "4x9"])]
        [(32, 196), (16, 50), (4, 9)]
    """
    return tuple(_tokens(word) for word in words)


def _tokens(word: str) -> Tokens:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", word.strip())
    if match and match[2]:
        return Tokens(int(match[1]), int(match[2]))
    if match:
        for per_image in _TOKENS_PER_IMAGE:
            if int(match[1]) % per_image == 0:
                return Tokens(int(match[1]) // per_image, per_image)
    raise UsageError(
        f"--tokens={word}: a batch is a multiple of {' or '.join(map(str, _TOKENS_PER_IMAGE))} "
        "tokens, such as 6272, or IMAGESxTOKENS, such as 32x196"
    )


def parse_choices(flag: str, words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a flag that lists names.

    Args:
        flag: the flag's name, for messages.
        words: what it was given.
        known: the names there are.

    Raises:
        UsageError: an unknown name; the message lists the known ones.
    """
    for word in words:
        if word not in known:
            raise UsageError(f"--{flag}: {word!r} is unknown; known: {', '.join(known)}")
    return tuple(words)


def parse_overrides(
    table: str, words: Sequence[str], example: str, flags: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the arguments of models that are given as NAME=VALUE.

    Args:
        table: name of the table, for messages.
        words: of the command line.
        example: of an override, for messages.
        flags: arguments that a flag says, and the flag.

    Raises:
        UsageError: for a word that is no override, or says what a flag says.

    Example:
        >>> parse_overrides("model", ["num_layers=4"], "num_layers=4", {"dispatch": "--dispatch"})
        {'num_layers': 4}
    """
    for word in words:
        name, equals, _ = word.partition("=")
        if not name.isidentifier() or not equals:
            raise UsageError(
                f"benchmark {table}: {word!r} is not NAME=VALUE, such as {example}; "
                f"see keras-vmoe benchmark {table} --help"
            )
        if name in flags:
            raise UsageError(f"benchmark {table}: {word!r} is said by {flags[name]}")
    return dict(command_line.parse_override("benchmark", word) for word in words)


def parse_row(word: str, flag: str = "rows") -> Row:
    """Returns a row of the model table from its name.

    Args:
        word: `dense`, or PLACEMENT:EXPERTS.
        flag: the flag's name, for messages.

    Raises:
        UsageError: anything else.

    Example:
        >>> parse_row("last_2:8")
        Row(name='last_2:8', placement='last_2', num_experts=8)
    """
    if word == "dense":
        return Row(word)
    match = re.fullmatch(r"((?:every|last|final)_[1-9]\d*):([1-9]\d*)", word)
    if match is None:
        raise UsageError(
            f"--{flag}: {word!r} is unknown; a row is dense or PLACEMENT:EXPERTS, such as last_2:8 "
            "or every_2:32"
        )
    return Row(word, match[1], int(match[2]))
