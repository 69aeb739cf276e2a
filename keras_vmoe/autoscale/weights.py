"""The weights of an As-ViT as arrays, by the names that the model has for them.

A search meets a new topology at every step and measures networks that are never trained: drawing
arrays costs a hundredth of building a Keras model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_vmoe.models import AsViT, Genotype
from keras_vmoe.models.vit import image_shape
from keras_vmoe.ops.validation import require

_DEVIATION = 0.02
_CHANNELS = 3

Weights = dict[str, np.ndarray]


class Dense(NamedTuple):
    """The place of a linear map among the weights.

    Attributes:
        name: what its arrays begin with.
        inputs, outputs: widths.
        has_bias: whether `NAME/bias` follows `NAME/kernel`.
    """

    name: str
    inputs: int
    outputs: int
    has_bias: bool = True


def embedding(genotype: Genotype) -> Dense:
    """The map of an image's patches to the first tokens."""
    inputs = _CHANNELS * genotype.stages[0].kernel_size ** 2
    return Dense("embedding", inputs, genotype.widths[0])


def merging(genotype: Genotype, stage: int) -> Dense:
    """The map of patches of tokens to the tokens of a stage, 1 to 3."""
    inputs = genotype.widths[stage - 1] * genotype.stages[stage].kernel_size ** 2
    return Dense(f"merging_{stage}/projection", inputs, genotype.widths[stage], has_bias=False)


def block_maps(genotype: Genotype, stage: int, name: str) -> tuple[Dense, ...]:
    """The four maps of a block: queries, keys and values; their output; the MLP's two."""
    width, heads = genotype.widths[stage], genotype.num_heads[stage]
    inner = width // heads * heads
    hidden = width * genotype.stages[stage].mlp_ratio
    return (
        Dense(f"{name}/attention/qkv", width, 3 * inner),
        Dense(f"{name}/attention/attention_output", inner, width),
        Dense(f"{name}/mlp/hidden", width, hidden),
        Dense(f"{name}/mlp/output", hidden, width),
    )


def block_names(genotype: Genotype) -> list[list[str]]:
    """What the weights of each stage's blocks begin with.

    Example:
        >>> block_names(Genotype.parse("4,2,2|2,1,2|2,1,2,2|2,1,2|16,8"))[2]
        ['encoder_block_2', 'encoder_block_3']
    """
    numbers = itertools.count()
    return [[f"encoder_block_{next(numbers)}" for _ in range(n)] for n in genotype.depths]


def _maps(genotype: Genotype) -> Iterator[Dense]:
    for stage, names in enumerate(block_names(genotype)):
        if stage:
            yield merging(genotype, stage)
        for name in names:
            yield from block_maps(genotype, stage, name)


def _norms(genotype: Genotype) -> dict[str, int]:
    """The widths of the LayerNorms by their names."""
    widths = {"embedding_norm": genotype.widths[0], "encoder_norm": genotype.widths[-1]}
    for stage, names in enumerate(block_names(genotype)):
        if stage:
            widths[f"merging_{stage}/norm"] = merging(genotype, stage).inputs
        for name in names:
            for norm in ("attention_norm", "mlp_norm"):
                widths[f"{name}/{norm}"] = genotype.widths[stage]
    return widths


def check_weights(genotype: Genotype, weights: Weights) -> None:
    """Refuses weights of another network.

    Args:
        genotype: the network.
        weights: as `draw_weights` or `model_weights` gives them; a head's are not looked at.

    Raises:
        ValueError: a kernel or bias that is missing, of another shape, or of no place in it.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for dense in (embedding(genotype), *_maps(genotype)):
        wanted[f"{dense.name}/kernel"] = (dense.inputs, dense.outputs)
        if dense.has_bias:
            wanted[f"{dense.name}/bias"] = (dense.outputs,)
    found = {
        name: value.shape
        for name, value in weights.items()
        if name.startswith(("embedding", "merging_", "encoder_"))
    }
    # Of norms only those are there that a model has learned.
    for norm, width in _norms(genotype).items():
        for name in (f"{norm}/gamma", f"{norm}/beta"):
            if name in found:
                wanted[name] = (width,)
    for name in sorted(wanted | found):
        own, received = wanted.get(name, "none"), found.get(name, "none")
        require(
            own == received,
            f"weights must be those of genotype='{genotype}', whose {name} has the shape {own}. "
            f"Received: {received}; draw them with draw_weights(genotype, rng)",
        )


def draw_weights(
    genotype: Genotype, rng: np.random.Generator, embedding_rng: np.random.Generator | None = None
) -> Weights:
    """Draws the weights that the published network begins with.

    Kernels are normal with a deviation of 0.02 (the truncation at 2 cuts nothing), their biases 0;
    the embedding's kernel and bias are uniform between plus and minus one over the root of its
    inputs. LayerNorms scale by 1 and have no arrays here.

    Args:
        genotype: the network.
        rng: draws all of them, in the order in which the network applies them.
        embedding_rng: draws the embedding instead: the published code keeps one embedding for all
            repeats of a measurement.

    Returns:
        Name to float32 array: `NAME/kernel` `[inputs, outputs]` and `NAME/bias` `[outputs]`.

    Example:
        >>> genotype = Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")
        >>> weights = draw_weights(genotype, np.random.default_rng(0))
        >>> weights["embedding/kernel"].shape, weights["encoder_block_3/mlp/hidden/kernel"].shape
        ((192, 32), (256, 1536))

    Reference: Chen et al. 2022, arXiv 2202.11921 (As-ViT), section 3.
    """
    first = embedding(genotype)
    limit = first.inputs**-0.5
    uniform = (embedding_rng or rng).uniform
    drawn = {
        "embedding/kernel": uniform(-limit, limit, (first.inputs, first.outputs)),
        "embedding/bias": uniform(-limit, limit, first.outputs),
    }
    weights = {name: value.astype("float32") for name, value in drawn.items()}
    for dense in _maps(genotype):
        kernel = rng.standard_normal((dense.inputs, dense.outputs), "float32")
        weights[f"{dense.name}/kernel"] = kernel * np.float32(_DEVIATION)
        if dense.has_bias:
            weights[f"{dense.name}/bias"] = np.zeros(dense.outputs, "float32")
    return weights


def model_weights(model: AsViT) -> Weights:
    """The weights that a model has now, as the measures take them.

    Args:
        model: a dense `AsViT`, in which norms stand before layers, and tokens have no positions;
            with the exact GELU, norms' epsilon of 1e-5, and the windows of its own image size.

    Raises:
        ValueError: a model that the published search does not know.

    Example:
        >>> model = AsViT("4,2,2|2,1,2|2,1,2|2,1,2|16,8", num_classes=None, image_size=32)
        >>> model_weights(model)["encoder_block_0/attention/qkv/kernel"].shape
        (8, 24)
    """
    _check_measured(model.arguments)
    arrays = {variable.path: np.asarray(variable) for variable in model.weights}
    # A functional model puts its own name before none of them, but a wrapped one may.
    arrays = {path.removeprefix(f"{model.name}/"): value for path, value in arrays.items()}
    weights: Weights = {}
    for path, value in arrays.items():
        name, kind = path.rsplit("/", 1)
        if not name.endswith(("/query", "/key", "/value")):
            # A kernel's last axis is its outputs, whatever taps and heads its inputs have.
            is_kernel = kind == "kernel"
            weights[path] = value.reshape(-1, value.shape[-1]) if is_kernel else value
        elif name.endswith("/query"):
            block = name.removesuffix("query")
            parts = [arrays[f"{block}{part}/{kind}"] for part in ("query", "key", "value")]
            flat = [x.reshape(*x.shape[:-2], -1) for x in parts]
            weights[f"{block}qkv/{kind}"] = np.concatenate(flat, -1)
    return weights


def _check_measured(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of a model by which it calculates otherwise than the measures."""
    own = {
        "pos_emb": None,
        "placement": "none",
        "merge_norm": "pre",
        "channels": _CHANNELS,
        "activation": "gelu",
        "layer_norm_epsilon": 1e-5,
    }
    exact = keras.activations.get(arguments["activation"]) is keras.activations.gelu
    for name, value in own.items():
        found = arguments[name]
        require(
            found == value or (name == "activation" and exact),
            f"model must have {name}={value!r} to be measured. Received: {name}={found!r}",
        )
    pretrain_size, image_size = arguments["pretrain_size"], arguments["image_size"]
    require(
        arguments["windows"] == "number"
        or pretrain_size is None
        or image_shape(pretrain_size) == image_shape(image_size),
        "model must have windows='number', or the windows of its image_size, to be measured. "
        f"Received: windows='size' of pretrain_size={pretrain_size} with image_size={image_size}",
    )


def count_params(genotype: Genotype, num_classes: int = 1000) -> int:
    """The parameters of an As-ViT in the layout of the published search, without building it.

    Args:
        genotype: the network.
        num_classes: of its head, a tanh layer as wide as the last stage before it.

    Example:
        >>> count_params(Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32"))
        2319624
    """
    dense = [embedding(genotype), *_maps(genotype)]
    total = sum(one.outputs * (one.inputs + one.has_bias) for one in dense)
    width = genotype.widths[-1]
    head = width * (width + 1) + num_classes * (width + 1)
    # A LayerNorm has a scale and an offset.
    return total + 2 * sum(_norms(genotype).values()) + head
