"""Pictures of 100 classes: a labelled scan that carries a tag with a digit.

The class is the pair, "sneaker with 7": classes that share their garment, or their digit, look
alike, and some garments do too, so that the classes have neighbourhoods to be found.
"""

import numpy as np

from keras_vmoe.data import digits
from keras_vmoe.data.pasting import draw_scans, paste
from keras_vmoe.data.scenes import GARMENT_WORDS, SIDE
from keras_vmoe.data.source import ArraySplit, ImageSource, stratified_split

NUM_DIGIT_PAIRS = {"train": 20_000, "validation": 4_000, "test": 4_000}
_SCAN_SIZES = (26, 28, 30)
# The tag covers the lower right quarter: of a smaller one, small models learn nothing for long.
_TAG_SIDE, _TAG_SIZES = 16, (14, 15, 16)


def load_garment_digits(garments: ImageSource) -> ImageSource:
    """Puts a tag with one of scikit-learn's scans of digits on each picture of Fashion-MNIST.

    Args:
        garments: Fashion-MNIST, in memory.

    Returns:
        A source of 100 classes, grey, 32x32: the splits "train", 5/6 of the training pictures,
        "validation", the others, and "test". No split shares a garment or a scan of a digit with
        another. The same each time.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    counts = {"train": None, "validation": None, "test": None}
    return compose(garments, digits.load_digits(), "garment_digits", GARMENT_WORDS, counts)


def load_digit_pairs() -> ImageSource:
    """Puts a tag with a digit on scans of digits, both scikit-learn's.

    Returns:
        A source of 100 classes such as "3 with 7", grey, 32x32: the splits "train" (20,000
        pictures), "validation" and "test" (4,000 each), which share no scan. The same each time.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    scans = digits.load_digits()
    return compose(scans, scans, "digit_pairs", scans.class_names, NUM_DIGIT_PAIRS)


def compose(
    scans: ImageSource,
    tags: ImageSource,
    name: str,
    words: tuple[str, ...],
    counts: dict[str, int | None],
    seed: int = 0,
) -> ImageSource:
    """Puts a tag with a small scan on each of other scans.

    Args:
        scans: what carries the tags; its splits are arrays of one channel.
        tags: what is on the tags, likewise.
        name: of the result.
        words: one for each class of `scans`.
        counts: how many pictures the splits "train", "validation" and "test" have; None for each
            scan once. "validation" is made of parts of both training splits.
        seed: which of the possible pictures.

    Returns:
        A source of which class `i * tags.num_classes + j` is class i of `scans` with class j of
        `tags`.
    """
    # RandomState, because its stream of numbers never changes.
    random = np.random.RandomState(seed)
    carriers, labels = _parts(scans, 1 / 6), _parts(tags, 0.2)
    splits = {
        split: _compose_split(random, carriers[split], labels[split], tags.num_classes, count)
        for split, count in counts.items()
    }
    names = tuple(f"{word} with {tag}" for word in words for tag in tags.class_names)
    return ImageSource(name, names, (SIDE, SIDE, 1), splits)


def _parts(source: ImageSource, share: float) -> dict[str, ArraySplit]:
    train, validation = (
        ArraySplit.of(source.train.images[places], source.train.labels[places])
        for places in stratified_split(source.train.labels, share)
    )
    return {"train": train, "validation": validation, "test": source.eval}


def _compose_split(
    random: np.random.RandomState,
    scans: ArraySplit,
    tags: ArraySplit,
    num_tags: int,
    count: int | None,
) -> ArraySplit:
    count = scans.num_examples if count is None else count
    carriers = random.permutation(np.arange(count) % scans.num_examples)
    wanted = random.randint(num_tags, size=count)
    chosen = draw_scans(random, tags.labels, wanted)
    images = paste(random, scans.images[carriers, ..., 0], SIDE, _SCAN_SIZES)
    corner = slice(SIDE - _TAG_SIDE, None)
    images[:, corner, corner] = paste(random, tags.images[chosen, ..., 0], _TAG_SIDE, _TAG_SIZES)
    return ArraySplit.of(images[..., None], scans.labels[carriers] * num_tags + wanted)
