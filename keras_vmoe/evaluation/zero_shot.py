"""Zero-shot classification: the class whose prompts lie nearest to the image.

All after the embeddings is NumPy in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops as kops

from keras_vmoe import text
from keras_vmoe.evaluation.embeddings import require_same_width, score_blocks, unit_rows
from keras_vmoe.ops.validation import require, require_positive_int
from keras_vmoe.tables import aligned

_TOP = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ZeroShotResult:
    """Accuracies on one dataset.

    Attributes:
        accuracy: share of the images whose nearest class is right.
        top_5: share with a right class among the five nearest; of up to five classes `None`.
        class_accuracies: `[classes]`, `accuracy` over the images that bear the label; of a class
            without images NaN.
        class_images: `[classes]` ints, how many images bear the label.
        images: how many images count: those with a label.
    """

    accuracy: float
    top_5: float | None
    class_accuracies: np.ndarray
    class_images: np.ndarray
    images: int

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images."""
        return float(self.class_accuracies[self.class_images > 0].mean())

    def table(self, name: str = "images") -> str:
        """The accuracies as text, see `zero_shot_table`."""
        return zero_shot_table({name: self})

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers, ready for JSON; of a class without images `None`."""
        counted = zip(self.class_accuracies.tolist(), self.class_images.tolist(), strict=True)
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "top_5": self.top_5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "class_accuracies": [value if images else None for value, images in counted],
            "class_images": self.class_images.tolist(),
        }


def class_embeddings(
    encode_text: Callable[[list[str]], Any],
    class_names: Sequence[str],
    templates: str | Path | Sequence[str] = "clip_best",
    batch_size: int = 256,
    canonical: bool = True,
) -> np.ndarray:
    """One embedding per class: the mean over its prompts, each of length one, made of length one.

    Args:
        encode_text: from a list of up to `batch_size` texts to their embeddings, `[texts, d]`.
        class_names: a name per class, in the order of the labels.
        templates: what names are put into, see `text.templates`.
        batch_size: texts that are encoded at once.
        canonical: leave out punctuation and capitals, see `text.prompts`.

    Returns:
        `[classes, d]`, float64.

    Raises:
        ValueError: no class names, templates without "{}", embeddings that are not finite or
            not one for each text.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> def lengths(texts):
    ...     return np.array([[len(text), 10.0] for text in texts])
    >>> evaluation.class_embeddings(lengths, ["cat", "elephant"], ["{}", "a {}"]).round(2)
    array([[0.37, 0.93],
           [0.67, 0.75]])

    Reference: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
    """
    require_positive_int("batch_size", batch_size)
    by_class = text.prompts(class_names, text.templates(templates), canonical)
    flat = [prompt for row in by_class for prompt in row]
    labels = np.repeat(np.arange(len(by_class)), len(by_class[0]))
    sums: Any = 0.0
    for start in range(0, len(flat), batch_size):
        batch = flat[start : start + batch_size]
        found = unit_rows("encode_text(texts)", encode_text(batch))
        require(
            len(found) == len(batch),
            "encode_text must give an embedding for each text, [texts, d]. "
            f"Received: {len(found)} embeddings of {len(batch)} texts",
        )
        # A class may begin in one batch and end in another.
        one_hot = np.arange(len(by_class))[:, None] == labels[start : start + batch_size]
        sums = sums + one_hot @ found
    return unit_rows("class embeddings", sums)


def zero_shot_classify(image_embeddings: Any, class_embeddings: Any) -> np.ndarray:
    """The class of the largest cosine.

    Args:
        image_embeddings: `[n, d]`, of any lengths.
        class_embeddings: `[classes, d]`.

    Returns:
        Class ids, `[n]`.

    Raises:
        ValueError: no images, no classes, widths that differ, values that are not finite.

    Example:

    >>> from keras_vmoe import evaluation
    >>> evaluation.zero_shot_classify([[0.2, 0.1], [-1.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]])
    array([0, 1])
    """
    return _nearest(image_embeddings, class_embeddings, 1)[:, 0]


def zero_shot_accuracy(image_embeddings: Any, class_embeddings: Any, labels: Any) -> ZeroShotResult:
    """How often the nearest class is right.

    Args:
        image_embeddings: `[n, d]`, of any lengths.
        class_embeddings: `[classes, d]`, see the function `class_embeddings`.
        labels: class ids `[n]`; or, where several may be right, `[n, classes]` of 0 and 1: any of
            them counts, and images without a label are left out, as for ReaL labels of ImageNet.

    Returns:
        A `ZeroShotResult`.

    Raises:
        ValueError: as `zero_shot_classify`; not as many labels as images, labels that are no
            class, no image with a label.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> images = np.array([[2.0, 0.1], [0.3, 0.4], [0.0, 9.0]])
    >>> result = evaluation.zero_shot_accuracy(images, np.eye(2), labels=[0, 0, 1])
    >>> round(result.accuracy, 3), result.class_accuracies
    (0.667, array([0.5, 1. ]))

    Reference: Radford et al. 2021, arXiv 2103.00020, section 3.1; several labels: Beyer et al.
    2020, arXiv 2006.07159, section 3.1.
    """
    nearest = _nearest(image_embeddings, class_embeddings, _TOP)
    classes = len(class_embeddings)
    right = _multi_hot(labels, len(nearest), classes)
    counted = right.any(axis=-1)
    require(bool(counted.any()), "labels must hold a label of at least one image. Received: none")
    nearest, right = nearest[counted], right[counted]
    hits = np.take_along_axis(right, nearest, axis=-1)
    class_images = right.sum(axis=0)
    class_hits = (right & hits[:, :1]).sum(axis=0)
    class_accuracies = np.where(class_images > 0, class_hits / np.maximum(class_images, 1), np.nan)
    top_5 = float(hits.any(axis=-1).mean()) if classes > _TOP else None
    accuracy = float(hits[:, 0].mean())
    return ZeroShotResult(accuracy, top_5, class_accuracies, class_images, len(nearest))


def zero_shot_table(results: Mapping[str, ZeroShotResult]) -> str:
    """Results as text: a line per dataset.

    Args:
        results: name to result.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> result = evaluation.zero_shot_accuracy(np.eye(6), np.eye(6), [0, 1, 2, 3, 4, 4])
    >>> print(evaluation.zero_shot_table({"digits": result}))
    dataset  images   top-1   top-5  mean of classes
    digits        6  83.3 %  83.3 %           90.0 %
    """
    lines = [("dataset", "images", "top-1", "top-5", "mean of classes")]
    for name, one in results.items():
        shares = (one.accuracy, one.top_5, one.mean_class_accuracy)
        cells = ("-" if share is None else f"{100 * share:.1f} %" for share in shares)
        lines.append((name, str(one.images), *cells))
    return "\n".join(aligned(lines, num_left=1))


def _nearest(image_embeddings: Any, class_embeddings: Any, count: int) -> np.ndarray:
    """The nearest classes, the first the nearest, `[n, min(count, classes)]`."""
    images = unit_rows("image_embeddings", image_embeddings)
    classes = unit_rows("class_embeddings", class_embeddings)
    require_same_width("class_embeddings", classes, images)
    count = min(count, len(classes))
    nearest = np.empty((len(images), count), int)
    for block, scores in score_blocks(images, classes):
        nearest[block] = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
    return nearest


def _multi_hot(labels: Any, images: int, classes: int) -> np.ndarray:
    """`[images, classes]` bool."""
    labels = np.asarray(kops.convert_to_numpy(labels))
    require(
        labels.shape in ((images,), (images, classes)),
        f"labels must have shape {(images,)} or {(images, classes)}, for each image its class or "
        f"all that are right. Received: labels of shape {labels.shape}",
    )
    if labels.ndim == 2:
        require(
            bool(np.isin(labels, (0, 1)).all()),
            f"labels of shape [n, classes] must be 0 or 1. Received: {labels.min()} to "
            f"{labels.max()}",
        )
        return labels.astype(bool)
    whole = np.issubdtype(labels.dtype, np.integer)
    require(
        whole and labels.min() >= 0 and labels.max() < classes,
        f"labels must be whole numbers of 0 to {classes - 1}, a class of class_embeddings each. "
        f"Received: {labels.min()} to {labels.max()} of type {labels.dtype}",
    )
    return np.arange(classes) == labels[:, None]
