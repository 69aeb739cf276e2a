"""Image datasets by name, labelled or with captions, and the batches made of them.

`load` finds a dataset and checks it; `make_dataset` turns one of its splits into batches whose
order and augmentation depend on nothing but the seed, the epoch and the example, so that a
resumed run sees what an uninterrupted one would have seen. `load_pairs` and `make_pairs` do the
same for images with captions, `load_boxes` and `make_boxes` for images with boxes.
"""

from keras_vmoe.data.augment import Augment, Flip
from keras_vmoe.data.augmentation import Augmentation
from keras_vmoe.data.box_pipeline import NO_CLASS, make_boxes
from keras_vmoe.data.box_registry import list_boxes, load_boxes
from keras_vmoe.data.boxes import BoxSource, box_arrays, read_boxes
from keras_vmoe.data.color_jitter import ColorJitter
from keras_vmoe.data.corrupt import CorruptImages
from keras_vmoe.data.crops import CentralCrop, Crop, InceptionCrop
from keras_vmoe.data.folder import verify
from keras_vmoe.data.labelled_pairs import class_words
from keras_vmoe.data.mixes import CutMix, Mix, Mixup, mix_with_weights
from keras_vmoe.data.pair_registry import list_pairs, load_pairs
from keras_vmoe.data.pairs import (
    PairSource,
    make_pairs,
    pair_arrays,
    read_captions,
    split_captions,
)
from keras_vmoe.data.pipeline import make_dataset
from keras_vmoe.data.rand_augment import RandAugment
from keras_vmoe.data.random_erasing import RandomErasing
from keras_vmoe.data.registry import list_datasets, load
from keras_vmoe.data.scale_jitter import ScaleJitter
from keras_vmoe.data.scenes import DIGIT_WORDS, GARMENT_WORDS
from keras_vmoe.data.selection import read_labels, select
from keras_vmoe.data.source import ArraySplit, FileSplit, ImageSource, Split, StreamSplit

__all__ = [
    "DIGIT_WORDS",
    "GARMENT_WORDS",
    "NO_CLASS",
    "ArraySplit",
    "Augment",
    "Augmentation",
    "BoxSource",
    "CentralCrop",
    "ColorJitter",
    "CorruptImages",
    "Crop",
    "CutMix",
    "FileSplit",
    "Flip",
    "ImageSource",
    "InceptionCrop",
    "Mix",
    "Mixup",
    "PairSource",
    "RandAugment",
    "RandomErasing",
    "ScaleJitter",
    "Split",
    "StreamSplit",
    "box_arrays",
    "class_words",
    "list_boxes",
    "list_datasets",
    "list_pairs",
    "load",
    "load_boxes",
    "load_pairs",
    "make_boxes",
    "make_dataset",
    "make_pairs",
    "mix_with_weights",
    "pair_arrays",
    "read_boxes",
    "read_captions",
    "read_labels",
    "select",
    "split_captions",
    "verify",
]
