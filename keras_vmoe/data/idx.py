"""Fashion-MNIST from the idx files of its authors."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from keras_vmoe.data.source import ArraySplit, ImageSource

# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"


def file_names() -> tuple[str, ...]:
    """Returns the names of the four files that a folder must hold."""
    return tuple(
        pattern.format(prefix) for prefix in _PREFIXES.values() for pattern in (_IMAGES, _LABELS)
    )


def find_folder(data_dir: str | None, dataset: str) -> Path:
    """Returns the folder of Fashion-MNIST's files that a dataset is made of.

    Args:
        data_dir: the folder; Debian's place for it if None.
        dataset: the name of what is made, for the message.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(data_dir).expanduser() if data_dir else DEBIAN_FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset {dataset!r} is made of Fashion-MNIST, which is not in {folder}: install "
            "Debian's package dataset-fashion-mnist, or give data_dir, the folder of its four "
            "idx files."
        )
    return folder


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads one gzipped idx file of unsigned bytes.

    The format is a big-endian header (two zero bytes, a type code, the number of axes, then the
    size of each axis as four bytes) followed by the values.

    Args:
        path: the file.
        ndim: the number of axes that it should have: 3 for images, 1 for labels.

    Returns:
        A uint8 array.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is not a whole gzip file, or not an idx file of `ndim` axes of bytes, or
            holds another number of values than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): fetch it again.") from error
    magic = bytes((0, 0, 8, ndim))
    if content[:4] != magic:
        raise ValueError(
            f"{path} does not start as an idx file of {ndim} axes of bytes: "
            f"expected {magic.hex()}, got {content[:4].hex() or 'nothing'}."
        )
    header = 4 + 4 * ndim
    if len(content) < header:
        raise ValueError(f"{path} ends within its header: fetch it again.")
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    values = len(content) - header
    if math.prod(shape) != values:
        raise ValueError(f"{path} holds {values} values, its header says {shape}: fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx_folder(folder: Path) -> ImageSource:
    """Loads Fashion-MNIST from a folder of its four gzipped idx files.

    Args:
        folder: holds `train-images-idx3-ubyte.gz`, `train-labels-idx1-ubyte.gz` and the same with
            `t10k`.

    Returns:
        A source with the splits "train" and "test".

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or images and labels do not go together.

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017 (https://arxiv.org/abs/1708.07747).
    """
    missing = [name for name in file_names() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"data_dir={str(folder)!r} lacks {', '.join(missing)}.")
    splits = {name: _read_split(folder, prefix) for name, prefix in _PREFIXES.items()}
    shapes = {split.images.shape[1:] for split in splits.values()}
    if len(shapes) > 1:
        raise ValueError(f"the two splits in {folder} hold images of different sizes: {shapes}.")
    return ImageSource("fashion_mnist", CLASS_NAMES, shapes.pop(), splits)


def _read_split(folder: Path, prefix: str) -> ArraySplit:
    images = read_idx(folder / _IMAGES.format(prefix), 3)
    labels_path = folder / _LABELS.format(prefix)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{labels_path} holds {len(labels)} labels for {len(images)} images.")
    if labels.max(initial=0) >= len(CLASS_NAMES):
        raise ValueError(
            f"{labels_path} holds label {labels.max()}, the last class is {len(CLASS_NAMES) - 1}."
        )
    return ArraySplit.of(images[..., None], labels)
