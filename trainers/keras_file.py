"""Models of Keras' own files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras

# Loading finds the classes of this package by their registered names.
from keras_vmoe import models as models


def load(file: Path) -> keras.Model:
    """Loads what a `.keras` file holds, as it is.

    Raises:
        ValueError: if it is no `.keras` file, or one that Keras cannot load.
    """
    if file.suffix != ".keras":
        raise ValueError(f"{file} is no .keras file; give one, or a run's workdir")
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} cannot be loaded as a Keras model: it is damaged, not the whole of a file "
            "that Keras saved"
        )
    try:
        return keras.models.load_model(file, compile=False)
    except (ValueError, TypeError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be loaded as a Keras model: {reason}") from error
