"""scikit-learn's handwritten digits, which come with the library itself."""

import numpy as np

from keras_vmoe.data.source import ArraySplit, ImageSource, stratified_split


def load_digits() -> ImageSource:
    """Loads 1,797 scans of digits, 8x8 grey pixels, split once and for all into 1,437 + 360.

    The scans hold 17 shades (0..16), stretched here to 0..255.

    Returns:
        A source with the splits "train" and "test".

    Raises:
        ImportError: if scikit-learn is not installed.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998 (https://doi.org/10.24432/C50P49).
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "dataset 'digits' needs scikit-learn: pip install 'keras_vmoe[train]'."
        ) from error
    scans = datasets.load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = stratified_split(scans.target)
    return ImageSource(
        name="digits",
        class_names=tuple(str(name) for name in scans.target_names),
        image_shape=images.shape[1:],
        splits={
            "train": ArraySplit.of(images[train], scans.target[train]),
            "test": ArraySplit.of(images[test], scans.target[test]),
        },
    )
