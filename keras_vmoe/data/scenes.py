"""Small pictures with captions that say what is where, composed of labelled scans.

Three of four scenes for training are grids: two by two cells, each with a scan of its own or empty,
"top left three top right seven bottom right nine". The others show one scan large, with one of
several phrasings. The held-out scenes are grids whose pairings, what lies in which cell, training
never shows, of scans that it never shows either.
"""

from collections.abc import Sequence

import numpy as np

from keras_vmoe.data import digits, idx
from keras_vmoe.data.pairs import PairSource, pair_arrays
from keras_vmoe.data.pasting import draw_scans, paste
from keras_vmoe.data.source import ArraySplit, ImageSource

SIDE = 32
CELLS = ("top left", "top right", "bottom left", "bottom right")
PHRASINGS = (
    "{}",
    "the {kind} {}",
    "a picture of a {}",
    "a photo of a {}",
    "a scan of a {}",
    "an image of the {kind} {}",
)
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GARMENT_WORDS = (
    *("tee", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
NUM_TRAIN_GRIDS, NUM_TRAIN_SINGLES, NUM_TEST = 15_000, 5_000, 1_000
# Shares of grids without an empty cell, with one and with two.
_SHARES_EMPTY = (0.5, 0.3, 0.2)
_CELL_SIZES, _SINGLE_SIZES = (12, 13, 14), (24, 26, 28, 30, 32)
_EMPTY = -1


def load_digit_grids() -> PairSource:
    """Composes 20,000 + 1,000 scenes, grey, 32x32, of scikit-learn's scans of digits.

    Returns:
        A source with the splits "train" and "test"; the same each time.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    return compose(digits.load_digits(), "digit_grids", DIGIT_WORDS, "digit")


def load_garment_grids(data_dir: str | None = None) -> PairSource:
    """Composes the same number of scenes of Fashion-MNIST's ten garments.

    Args:
        data_dir: folder of the four idx files; Debian's place for them if None.

    Returns:
        A source with the splits "train" and "test"; the same each time.

    Raises:
        FileNotFoundError: if the files are not at hand.
        ValueError: if one is damaged.
    """
    scans = idx.load_idx_folder(idx.find_folder(data_dir, "garment_grids"))
    return compose(scans, "garment_grids", GARMENT_WORDS, "garment")


def compose(
    scans: ImageSource, name: str, words: Sequence[str], kind: str, seed: int = 0
) -> PairSource:
    """Composes scenes of labelled grey scans: of its training scans, and of its held-out ones.

    Args:
        scans: of about ten classes, whose splits are arrays of one channel.
        name: of the result.
        words: one word for each class.
        kind: what the classes are, such as "digit", for some phrasings.
        seed: which of the possible scenes.

    Returns:
        A source with the splits "train" and "test".
    """
    # RandomState, because its stream of numbers never changes.
    random = np.random.RandomState(seed)
    grids = _draw_pairings(random, len(words))
    singles = random.randint(len(words), size=NUM_TRAIN_SINGLES)
    train = _compose_split(random, scans.train, words, kind, grids[NUM_TEST:], singles)
    test = _compose_split(random, scans.eval, words, kind, grids[:NUM_TEST], singles[:0])
    return PairSource(name, (SIDE, SIDE, 1), {"train": train, "test": test})


def _draw_pairings(random: np.random.RandomState, num_classes: int) -> np.ndarray:
    """Returns the class in each cell, `[NUM_TEST + NUM_TRAIN_GRIDS, 4]`.

    The first `NUM_TEST` are distinct and never come again.
    """
    total = NUM_TEST + NUM_TRAIN_GRIDS
    # More than needed: those that are held out go from the rest.
    drawn = random.randint(num_classes, size=(2 * total, len(CELLS)))
    num_empty = random.choice(len(_SHARES_EMPTY), size=len(drawn), p=_SHARES_EMPTY)
    places = np.argsort(random.uniform(size=drawn.shape), axis=1)
    drawn = np.where(places < num_empty[:, None], _EMPTY, drawn)
    codes = (drawn + 1) @ (num_classes + 1) ** np.arange(len(CELLS))
    _, first = np.unique(codes, return_index=True)
    held_out = np.sort(first)[:NUM_TEST]
    rest = np.flatnonzero(~np.isin(codes, codes[held_out]))
    return drawn[np.concatenate([held_out, rest[:NUM_TRAIN_GRIDS]])]


def _compose_split(
    random: np.random.RandomState,
    scans: ArraySplit,
    words: Sequence[str],
    kind: str,
    grids: np.ndarray,
    singles: np.ndarray,
) -> ArraySplit:
    """Draws the scenes of these classes and mixes the two kinds."""
    cells = np.zeros((grids.size, SIDE // 2, SIDE // 2), np.uint8)
    filled = np.flatnonzero(grids.ravel() != _EMPTY)
    chosen = draw_scans(random, scans.labels, grids.ravel()[filled])
    cells[filled] = paste(random, scans.images[chosen, ..., 0], SIDE // 2, _CELL_SIZES)
    cells = cells.reshape(-1, 2, 2, SIDE // 2, SIDE // 2).transpose(0, 1, 3, 2, 4)
    chosen = draw_scans(random, scans.labels, singles)
    large = paste(random, scans.images[chosen, ..., 0], SIDE, _SINGLE_SIZES)
    images = np.concatenate([cells.reshape(-1, SIDE, SIDE), large])[..., None]
    captions = [grid_caption([words[i] if i != _EMPTY else "" for i in row]) for row in grids]
    phrasings = random.randint(len(PHRASINGS), size=len(singles))
    for label, phrasing in zip(singles, phrasings, strict=True):
        captions.append(PHRASINGS[phrasing].format(words[label], kind=kind))
    order = random.permutation(len(images)) if len(singles) else np.arange(len(images))
    return pair_arrays(images[order], [(captions[i],) for i in order])


def grid_caption(words: Sequence[str]) -> str:
    """Returns what is where.

    Args:
        words: what lies top left, top right, bottom left and bottom right; "" for nothing.

    Example:
        >>> grid_caption(["three", "", "two", "nine"])
        'top left three bottom left two bottom right nine'
    """
    return " ".join(f"{cell} {word}" for cell, word in zip(CELLS, words, strict=True) if word)
