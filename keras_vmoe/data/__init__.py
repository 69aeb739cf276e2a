"""Image datasets by name, and the batches made of them.

`load` finds a dataset and checks it; `make_dataset` turns one of its splits into batches whose
order and augmentation depend on nothing but the seed, the epoch and the example, so that a
resumed run sees what an uninterrupted one would have seen.
"""

from keras_vmoe.data.augment import Augment
from keras_vmoe.data.folder import verify
from keras_vmoe.data.pipeline import make_dataset
from keras_vmoe.data.registry import list_datasets, load
from keras_vmoe.data.source import ArraySplit, FileSplit, ImageSource, Split, StreamSplit

__all__ = [
    "ArraySplit",
    "Augment",
    "FileSplit",
    "ImageSource",
    "Split",
    "StreamSplit",
    "list_datasets",
    "load",
    "make_dataset",
    "verify",
]
