"""Retrieval: whether an image finds its texts among all texts, and a text its image.

All after the embeddings is NumPy in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops as kops

from keras_vmoe.evaluation.embeddings import TIE, require_same_width, score_blocks, unit_rows
from keras_vmoe.ops.validation import require
from keras_vmoe.tables import aligned

#: The numbers of results that are looked at, as reported for COCO and Flickr30k.
RECALL_KS: tuple[int, ...] = (1, 5, 10)


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalResult:
    """Where the right ones were found. Rank 1 is the best.

    Attributes:
        ks: numbers of results that are looked at.
        image_to_text_ranks: `[images]` ints, of each image the rank of its best text among all.
        text_to_image_ranks: `[texts]` ints, of each text the rank of its image among all.
    """

    ks: tuple[int, ...]
    image_to_text_ranks: np.ndarray
    text_to_image_ranks: np.ndarray

    @property
    def image_to_text(self) -> dict[int, float]:
        """k to R@k: share of the images that find a text of theirs among the first k."""
        return {k: float((self.image_to_text_ranks <= k).mean()) for k in self.ks}

    @property
    def text_to_image(self) -> dict[int, float]:
        """k to R@k: share of the texts that find their image among the first k."""
        return {k: float((self.text_to_image_ranks <= k).mean()) for k in self.ks}

    @property
    def image_to_text_median_rank(self) -> float:
        """Median over the images."""
        return float(np.median(self.image_to_text_ranks))

    @property
    def text_to_image_median_rank(self) -> float:
        """Median over the texts."""
        return float(np.median(self.text_to_image_ranks))

    def table(self, name: str = "pairs") -> str:
        """The recalls as text, see `retrieval_table`."""
        return retrieval_table({name: self})

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers, ready for JSON."""
        directions = {
            "image_to_text": (self.image_to_text, self.image_to_text_median_rank),
            "text_to_image": (self.text_to_image, self.text_to_image_median_rank),
        }
        counts = {
            "images": len(self.image_to_text_ranks),
            "texts": len(self.text_to_image_ranks),
        }
        return counts | {
            name: {f"recall_at_{k}": share for k, share in recalls.items()} | {"median_rank": rank}
            for name, (recalls, rank) in directions.items()
        }


def retrieval_recalls(
    image_embeddings: Any,
    text_embeddings: Any,
    image_of_text: Any = None,
    ks: Sequence[int] = RECALL_KS,
) -> RetrievalResult:
    """Retrieval in both directions by the cosine, over all images and all texts.

    An image finds its texts if one of them is among the first k; a text has one image. Ties count
    against the model: what scores as high as the right one stands before it, so that a model that
    gives everything the same embedding finds nothing. Texts are told apart by their place alone:
    where two images bear the same caption, each has to find its own. Leave such pairs out before,
    if that is not what you mean.

    Args:
        image_embeddings: `[images, d]`, of any lengths.
        text_embeddings: `[texts, d]`.
        image_of_text: `[texts]` ints, the image that each text belongs to; `None`: as many texts
            as images, in the same order. COCO and Flickr30k have five texts an image.
        ks: numbers of results that are looked at.

    Returns:
        A `RetrievalResult`. Of 5,000 images and 25,000 texts no more than 128 MB of scores are
        held at once.

    Raises:
        ValueError: no images or texts, widths that differ, values that are not finite, texts of
            no image, an image without texts, `ks` that are no different positive ints.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> images = np.eye(3)
    >>> texts = np.array([[0.9, 0.1, 0.0], [0.2, 0.0, 0.1], [0.5, 0.4, 0.0], [0.0, 0.3, 1.0]])
    >>> result = evaluation.retrieval_recalls(images, texts, [0, 0, 1, 2], ks=(1, 2))
    >>> result.text_to_image
    {1: 0.75, 2: 1.0}
    >>> result.image_to_text_ranks
    array([1, 1, 1])

    Reference: Karpathy and Fei-Fei 2015, arXiv 1412.2306, section 4.1; COCO with 5,000 test
    images and Flickr30k with 1,000.
    """
    images = unit_rows("image_embeddings", image_embeddings)
    texts = unit_rows("text_embeddings", text_embeddings)
    require_same_width("text_embeddings", texts, images)
    owners = _checked_owners(image_of_text, len(images), len(texts))
    ks = tuple(ks)
    whole = all(isinstance(k, (int, np.integer)) and k >= 1 for k in ks)
    require(
        bool(ks) and whole and len(set(ks)) == len(ks),
        f"ks must hold different whole numbers of 1 or more. Received: ks={ks}",
    )
    own = np.einsum("td,td->t", texts, images[owners])
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, owners, own)
    image_ranks, text_ranks = np.ones(len(images), int), np.ones(len(texts), int)
    for block, scores in score_blocks(images, texts):
        mine = np.flatnonzero((owners >= block.start) & (owners < block.stop))
        # What is right does not compete with itself; the other texts of an image neither.
        scores[owners[mine] - block.start, mine] = -np.inf
        image_ranks[block] += (scores >= best[block, None] - TIE).sum(axis=1)
        text_ranks += (scores >= own - TIE).sum(axis=0)
    return RetrievalResult(ks, image_ranks, text_ranks)


def retrieval_table(results: Mapping[str, RetrievalResult]) -> str:
    """Results as text: two lines per dataset, a column for each k.

    Args:
        results: name to result, of the same ks.

    Example:

    >>> import numpy as np
    >>> from keras_vmoe import evaluation
    >>> result = evaluation.retrieval_recalls(np.eye(2), np.eye(2), ks=(1,))
    >>> print(evaluation.retrieval_table({"scenes": result}))
    dataset  direction         R@1  median rank
    scenes   image to text  100.0%            1
    scenes   text to image  100.0%            1
    """
    first = next(iter(results.values()))
    lines = [("dataset", "direction", *(f"R@{k}" for k in first.ks), "median rank")]
    for name, one in results.items():
        for words, recalls, rank in (
            ("image to text", one.image_to_text, one.image_to_text_median_rank),
            ("text to image", one.text_to_image, one.text_to_image_median_rank),
        ):
            shares = (f"{100 * recalls[k]:.1f}%" for k in first.ks)
            lines.append((name, words, *shares, f"{rank:g}"))
    return "\n".join(aligned(lines, num_left=2))


def _checked_owners(image_of_text: Any, images: int, texts: int) -> np.ndarray:
    """`[texts]` ints, the image of each text."""
    if image_of_text is None:
        require(
            images == texts,
            "text_embeddings must be as many as image_embeddings, or image_of_text must tell the "
            f"image of each text. Received: {images} images and {texts} texts",
        )
        return np.arange(images)
    owners = np.asarray(kops.convert_to_numpy(image_of_text))
    require(
        owners.shape == (texts,) and np.issubdtype(owners.dtype, np.integer),
        f"image_of_text must hold a whole number for each of the {texts} texts. "
        f"Received: shape {owners.shape} of type {owners.dtype}",
    )
    require(
        owners.min() >= 0 and owners.max() < images,
        f"image_of_text must lie in 0 to {images - 1}, a row of image_embeddings each. "
        f"Received: {owners.min()} to {owners.max()}",
    )
    alone = np.flatnonzero(np.bincount(owners, minlength=images) == 0)
    require(
        not len(alone),
        "every image must have a text; leave the others out of image_embeddings. Received: "
        f"{len(alone)} images without, the first is image {alone[0] if len(alone) else ''}",
    )
    return owners
