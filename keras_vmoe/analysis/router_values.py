"""What a trained router is worth: accuracy when it is replaced by a random one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_vmoe.layers import Router
from keras_vmoe.models import moe_layers
from keras_vmoe.ops.validation import require, require_positive_int


class RouterDraw(NamedTuple):
    """One measurement with random routers.

    Attributes:
        layer: the MoE layer that was replaced.
        below: whether all MoE layers below it were replaced too.
        draw: the number of the random draw.
        accuracy: what was measured, 0 to 1.
    """

    layer: str
    below: bool
    draw: int
    accuracy: float


class RouterValue(NamedTuple):
    """The worth of a model's routers.

    Attributes:
        accuracy: of the model as it is.
        draws: of the model with random routers, layer by layer.
    """

    accuracy: float
    draws: list[RouterDraw]


@contextlib.contextmanager
def random_routers(routers: Sequence[Router], seed: int | Sequence[int] = 0) -> Iterator[None]:
    """Lets a `with` block see random routers; the trained ones are back afterwards, in any case.

    A random router has the numbers of the trained one's kernel in random places: gates are as
    decided as before, for no reason.

    Args:
        routers: built routers, as `models.moe_layers(model)[i].router`.
        seed: of the places.

    Raises:
        ValueError: a router that is not built.

    Example:

    >>> from keras_vmoe import layers
    >>> router = layers.TopKRouter(num_experts=4)
    >>> router.build((None, 16, 8))
    >>> before = keras.ops.convert_to_numpy(router.kernel)
    >>> with random_routers([router]):
    ...     bool((keras.ops.convert_to_numpy(router.kernel) == before).all())
    False
    >>> bool((keras.ops.convert_to_numpy(router.kernel) == before).all())
    True
    """
    for router in routers:
        require(router.built, f"routers must be built. {router.name!r} is not")
    trained = [np.array(keras.ops.convert_to_numpy(router.kernel)) for router in routers]
    rng = np.random.default_rng(seed)
    try:
        for router, kernel in zip(routers, trained, strict=True):
            router.kernel.assign(rng.permutation(kernel.ravel()).reshape(kernel.shape))
        yield
    finally:
        for router, kernel in zip(routers, trained, strict=True):
            router.kernel.assign(kernel)


def router_value(
    model: keras.Model,
    measure: Callable[[], float],
    draws: int = 3,
    seed: int = 0,
) -> RouterValue:
    """Measures a model with one router replaced, and with all up to it, for each MoE layer.

    Args:
        model: a built model that holds MoE layers; it is as before afterwards.
        measure: gives the model's accuracy as its weights are when it is called. It is called
            `1 + (2 * layers - 1) * draws` times.
        draws: random routers for each measurement.
        seed: of the routers.

    Returns:
        A `RouterValue`.

    Raises:
        ValueError: a model without MoE layers, or `draws` below 1.

    Example:

    >>> from keras_vmoe import analysis, models
    >>> model = models.VMoE(
    ...     image_size=32,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=10,
    ...     num_experts=4,
    ... )
    >>> images, labels = np.zeros((4, 32, 32, 3), "float32"), np.arange(4)
    >>> def measure():
    ...     logits = model.predict_on_batch(images)
    ...     return float((logits.argmax(-1) == labels).mean())
    >>> value = analysis.router_value(model, measure, draws=1)
    >>> [draw.layer for draw in value.draws]
    ['encoder_block_1_moe', 'encoder_block_1_moe']

    Reference: Riquelme et al. 2021, arXiv 2106.05974, appendix on the value of the routers.
    """
    require_positive_int("draws", draws)
    moe = moe_layers(model)
    require(bool(moe), f"model must hold at least one MoE layer. {model.name!r} holds none")
    accuracy = measure()
    found = []
    for index, draw in np.ndindex(len(moe), draws):
        name = moe[index].name
        with random_routers([moe[index].router], seed=[seed, draw, index, 0]):
            left = measure()
        found.append(RouterDraw(name, False, draw, left))
        if index:
            with random_routers([m.router for m in moe[: index + 1]], seed=[seed, draw, index, 1]):
                left = measure()
        # Below the first layer there is none.
        found.append(RouterDraw(name, True, draw, left))
    return RouterValue(accuracy, found)
