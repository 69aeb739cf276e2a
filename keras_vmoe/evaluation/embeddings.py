"""Embeddings of images and texts as NumPy arrays: collected, checked, of length one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops as kops

from keras_vmoe import layers
from keras_vmoe.ops.validation import require, require_finite, require_rank

#: Scores closer than this are ties: what is left of them is the order of a summation.
TIE = 1e-9
_BLOCK = 2**24  # scores that are held at once: 128 MB


def collect_pair_embeddings(
    model: keras.Model,
    batches: Iterable[Mapping[str, Any]],
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model of images and texts over pairs, as in inference.

    Args:
        model: from a dict of "images" and "tokens" to a dict of "image_embedding" `[b, d]` and
            "text_embedding" `[b, d]`.
        batches: dicts of "image" `[b, height, width, channels]`, "tokens" `[b, length]` ints and,
            where there is padding, "mask" `[b]` bool, false for pairs that do not count. Those
            do not reach the model.
        on_batch: called after each batch.

    Returns:
        The embeddings of the images and of the texts, `[n, d]` each, float32, in order.

    Raises:
        ValueError: no pairs, or a batch or a model without these names.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation, models
    >>> model = models.LIMoE.from_variant("limoe_ti8", image_size=8)
    >>> batch = {"image": np.zeros((3, 8, 8, 3)), "tokens": np.ones((3, 16), "int32")}
    >>> batch["mask"] = np.array([True, True, False])
    >>> images, texts = evaluation.collect_pair_embeddings(model, [batch] * 2)
    >>> images.shape, texts.shape
    ((4, 64), (4, 64))
    """
    names = ("image_embedding", "text_embedding")
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in batches:
        inputs = _real_pairs(batch)
        if len(inputs["image"]):
            with layers.routing_metrics(False):
                outputs = model.predict_on_batch(
                    {"images": inputs["image"], "tokens": inputs["tokens"]}
                )
            require(
                isinstance(outputs, Mapping) and set(names) <= set(outputs),
                f"model must give a dict of {names[0]!r} and {names[1]!r}. Received: "
                f"{sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__}",
            )
            for name in names:
                found[name].append(np.asarray(outputs[name], "float32"))
        on_batch()
    require(bool(found[names[0]]), "batches must hold at least one pair. Received: none")
    images, texts = (np.concatenate(found[name]) for name in names)
    return images, texts


def _real_pairs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The images and tokens of a batch that are not padding."""
    require(
        isinstance(batch, Mapping) and "image" in batch and "tokens" in batch,
        "batches must hold dicts with 'image' and 'tokens'. "
        f"Received: {sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__}",
    )
    inputs = {name: np.asarray(kops.convert_to_numpy(batch[name])) for name in ("image", "tokens")}
    require(
        len(inputs["image"]) == len(inputs["tokens"]),
        "a batch must hold a row of tokens for each image. Received: "
        f"{len(inputs['image'])} images and {len(inputs['tokens'])} rows of tokens",
    )
    if batch.get("mask") is None:
        return inputs
    mask = np.asarray(kops.convert_to_numpy(batch["mask"]), bool)
    return {name: value[mask] for name, value in inputs.items()}


def unit_rows(name: str, embeddings: Any) -> np.ndarray:
    """Embeddings divided by their l2 norms, `[n, d]`, float64; rows of zeros stay zeros.

    Raises:
        ValueError: no `[n, d]`, no rows, or values that are not finite.
    """
    embeddings = np.asarray(kops.convert_to_numpy(embeddings))
    require_rank(name, embeddings, 2, "[n, d]")
    require(
        embeddings.size > 0,
        f"{name} must hold at least one embedding. Received: shape {embeddings.shape}",
    )
    require_finite(name, embeddings)
    embeddings = embeddings.astype("float64")
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.maximum(norms, 1e-30)


def require_same_width(name: str, embeddings: np.ndarray, images: np.ndarray) -> None:
    """Raises a `ValueError` unless two sets of embeddings have the same d."""
    require(
        embeddings.shape[-1] == images.shape[-1],
        f"{name} must have the width of image_embeddings, {images.shape[-1]}. "
        f"Received: {name} of shape {embeddings.shape}",
    )


def score_blocks(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosines of unit rows with unit columns, some rows at a time: `[r, columns]`."""
    step = max(1, _BLOCK // len(columns))
    for start in range(0, len(rows), step):
        block = slice(start, min(start + step, len(rows)))
        yield block, rows[block] @ columns.T
