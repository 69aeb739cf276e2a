"""Contrastive losses of image-text pairs, over the batch of all replicas.

Axis letters: b pairs of this replica, n pairs of all replicas, d width of the embeddings.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import ops

from keras_vmoe.ops.layout import lay_out
from keras_vmoe.ops.replicas import gather_from_replicas, own_rows
from keras_vmoe.ops.validation import require, require_choice, require_rank, require_same_axes

KINDS = ("softmax", "sigmoid")


class PairLogits(NamedTuple):
    """What a pair is told apart from: the logits of a batch.

    Attributes:
        own: `[b]`, each image with its own text.
        to_texts: `[b, n]`, each image with the texts of all replicas.
        to_images: `[b, n]`, each text with the images of all replicas.
        is_own: `[b, n]` bool, where the two above hold `own`.
    """

    own: Any
    to_texts: Any
    to_images: Any
    is_own: Any


def pair_logits(
    image_embeddings: Any,
    text_embeddings: Any,
    logit_scale: Any,
    logit_bias: Any = None,
    mask: Any = None,
) -> PairLogits:
    """Logits of all images with all texts, `scale * z_image . z_text + bias`.

    Args:
        image_embeddings: `[b, d]`, of length 1.
        text_embeddings: `[b, d]`, of length 1; row i belongs to image i.
        logit_scale: scalar, or `[b]` of equal values: the inverse temperature.
        logit_bias: the same of the bias, or `None`.
        mask: optional `[b]` bool; false pairs are no counterparts: their logits are very negative.

    Returns:
        `PairLogits`, float32.

    Raises:
        ValueError: embeddings of different shapes.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> logits = ops.pair_logits(np.eye(2), np.eye(2), 10.0)
    >>> np.asarray(logits.to_texts).tolist()
    [[10.0, 0.0], [0.0, 10.0]]
    """
    require_rank("image_embeddings", image_embeddings, 2, "[pairs, width]")
    require_rank("text_embeddings", text_embeddings, 2, "[pairs, width]")
    require_same_axes("text_embeddings", text_embeddings, image_embeddings)
    images, texts = (
        ops.cast(ops.convert_to_tensor(x), "float32") for x in (image_embeddings, text_embeddings)
    )
    scale = ops.reshape(ops.cast(logit_scale, "float32"), [-1, 1])
    bias = 0.0 if logit_bias is None else ops.reshape(ops.cast(logit_bias, "float32"), [-1, 1])
    all_images, all_texts = (lay_out(gather_from_replicas(x)) for x in (images, texts))
    to_texts = scale * ops.matmul(images, ops.transpose(all_texts)) + bias
    to_images = scale * ops.matmul(texts, ops.transpose(all_images)) + bias
    own = scale * ops.sum(images * texts, axis=-1, keepdims=True) + bias
    if mask is not None:
        real = lay_out(gather_from_replicas(ops.cast(mask, "float32")))
        away = ops.expand_dims((real - 1.0) * 1e9, 0)
        to_texts, to_images = to_texts + away, to_images + away
    return PairLogits(ops.squeeze(own, -1), to_texts, to_images, own_rows(images))


def contrastive_loss(logits: PairLogits, kind: str = "softmax") -> Any:
    """The loss of each pair; their mean over all replicas is the loss of the batch.

    Args:
        logits: of `pair_logits`.
        kind: `"softmax"`: cross entropy of finding the text among all texts and the image among
            all images, halved. `"sigmoid"`: binary cross entropy of every combination, summed over
            the texts.

    Returns:
        `[b]`, nats.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> logits = ops.pair_logits(np.eye(2), np.eye(2), 1.0)
    >>> [round(float(x), 4) for x in ops.contrastive_loss(logits)]
    [0.3133, 0.3133]

    Reference: Radford et al. 2021, arXiv 2103.00020, figure 3 (softmax); Zhai et al. 2023,
    arXiv 2303.15343, eq. 1 (sigmoid).
    """
    require_choice("kind", kind, KINDS)
    own, to_texts, to_images, _ = logits
    if kind == "softmax":
        both = ops.logsumexp(to_texts, axis=-1) + ops.logsumexp(to_images, axis=-1)
        return 0.5 * both - own
    # -log sigmoid(x) is softplus(x) - x: all combinations are taken for wrong ones, then the right
    # one is set right.
    return ops.sum(ops.softplus(to_texts), axis=-1) - own


def contrastive_hits(logits: PairLogits) -> Any:
    """`[b]`: 1 where image and text both find each other, 0.5 where one does, 0 where none does.

    A tie counts as a miss, so that a model that maps everything to one point finds nothing.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import ops
    >>> np.asarray(ops.contrastive_hits(ops.pair_logits(np.eye(2), np.eye(2), 1.0))).tolist()
    [1.0, 1.0]
    """

    def found(row: Any) -> Any:
        # Not `logits.own`: an accelerator multiplies matrices less precisely than vectors.
        own = ops.sum(ops.where(logits.is_own, row, 0.0), axis=-1, keepdims=True)
        rivals = ops.where(logits.is_own, -math.inf, row)
        margin = 1e-6 * ops.maximum(ops.abs(own), 1.0)
        return ops.cast(ops.all(rivals < own - margin, axis=-1), "float32")

    return 0.5 * (found(logits.to_texts) + found(logits.to_images))


def contrastive_outputs(outputs: Any, mask: Any = None) -> tuple[PairLogits, str]:
    """The logits of what a model of pairs gives, and the kind of its loss.

    Args:
        outputs: `{"image_embedding", "text_embedding", "logit_scale"}`, and `"logit_bias"` where
            the loss is the sigmoid one.
        mask: optional `[b]` bool of the pairs that are real.

    Returns:
        `PairLogits` and `"softmax"` or `"sigmoid"`.

    Raises:
        ValueError: outputs of a model of something else.
    """
    require(
        isinstance(outputs, dict) and {"image_embedding", "text_embedding"} <= set(outputs),
        "outputs must hold image_embedding and text_embedding. Received: "
        f"{sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__}",
    )
    logits = pair_logits(
        outputs["image_embedding"],
        outputs["text_embedding"],
        outputs["logit_scale"],
        outputs.get("logit_bias"),
        mask,
    )
    return logits, "sigmoid" if "logit_bias" in outputs else "softmax"
