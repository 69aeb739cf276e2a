"""Image files by path: which there are, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def find(words: Sequence[str]) -> list[Path]:
    """Finds image files.

    Args:
        words: files, taken whatever their ending, and folders, searched to their depths.

    Returns:
        The files in the order of the words, those of a folder sorted by path.

    Raises:
        FileNotFoundError: if there is nothing at a path, or no image in a folder.
    """
    from keras_vmoe.data.folder import OTHER_FORMATS, SUFFIXES

    # Other formats are taken too: that they cannot be read is said of each.
    endings = SUFFIXES + OTHER_FORMATS
    found = []
    for word in words:
        path = Path(word).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{word}: there is no such file or folder")
        if not path.is_dir():
            found.append(path)
            continue
        files = (file for file in path.rglob("*") if _is_image(file.relative_to(path), endings))
        inside = [file for file in sorted(files) if file.is_file()]
        if not inside:
            raise FileNotFoundError(f"{word} holds no images ({', '.join(SUFFIXES)})")
        found += inside
    return found


def _is_image(path: Path, endings: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in endings and not hidden


def read(path: Path, channels: int) -> np.ndarray | str:
    """Reads the pixels of an image as training reads them: the first frame, transparency left out.

    Args:
        path: a PNG, JPEG, BMP or GIF.
        channels: 1 or 3; colour and grey are made of one another.

    Returns:
        uint8 `[height, width, channels]`, or in a line the reason why there are none.
    """
    from keras_vmoe.data.corrupt import try_decode

    try:
        content = path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    image = try_decode(content, channels)
    if isinstance(image, str):
        # BMP and GIF come in the channels that they have.
        as_is = try_decode(content, 0)
        if isinstance(as_is, str):
            return as_is
        colour = as_is[..., :3] if as_is.shape[-1] >= 3 else as_is[..., :1]
        image = colour if colour.shape[-1] == channels else _converted(colour, channels)
    return image.numpy()


def _converted(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Grey of colour, or colour of grey."""
    import tensorflow as tf

    if channels == 3:
        return tf.image.grayscale_to_rgb(image)
    return tf.image.rgb_to_grayscale(image)
