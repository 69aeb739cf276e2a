"""The weights of an As-ViT in other graphs: its maps, its pooled tokens, coarser tokens."""

from __future__ import annotations

from typing import Any

import keras

from keras_vmoe import layers
from keras_vmoe.models.as_vit import AsViT
from keras_vmoe.models.as_vit_graph import last_blocks, pooling
from keras_vmoe.models.base import FunctionalModel, rewired
from keras_vmoe.models.rewiring import fresh_inputs, run_graph
from keras_vmoe.ops.validation import require, require_image_size, require_positive_int

LEVELS = ("P2", "P3", "P4", "P5")


def _maps(model: keras.Model, inputs: Any) -> dict[str, Any]:
    """What each layer gives for these inputs, by its name."""
    given: dict[str, Any] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        given[layer.name] = outputs
        return outputs

    run_graph(model, inputs, call)
    return given


def _embedding(model: keras.Model) -> layers.OverlappingPatchEmbedding:
    found = [
        layer
        for layer in getattr(model, "layers", [])
        if isinstance(layer, layers.OverlappingPatchEmbedding)
    ]
    require(
        len(found) == 1,
        "model must be an AsViT, or one of its weights such as with_routing gives. Received: "
        f"{getattr(model, 'name', model)!r} of class {type(model).__name__}",
    )
    return found[0]


def _stage_ends(model: keras.Model) -> list[str]:
    """The name of the last block of each stage: that which a merging, or no block, follows."""
    _embedding(model)
    if isinstance(model, AsViT):
        return last_blocks(model.genotype)
    steps = [
        layer
        for layer in model.layers
        if isinstance(layer, layers.WindowEncoderBlock | layers.PatchMerging)
    ]
    following = [*steps[1:], None]
    return [
        step.name
        for step, after in zip(steps, following, strict=True)
        if not isinstance(after, layers.WindowEncoderBlock)
        and isinstance(step, layers.WindowEncoderBlock)
    ]


def feature_pyramid(
    model: keras.Model,
    image_size: int | tuple[int | None, int | None] | None = None,
    level_norms: bool = False,
) -> FunctionalModel:
    """The maps of the four stages of an As-ViT, for detection and segmentation.

    Args:
        model: an `AsViT`, or one of its weights such as `with_routing` gives. Built with
            `windows="size"` its windows keep their size on large images, which detection wants.
        image_size: of the inputs, pixels, or (height, width), either of which may be `None`;
            `None` takes images of any size.
        level_norms: give each level a new layer norm of its own.

    Returns:
        A model of the same weights with outputs `{"P2", "P3", "P4", "P5"}`, `[b, rows, columns, d]`
        of the stages' widths, at a 4th, 8th, 16th and 32nd of the image's height and width, rounded
        up.

    Raises:
        ValueError: a model that is not of an As-ViT, or a size that is none.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> backbone = models.AsViT("4,2,2|2,1,2|2,1,2|2,1,2|16,8", image_size=64)
    >>> pyramid = models.feature_pyramid(backbone)
    >>> maps = pyramid(np.zeros((1, 72, 100, 3), "float32"))
    >>> {name: tuple(maps[name].shape) for name in ("P2", "P5")}
    {'P2': (1, 18, 25, 8), 'P5': (1, 3, 4, 64)}

    Reference: Chen et al. 2022, arXiv 2202.11921, section 4.4.
    """
    ends = _stage_ends(model)
    require_image_size("image_size", image_size, dynamic=True)
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    images = keras.Input((*sides, model.inputs[0].shape[-1]), name="images")
    given = _maps(model, images)
    levels = dict(zip(LEVELS, (given[name] for name in ends), strict=True))
    if level_norms:
        levels = {
            name: keras.layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm")(maps)
            for name, maps in levels.items()
        }
    pyramid = FunctionalModel(images, levels, name=f"{model.name}_pyramid")
    pyramid.input_range = getattr(model, "input_range", None)
    return pyramid


def pooled_features(model: keras.Model) -> FunctionalModel:
    """The mean of the last stage's tokens, before and after the last norm.

    Args:
        model: an `AsViT`, or one of its weights such as `with_routing` gives.

    Returns:
        A model of the same weights with outputs `{"pre_norm", "post_norm"}`, `[b, d]` each. The
        search measures the former; the head is given the latter.

    Raises:
        ValueError: a model that is not of an As-ViT.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import models
    >>> model = models.AsViT("4,2,2|2,1,2|2,1,2|2,1,2|16,8", image_size=32)
    >>> features = models.pooled_features(model)(np.zeros((2, 32, 32, 3), "float32"))
    >>> {name: tuple(features[name].shape) for name in sorted(features)}
    {'post_norm': (2, 64), 'pre_norm': (2, 64)}

    Reference: Chen et al. 2022, arXiv 2202.11921, section 3.2.
    """
    ends = _stage_ends(model)
    images = fresh_inputs(model)
    given = _maps(model, images)
    policy = model.get_layer("pooling").dtype_policy
    outputs = {
        "pre_norm": pooling(policy, "pooling_before_norm")(given[ends[-1]]),
        "post_norm": given["pooling"],
    }
    features = FunctionalModel(images, outputs, name=f"{model.name}_pooled")
    features.input_range = getattr(model, "input_range", None)
    return features


def retokenized(model: keras.Model, stride: int, dilation: int = 1) -> FunctionalModel:
    """An As-ViT of the same weights and images with coarser tokens, for cheaper training.

    The kernel of the first layer keeps its values; its taps lie `dilation` pixels apart. The
    position table is resized to the coarser grid. Windows have as many times fewer tokens down, and
    across, as the map, rounded up: where that leaves nothing over there are as many as before, and
    else about as many.

    Args:
        model: an `AsViT`, or one of its weights such as `with_routing` gives.
        stride: from one token to the next, pixels; a multiple of the model's own, 4. The paper
            trains with 16, then 8, then 4.
        dilation: from one tap to the next, pixels; the paper's are 5, 2 and 1.

    Returns:
        A model with the layers of `model`: what trains one trains the other.

    Raises:
        ValueError: a stride that is no multiple of the model's, or a model that is not of an
            As-ViT.

    Example:

    >>> from keras_vmoe import models
    >>> model = models.AsViT("8,2,2|2,1,2|2,1,2|2,1,2|16,8", num_classes=10, image_size=64)
    >>> coarse = models.retokenized(model, stride=16, dilation=5)
    >>> coarse.get_layer("embedding") is model.get_layer("embedding"), coarse.output_shape
    (True, (None, 10))

    Reference: Chen et al. 2022, arXiv 2202.11921, section 4.2.
    """
    own = _embedding(model).stride
    require_positive_int("stride", stride)
    require_positive_int("dilation", dilation)
    require(
        stride % own == 0,
        f"stride must be a multiple of the model's own, {own}. Received: stride={stride}",
    )

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, layers.OverlappingPatchEmbedding):
            return layer(*args, **{**kwargs, "stride": stride, "dilation": dilation})
        if isinstance(layer, layers.WindowEncoderBlock):
            return layer(*args, **{**kwargs, "coarsening": stride // own})
        return layer(*args, **kwargs)

    inputs = fresh_inputs(model)
    return rewired(model, inputs, run_graph(model, inputs, call))
