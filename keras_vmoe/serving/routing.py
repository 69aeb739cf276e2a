"""Settings of MoE layers that hold while a graph is traced."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import keras

from keras_vmoe import models, ops
from keras_vmoe.layers import ImageMoEMLP, MoEMLP
from keras_vmoe.models.sparse import with_attribute

# Numbers in the kernels of an expert. In LiteRT, copying these few takes no longer than the some
# four conditions on the way to an expert, and needs less memory: measured from d = 64 to 384, it is
# so at 96 (74,000 numbers) and no more at 192 (295,000).
_FEW_WEIGHTS = 100_000


def images_alone(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Lets a `with` block run or export a model so that each image is routed alone.

    Images of a routing group compete for the slots of its experts, so what a model says of an
    image depends on its neighbours in the batch. Within the block a group is one image: a batch
    gives what its images give in batches of one. Only calls that are traced within the block see
    it; a compiled `predict` keeps the groups it was traced with.

    Args:
        model: any Keras model; it is as before afterwards.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models, serving
    >>> model = models.VMoE(
    ...     image_size=16,
    ...     patch_size=8,
    ...     num_layers=2,
    ...     width=16,
    ...     mlp_dim=32,
    ...     num_heads=2,
    ...     num_classes=None,
    ...     num_experts=4,
    ... )
    >>> images = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype("float32")
    >>> with serving.images_alone(model):
    ...     together = np.asarray(model(images))
    >>> bool(np.allclose(together[:1], model(images[:1]), atol=1e-5))
    True
    """
    return with_attribute("images_per_group", [(m, 1) for m in models.moe_layers(model)])


@contextlib.contextmanager
def fixed_dispatch(
    model: keras.Model, batch_size: int | None, small: bool = False
) -> Iterator[dict[str, str]]:
    """Lets MoE layers move tokens in shapes that do not depend on the data, in a `with` block.

    A layer that is set to `"einsum"` or `"gather"` keeps it. The others get the cheaper one by
    `ops.choose_dispatch`: one-hot products where groups are small beside the experts' hidden
    width, gathers elsewhere. A layer that whole images go to gathers their experts' kernels, or has
    branches where one image is alone on a small device.

    Args:
        model: any Keras model; it is as before afterwards.
        batch_size: images of a batch; `None` where it is not known: groups are taken as full.
        small: the file is for small devices.

    Yields:
        Layer name to dispatch.
    """
    found = [(layer, _fixed(layer, batch_size)) for layer in models.moe_layers(model)]
    found += [
        (layer, _fixed_for_images(layer, batch_size, small))
        for layer in models.image_moe_layers(model)
    ]
    with with_attribute("dispatch", found):
        yield {layer.name: method for layer, method in found}


def _fixed(layer: MoEMLP, batch_size: int | None) -> str:
    if layer.dispatch in ("einsum", "gather"):
        return layer.dispatch
    tokens = layer.get_build_config()["input_shape"][1]
    images = min(layer.images_per_group, batch_size or layer.images_per_group)
    return ops.choose_dispatch(
        layer.router.plan_type,
        None if tokens is None else images * tokens,
        layer.hidden_dim,
        backend="tensorflow",
        accelerator=True,  # accelerators want fixed shapes too
    )


def _fixed_for_images(layer: ImageMoEMLP, batch_size: int | None, small: bool) -> str:
    if layer.dispatch in ("kernels", "branches", "einsum"):
        return layer.dispatch
    weights = 2 * math.prod(layer.experts.hidden_kernel.shape[1:])
    return "branches" if small and batch_size == 1 and weights >= _FEW_WEIGHTS else "kernels"
